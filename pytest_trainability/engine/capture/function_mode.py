"""Instruments that see the functions of PyTorch that a model calls, and the names of what they have seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

from .recorder import Call, Recorder

__all__ = ["FunctionObserver", "numbered"]


class FunctionObserver(TorchFunctionMode):
    """Sees the functions that a model calls, for as long as it is entered; an instrument, which yields itself."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        # Not the recorder itself: the record holds this watch, and would hold itself.
        self.running = recorder.running

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.call(func, args, kwargs or {})

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function that the model calls; what watches looks on."""
        raise NotImplementedError

    @property
    def caller(self) -> Call | None:
        """The innermost call of a module that is running; None where there is none, as in a loss."""
        return self.running[-1] if self.running else None

    @property
    def path(self) -> str:
        """Name of what calls: a module's, the class of the model itself, or ``"loss"``."""
        call = self.caller
        return (call.path or type(call.module).__name__) if call is not None else "loss"


def numbered(names: Sequence[str]) -> list[str]:
    """Tell those apart that occur more than once: ``attn[0]``, ``attn[1]`` and so on."""
    count, number = Counter(names), Counter[str]()
    found = []
    for name in names:
        found.append(f"{name}[{number[name]}]" if count[name] > 1 else name)
        number[name] += 1
    return found
