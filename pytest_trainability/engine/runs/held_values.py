"""Values that leave the autograd graph, held at what they were in the first of several runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from ..torch_internals import (
    function_transforms_are_active,
    inputs_of_forward,
    intercepted_custom_functions,
    without_dispatch,
    without_torch_functions,
)
from ..trees import carries_gradient, is_float, tensors_in

__all__ = ["HeldValues"]

# Note [What a gradient is the derivative of]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# Autograd differentiates a function in which everything that leaves the graph is a constant: what `detach` returns, what is
# computed under `torch.no_grad()`, indices of a maximum, masks of comparisons, numbers of `item()`. A finite difference of the
# model itself would include these paths. It would differ from the gradient by design wherever a model stops gradients, and a
# straight-through estimator, `z + (q - z).detach()`, would look like a wrong backward pass. In repeated runs, every value that
# a function computes from a tensor with a gradient, and that carries none itself, is therefore replaced by that of the first run.
# What a custom autograd function computes inside is its forward pass and is not held.

_NUMBERS = {"item", "tolist", "__bool__", "__float__", "__int__", "__index__", "equal", "allclose", "is_nonzero"}
"""Names of functions that turn tensors into Python's numbers."""
_OPENED: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.nn.functional.gumbel_softmax: without_dispatch(torch.nn.functional.gumbel_softmax)
}
"""Functions of PyTorch that detach tensors inside, and copies whose operations are visible."""
_CONSTANT = 0.9
"""Share of equal results from which on a function counts as piecewise constant. Half of those of a ReLU are equal."""
_FAKE_QUANTIZATION = "fake_quantize"


class HeldValues(TorchFunctionMode):
    """Records the values that leave the autograd graph in a first run, and repeats them in later runs.

    See Note [What a gradient is the derivative of].
    """

    def __init__(self) -> None:
        super().__init__()
        self.differs = False
        """Whether a later run called other functions than the first one."""
        self.quantizes = False
        """Whether, in a later run, a custom function returned what it did for other arguments: it is piecewise constant."""
        self._values: list[Any] = []
        self._custom: list[tuple[list[Tensor], list[Tensor]]] = []
        self._next: list[int] | None = None
        """Number of the next value and of the next call of a custom function; None in the first run."""
        self._inside = 0

    @contextmanager
    def first_run(self) -> Iterator[None]:
        """Record."""
        with intercepted_custom_functions(self._forward, self._setup_context), self:
            yield

    @contextmanager
    def later_run(self) -> Iterator[None]:
        """Repeat. ``differs`` and ``quantizes`` describe this run afterwards."""
        self._next, self.differs, self.quantizes = [0, 0], False, False
        with intercepted_custom_functions(self._forward, self._setup_context), self:
            yield
        self.differs = self.differs or self._next[0] != len(self._values)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._inside or function_transforms_are_active():
            return func(*args, **kwargs)
        if func in _OPENED:
            with self:
                return _OPENED[func](*args, **kwargs)
        arguments = list(tensors_in((args, kwargs)))
        carried = any(map(carries_gradient, arguments))
        result = func(*args, **kwargs)
        if not carried:
            return result
        name = getattr(func, "__name__", "")
        if _FAKE_QUANTIZATION in name:
            self._compare(arguments, result)
        return self._held(name, arguments, result)

    def _held(self, name: str, arguments: list[Tensor], result: Any) -> Any:
        if isinstance(result, Tensor):
            return result if carries_gradient(result) else self._held_tensor(arguments, result)
        if isinstance(result, (tuple, list)) and any(isinstance(item, Tensor) for item in result):
            items = [self._held(name, arguments, item) for item in result]
            return type(result)(items) if not hasattr(result, "_fields") else type(result)(*items)
        if name in _NUMBERS:
            known, value = self._known(result)
            return value if known else result
        return result

    def _held_tensor(self, arguments: list[Tensor], result: Tensor) -> Tensor:
        known, value = self._known(result)
        if not known or result.layout is not torch.strided or torch.equal(result, value):
            return result
        if any(result is argument for argument in arguments):
            with torch.no_grad():
                result.copy_(value)
            return result
        held: Tensor = value.clone()
        return held

    def _known(self, result: Any) -> tuple[bool, Any]:
        """Return whether the value is known from the first run, and this value."""
        if self._next is None:
            self._values.append(result.detach().clone() if isinstance(result, Tensor) else result)
            return False, None
        index, self._next[0] = self._next[0], self._next[0] + 1
        value = self._values[index] if index < len(self._values) else None
        if not _alike(value, result):
            self.differs = True
            return False, None
        return True, value

    # Custom functions ---------------------------------------------------------------------------------------------
    def _forward(self, cls: type[Function], forward: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        with without_torch_functions():
            # The function may change its arguments in place.
            inputs = [] if self._inside else [t.detach().clone() for t in tensors_in(inputs_of_forward(cls, args))]
        self._inside += 1
        try:
            result = forward(*args)
        finally:
            self._inside -= 1
        if not self._inside:
            self._compare(inputs, result)
        return result

    def _setup_context(self, setup_context: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._inside += 1
        try:
            setup_context(*args)
        finally:
            self._inside -= 1

    def _compare(self, arguments: list[Tensor], result: Any) -> None:
        with without_torch_functions(), torch.no_grad():
            read, made = ([t.detach().clone() for t in ts if is_float(t)] for ts in (arguments, tensors_in(result)))
            if self._next is None:
                self._custom.append((read, made))
                return
            index, self._next[1] = self._next[1], self._next[1] + 1
            if index >= len(self._custom):
                self.differs = True
                return
            before = self._custom[index]
            is_constant = _share_equal(before[1], made) >= _CONSTANT and _share_equal(before[0], read) <= 0.5
            self.quantizes = self.quantizes or is_constant


def _alike(value: Any, result: Any) -> bool:
    if isinstance(result, Tensor):
        return isinstance(value, Tensor) and (value.shape, value.dtype) == (result.shape, result.dtype)
    return type(value) is type(result)


def _share_equal(before: list[Tensor], after: list[Tensor]) -> float:
    """Return the share of entries that are equal; 0 for tensors of other shapes, and 1 without any."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return 0.0
    number = sum(t.numel() for t in before)
    return sum(int((a == b).sum()) for a, b in zip(before, after)) / number if number else 1.0
