"""An instrument that notes the constants that the code of each module passes to PyTorch functions.

Such a constant is the dimension of a mean, the ε of a normalization, a factor, the diagonal of a mask, or the positions that are
looked up. No parameter holds it, and neither the class of a module nor the names of its operations show it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import get_testing_overrides
from torch.utils.weak import WeakIdKeyDictionary

from ..torch_internals import function_transforms_are_active, without_torch_functions
from ..trees import tensors_in
from .function_mode import FunctionObserver
from .recorder import Recorder

__all__ = ["SettingsObserver"]

_SIZES = frozenset({
    *("view", "view_as", "reshape", "reshape_as", "expand", "expand_as", "broadcast_to", "as_strided", "unflatten"),
    *("contiguous", "clone", "detach", "requires_grad", "register_hook", "retain_grad", "item", "tolist", "cpu", "cuda"),
    *("is_nonzero", "get", "set", "set_grad_enabled", "bool", "len", "repr", "format", "contains", "hash", "deepcopy"),
})  # fmt: skip
"""Functions whose constants are sizes of tensors, or which compute nothing."""
_LOOKUPS = frozenset({"getitem", "index_select", "gather", "embedding", "take", "take_along_dim"})
"""Functions that read entries of a table at positions, whose names matter."""
_PLAIN = frozenset({"", "input", "self", "other", "idx", "normalized_shape"})
"""Arguments that need no name: positions, factors and shapes."""
MOST_FOLLOWED = 16
"""Number of calls whose results are followed together; the last ones if there are more."""
_RESERVED = frozenset({"out", "device", "generator", "layout", "memory_format", "inplace", "names", "requires_grad"})
"""Arguments that do not change what is computed."""
MOST_INDICES = 2**16
"""Number of positions up to which their range is read."""


class SettingsObserver(FunctionObserver):
    """Notes a text for each call of a PyTorch function with a constant, such as ``mean(dim=-1)``, by the module that calls it.

    Arguments are named as in PyTorch's documentation. Tensors are left out, with three exceptions: constant numbers and
    constant positions, of which the range is shown; the table that positions are looked up in; and what a module inside the
    calling one has returned, which has the name of that module. Calls at which a gradient ends are noted, too: ``detach``, and
    those that record no graph, as ``add(mean, no_grad)``.

    The result of a call is followed up to the first call in which it meets another value that carries a gradient, a parameter
    for instance. If this is in the code of a module inside the calling one, that module reads it: a mask is made by the model and
    read by its attention.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        model = recorder.capture.model
        self.kind = type(model).__name__
        self.found: dict[str, list[str]] = {}
        """Texts of the calls by the path of the module, in program order. The model itself has the name of its class."""
        self.readers: dict[tuple[str, str], dict[tuple[str, str], None]] = {}
        """For a path and a text the modules that read the result, relative to the calling one, with the name of the argument."""
        self._followed: MutableMapping[Tensor, tuple[tuple[str, str], ...]] = WeakIdKeyDictionary()
        """Path and text of the calls that a tensor has been computed from since."""
        self._names: MutableMapping[Tensor, str] = WeakIdKeyDictionary({tensor: name for name, tensor in _named(model)})
        self._makers: MutableMapping[Tensor, str] = WeakIdKeyDictionary()
        self._constants: MutableMapping[Tensor, None] = WeakIdKeyDictionary(dict.fromkeys(model.buffers()))

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, and note the constants that it is given."""
        name = getattr(func, "__name__", "").strip("_")
        if not name or self.caller is None or function_transforms_are_active():
            return func(*args, **kwargs)
        path, has_graph = self.caller.path, torch.is_grad_enabled()
        with without_torch_functions(), torch.no_grad():
            given = list(tensors_in((args, kwargs)))
            loses = (name == "detach" or not has_graph) and any(tensor.requires_grad for tensor in given)
            shown = self._argument_texts(func, name, path, args, kwargs) if name not in _SIZES or loses else None
            is_constant = all(tensor in self._constants for tensor in given)
            arriving = self._arriving(func, path, args, kwargs)
        result = func(*args, **kwargs)
        results = list(tensors_in(result))
        loses = loses and not name.endswith("_like") and any(tensor.is_floating_point() for tensor in results)
        text = ""
        if shown is not None and (shown[1] or loses):
            text = f"{name}({', '.join([*shown[0], *(['no_grad'] if loses and not has_graph else [])])})"
            self.found.setdefault(path or self.kind, []).append(text)
        followed = (*arriving, *([(path, text)] if text else []))[-MOST_FOLLOWED:]
        for tensor in results:
            if followed:
                self._followed[tensor] = followed
            # Sizes and copies are no results of a module's own.
            if name in _SIZES:
                continue
            if is_constant and not tensor.requires_grad:
                self._constants[tensor] = None
            else:
                # A buffer that is computed in place, such as the vector of a spectral normalization, is constant no more.
                self._constants.pop(tensor, None)
            if tensor not in self._names:
                self._makers[tensor] = path
        return result

    def _arriving(
        self, func: Any, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[str, str], ...]:
        """Return the calls whose results are given and may be followed further; note those that meet another value here."""
        arguments = [(key, tensor) for key, value in _arguments(func, args, kwargs) for tensor in tensors_in(value)]
        followed = {call: key for key, tensor in arguments for call in self._followed.get(tensor, ())}
        if not followed or not any(t.requires_grad and t not in self._followed for _, t in arguments):
            return tuple(followed)
        for (caller, text), key in followed.items():
            inner = _inside(path, caller)
            if inner:
                self.readers.setdefault((caller or self.kind, text), {})[inner, "" if key in _PLAIN else key] = None
        return ()

    def _argument_texts(
        self, func: Any, name: str, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[list[str], bool]:
        """Return the arguments of a call as texts, and whether there are constants among them."""
        usual = _defaults(func)
        values = [
            (k, v) for k, v in _arguments(func, args, kwargs) if k not in _RESERVED and not _is_same(v, usual.get(k))
        ]
        shown = [(key, self._shown(value, path)) for key, value in values]
        texts = []
        for (key, value), (_, text) in zip(values, shown):
            named = text or (self._source(value, name, path) if isinstance(value, Tensor) else "")
            if named:
                texts.append(named if key in _PLAIN else f"{key}={named}")
        return texts, any(text for _, text in shown)

    def _source(self, tensor: Tensor, name: str, path: str) -> str:
        """Return the name of a table that is looked up, or of the module inside the calling one that returned a tensor."""
        table = self._names.get(tensor, "") if name in _LOOKUPS else ""
        maker = self._makers.get(tensor, "")
        return _inside(table, path) or _inside(maker, path)

    def _shown(self, value: Any, path: str) -> str:
        """Return a constant as text; empty for what is none."""
        if isinstance(value, Tensor):
            return self._shown_tensor(value)
        if isinstance(value, float):
            return f"{value:.6g}"
        if isinstance(value, slice):
            ends = ("" if part is None else str(part) for part in (value.start, value.stop))
            return ":".join(ends) + ("" if value.step is None else f":{value.step}")
        if isinstance(value, (bool, int)):
            return str(value)
        if isinstance(value, str):
            return repr(value)
        if value is Ellipsis:
            return "..."
        if isinstance(value, torch.dtype):
            return str(value).removeprefix("torch.")
        if isinstance(value, (tuple, list)):
            parts = [self._shown(part, path) for part in value]
            return f"({', '.join(part for part in parts if part)})" if any(parts) else ""
        return ""

    def _shown_tensor(self, value: Tensor) -> str:
        """Return a constant number, or the range of constant positions; empty for what depends on inputs or parameters."""
        if value not in self._constants or value.is_meta or not 0 < value.numel() <= MOST_INDICES or value.is_complex():
            return ""
        if value.numel() == 1 and not value.is_floating_point():
            return str(int(value))
        if value.numel() == 1:
            return f"{float(value):.6g}"
        if value.is_floating_point() or value.dtype == torch.bool:
            return ""
        try:
            low, high = (int(end) for end in torch.aminmax(value))
        except (RuntimeError, NotImplementedError):
            # PyTorch does not compare numbers of this type.
            return ""
        return f"{low}…{high}"


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _inside(name: str, path: str) -> str:
    """Return a name relative to a module; empty if it is that of no part of the module."""
    if not path:
        return name
    return name.removeprefix(f"{path}.") if name.startswith(f"{path}.") else ""


def _arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield names and values of arguments; names are empty where they are not known. Private ones are left out."""
    names = _names_of_fused_layer(args) if getattr(func, "__name__", "") in _FUSED_LAYERS else tuple(_defaults(func))
    yield from ((names[i] if i < len(names) else "", value) for i, value in enumerate(args))
    yield from ((name, value) for name, value in kwargs.items() if not name.startswith("_"))


def _is_same(value: Any, usual: Any) -> bool:
    """Return whether an argument is the default of the function. A number with a fraction, such as an ε, is shown even so."""
    return isinstance(value, (bool, int, str)) and isinstance(usual, (bool, int, str)) and value == usual


@cache
def _defaults(func: Any) -> Mapping[str, Any]:
    """Return the positional arguments of a function with their defaults; none if they are not known."""
    known = func if inspect.isfunction(func) else get_testing_overrides().get(func)
    if known is None:
        return {}
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = {n: p.default for n, p in inspect.signature(known).parameters.items() if p.kind in positional}
    # No function takes its result by position, so that what follows is not in this order.
    return {n: default for n, default in found.items() if "out" not in list(found)[: list(found).index(n) + 1]}


_FUSED_LAYERS = frozenset({"rnn_tanh", "rnn_relu", "lstm", "gru"})


def _names_of_fused_layer(args: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the names of the arguments of a recurrent layer, which differ for packed sequences."""
    flags = ("has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first")
    is_packed = len(args) > 3 and isinstance(args[3], (list, tuple))
    return ("data", "batch_sizes", "hx", "params", *flags[:-1]) if is_packed else ("input", "hx", "params", *flags)
