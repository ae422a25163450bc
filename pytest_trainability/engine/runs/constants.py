"""An instrument that notes the numbers that a model's code adds to tensors. Autograd nodes do not keep them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from ..capture.function_mode import FunctionObserver
from ..capture.recorder import Recorder

__all__ = ["SIGNS", "AddedConstant", "ConstantObserver"]

SIGNS = {"add": 1, "radd": 1, "iadd": 1, "sub": -1, "isub": -1, "subtract": -1}
"""Functions that add or subtract their second argument, by its sign."""


@dataclass(frozen=True, slots=True)
class AddedConstant:
    """A number that the code of a module adds to a tensor."""

    path: str
    """Name of the module; empty for the model itself."""
    number: float


class ConstantObserver(FunctionObserver):
    """Notes the numbers that are added, by the autograd node of the sum."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.found: dict[Node, AddedConstant] = {}

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, and note the number that it adds, if any."""
        result = func(*args, **kwargs)
        sign = SIGNS.get(getattr(func, "__name__", "").strip("_"))
        if sign and len(args) == 2 and not kwargs and isinstance(result, Tensor) and result.grad_fn is not None:
            numbers = [a for a in args if isinstance(a, (int, float))]
            if len(numbers) == 1:
                path = "" if self.caller is None else self.caller.path
                self.found[result.grad_fn] = AddedConstant(path, sign * float(numbers[0]))
        return result
