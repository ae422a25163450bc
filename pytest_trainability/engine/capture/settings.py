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
_RESERVED = frozenset({"out", "device", "generator", "layout", "memory_format", "inplace", "names", "requires_grad"})
"""Arguments that do not change what is computed."""
MOST_INDICES = 2**16
"""Number of positions up to which their range is read."""


class SettingsObserver(FunctionObserver):
    """Notes a text for each call of a PyTorch function with a constant, such as ``mean(dim=-1)``, by the module that calls it.

    Arguments are named as in PyTorch's documentation. Tensors are left out, with three exceptions: constant numbers and
    constant positions, of which the range is shown; the table that positions are looked up in; and what a module inside the
    calling one has returned, which has the name of that module.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        model = recorder.capture.model
        self.kind = type(model).__name__
        self.found: dict[str, list[str]] = {}
        """Texts of the calls by the path of the module, in program order. The model itself has the name of its class."""
        self._names: MutableMapping[Tensor, str] = WeakIdKeyDictionary({tensor: name for name, tensor in _named(model)})
        self._makers: MutableMapping[Tensor, str] = WeakIdKeyDictionary()
        self._constants: MutableMapping[Tensor, None] = WeakIdKeyDictionary(dict.fromkeys(model.buffers()))

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, and note the constants that it is given."""
        name = getattr(func, "__name__", "").strip("_")
        if not name or name in _SIZES or self.caller is None or function_transforms_are_active():
            return func(*args, **kwargs)
        path = self.caller.path
        with without_torch_functions(), torch.no_grad():
            text = self._text(func, name, path, args, kwargs)
            given = list(tensors_in((args, kwargs)))
            is_constant = all(tensor in self._constants for tensor in given)
        result = func(*args, **kwargs)
        if text:
            self.found.setdefault(path or self.kind, []).append(text)
        for tensor in tensors_in(result):
            if is_constant and not tensor.requires_grad:
                self._constants[tensor] = None
            if tensor not in self._names:
                self._makers[tensor] = path
        return result

    def _text(self, func: Any, name: str, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Return a call as text; empty without constants."""
        usual = _defaults(func)
        values = [
            (k, v) for k, v in _arguments(func, args, kwargs) if k not in _RESERVED and not _is_same(v, usual.get(k))
        ]
        shown = [(key, self._shown(value, path)) for key, value in values]
        if not any(text for _, text in shown):
            return ""
        texts = []
        for (key, value), (_, text) in zip(values, shown):
            named = text or (self._source(value, name, path) if isinstance(value, Tensor) else "")
            if named:
                # Positions, factors and shapes need no name.
                is_plain = not key or key in {"input", "self", "other", "idx", "normalized_shape"}
                texts.append(named if is_plain else f"{key}={named}")
        return f"{name}({', '.join(texts)})"

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
