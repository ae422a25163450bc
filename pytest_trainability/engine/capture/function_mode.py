"""The base class of instruments that observe the PyTorch functions that a model calls, and names for their observations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

from .recorder import Call, Recorder

__all__ = ["FunctionObserver", "numbered"]


_ASK_ONLY = frozenset({
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size", "__len__"),
    *("is_floating_point", "is_complex", "is_contiguous", "is_signed", "get_device", "data_ptr", "untyped_storage"),
})  # fmt: skip
"""Methods of tensors that compute nothing. A model calls them more often than functions that compute."""

_COMPUTED_ATTRIBUTES = frozenset({"T", "mT", "H", "mH", "real", "imag", "data", "grad"})
"""Attributes of tensors that are tensors."""


class FunctionObserver(TorchFunctionMode):
    """Observes the PyTorch functions that a model calls while it is entered. Subclasses override :meth:`call`.

    Functions that only read an attribute of a tensor, such as its shape, are not observed.

    It is an instrument: ``capture`` enters it for the forward pass and keeps it in ``Capture.watched``.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        # The recorder itself would close a reference cycle: recorder -> capture -> observer -> recorder.
        self.running = recorder.running

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _asks_only(func):
            return func(*args, **(kwargs or {}))
        return self.call(func, args, kwargs or {})

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function that the model called, observe what it does, and return its result."""
        raise NotImplementedError

    @property
    def caller(self) -> Call | None:
        """The innermost module call that is running, or None outside of all modules, as in a loss."""
        return self.running[-1] if self.running else None

    @property
    def path(self) -> str:
        """Name of the caller: the path of its module, the class name for the model itself, or ``"loss"``."""
        call = self.caller
        return (call.path or type(call.module).__name__) if call is not None else "loss"


def _asks_only(func: Callable[..., Any]) -> bool:
    """Return whether a function reads an attribute of a tensor and computes nothing, such as ``tensor.shape``."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") not in _COMPUTED_ATTRIBUTES
    return name in _ASK_ONLY


def numbered(names: Sequence[str]) -> list[str]:
    """Return names made unique: those that occur more than once are numbered.

    >>> numbered(["attn", "mlp", "attn"])
    ['attn[0]', 'mlp', 'attn[1]']
    """
    count, number = Counter(names), Counter[str]()
    unique = []
    for name in names:
        unique.append(f"{name}[{number[name]}]" if count[name] > 1 else name)
        number[name] += 1
    return unique
