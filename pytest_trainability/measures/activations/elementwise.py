"""Recognition of activation functions by their derivative, and their largest slope."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import (
    BuiltinFunctionType,
    EllipsisType,
    FunctionType,
    MethodDescriptorType,
    NoneType,
    WrapperDescriptorType,
)
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ...engine.isolation import preserved_generators
from ...engine.torch_internals import without_torch_functions
from ...engine.trees import map_tensors, tensors_in

__all__ = ["Application", "generator_states", "steepest_slope"]


REACH = 20.0
"""Largest absolute value at which a function is evaluated."""
POINTS = 513
"""Number of values at which a function is evaluated. Near zero, which is one of them, they are 0.014 apart.

This finds the largest slope of a function that bends on a scale of one near zero with a relative error of 1e-4."""
GROWTH = 1.5
"""Largest ratio of the maximal slope beyond half the reach and the one within. For ``x²`` it is 2."""
BEND = 0.01
"""Smallest change of the slope with the value, relative to its maximum. The slope of a scale, a mask or dropout is constant."""


@dataclass(frozen=True, slots=True, eq=False)
class Application:
    """A call of a function, seen as a function of the one argument that carries a gradient. All other arguments are constants."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    tensor: Tensor
    """The argument that carries a gradient."""
    values: Tensor
    """Values of this argument at the call. The argument itself may have been overwritten since."""
    generators: Sequence[tuple[Generator, Tensor]]
    """Random generators and their states at the call."""

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All tensors among the arguments."""
        return tensors_in((self.args, dict(self.kwargs)))

    def pull_back(self, values: Tensor, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """Return ``Jᵀ u`` at other values for each cotangent u. The function draws the random numbers of the call again."""
        leaf = values.detach().requires_grad_()
        with self._restored():
            # The function may work in place, so that it gets a copy.
            argument = leaf.clone()
            args, kwargs = map_tensors(
                (self.args, dict(self.kwargs)), lambda t: argument if t is self.tensor else _constant(t)
            )
            output = self.function(*args, **kwargs)
            return [
                torch.autograd.grad(output, leaf, cotangent.to(output.dtype), retain_graph=True)[0]
                for cotangent in cotangents
            ]

    def slope(self) -> Tensor:
        """Return ``φ'`` at the values of the call, in their shape."""
        return self.pull_back(self.values, [torch.ones_like(self.values)])[0]

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Restore the random states of the call inside the context, and hide all computations from modes and hooks."""
        with ExitStack() as stack:
            stack.enter_context(preserved_generators())
            for generator, state in self.generators:
                generator.set_state(state)
            # Modes that count calls, and checkpoints that keep tensors for the backward pass, must not see these calls.
            stack.enter_context(without_torch_functions())
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda t: t))
            stack.enter_context(torch.enable_grad())
            yield


def _constant(tensor: Tensor) -> Tensor:
    """Return a parameter's values, or a copy of any other tensor: the call may change a running average."""
    return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


def generator_states(device: torch.device) -> list[tuple[Generator, Tensor]]:
    """Return the generators from which a function on this device may draw, and their states."""
    found = [torch.default_generator]
    if device.type == "cuda":
        found.append(torch.cuda.default_generators[device.index or 0])
    return [(generator, generator.get_state()) for generator in found]


class _NotElementwiseError(Exception):
    """A function does not act elementwise."""


_Outline = Hashable
_KNOWN: dict[_Outline, float | None] = {}
"""Verdicts that hold for every call of a function of PyTorch with the same plain arguments and outlines of tensors."""


def steepest_slope(application: Application) -> float | None:
    """Return ``max |φ'|`` of an activation function; None if the function is not an activation.

    Functions of PyTorch are examined once for all layers, models and seeds. One that reads further tensors is examined again,
    as their values may decide, unless it has turned out not to act elementwise.
    """
    outline = _outline(application)
    if outline in _KNOWN:
        return _KNOWN[outline]
    depends_on_values = any(tensor is not application.tensor for tensor in application.tensors)
    try:
        largest = _examined(application)
    except _NotElementwiseError:
        largest, depends_on_values = None, False
    if outline is not None and not depends_on_values:
        _KNOWN[outline] = largest
    return largest


_PYTORCH = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType, FunctionType)
"""Types of PyTorch's functions and of the methods of tensors. Methods of modules and of functions of the user are others."""
_CONSTANTS = (
    bool,
    int,
    float,
    str,
    NoneType,
    EllipsisType,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)


def _outline(application: Application) -> _Outline | None:
    """Return what decides about a call of a function of PyTorch, apart from values of tensors; None for other functions."""
    function = application.function
    module = getattr(function, "__module__", None) or "torch"
    if not isinstance(function, _PYTORCH) or module.partition(".")[0] != "torch":
        return None
    device = application.tensor.device.type
    try:
        arguments = _outline_of((application.args, tuple(sorted(application.kwargs.items()))), application.tensor)
    except (TypeError, RuntimeError):  # a function as an argument, strides of a sparse tensor
        return None
    return function, arguments, torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)


def _outline_of(value: Any, signal: Tensor) -> _Outline:
    if isinstance(value, Tensor):
        return value is signal, tuple(value.shape), value.stride(), value.dtype, value.device
    if isinstance(value, (tuple, list)):
        return type(value), *(_outline_of(item, signal) for item in value)
    if isinstance(value, slice):
        return slice, value.start, value.stop, value.step
    if isinstance(value, _CONSTANTS):
        # True, 1 and 1.0 are equal.
        return type(value), value
    raise TypeError(type(value).__name__)


def _examined(application: Application) -> float | None:
    """Return ``max |φ'|`` of an activation function; None if the function is not an activation.

    An activation acts elementwise, ``J = diag(φ')``. For random signs s, ``Jᵀ s = s ⊙ Jᵀ 1`` then holds exactly, because a
    change of sign causes no rounding. The slope of an activation depends on the value, unlike that of a scale, a mask or
    dropout. It is bounded, unlike that of a square, a root, a logarithm or an exponential, of which norms and softmax consist.

    Raises:
        _NotElementwiseError: The function does not act elementwise, whatever the values of its tensors.
    """
    for like in _rows_to_try(application.values):
        try:
            found = list(_slopes_on_grid(application, like))
        except (_NotElementwiseError, torch.OutOfMemoryError):
            raise
        except Exception:  # of any type: the function does not accept such an argument
            continue
        return _largest_slope(*map(torch.stack, zip(*found)))
    return None


def _rows_to_try(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a few rows of a tensor, which are enough for most functions, then all: another argument may need as many rows."""
    if tensor.dim() > 0 and len(tensor) > 2:
        rows = max(2, -(-2 * POINTS // tensor[0].numel()))
        if rows < len(tensor):
            yield tensor[:rows]
    yield tensor


def _largest_slope(slopes: Tensor, values: Tensor) -> float | None:
    """Return the largest slope; None if the slopes, ``(attempts, *shape)`` at these values, are not those of an activation."""
    sizes = slopes.abs()
    largest = float(sizes.max())
    if not bool(slopes.isfinite().all()):
        return None
    bends = bool((slopes.amax(dim=0) - slopes.amin(dim=0) > BEND * largest).any())
    is_far = values.abs() > REACH / 2
    grows = float(sizes[is_far].max()) > GROWTH * float(sizes[~is_far].max())
    return largest if bends and not grows else None


def _slopes_on_grid(application: Application, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Evaluate the slope at all values of a grid, in several attempts if the tensor has fewer entries than the grid.

    Yields:
        Slopes and the values at which they were evaluated, in float64 on the CPU. Every entry has another value in each attempt.

    Raises:
        _NotElementwiseError: The function does not act elementwise.
    """
    size = like.numel()
    grid = (torch.linspace(-1, 1, POINTS, dtype=torch.float64, device="cpu") * math.asinh(REACH)).sinh()
    generator = torch.Generator("cpu").manual_seed(0)
    for attempt in range(max(2, -(-POINTS // size))):
        # 197 and the number of points are coprime: neighboring entries get distant values, and every value occurs.
        places = (torch.arange(size, device="cpu") + attempt * min(size, POINTS // 2)) * 197 % POINTS
        values = grid[places].reshape(like.shape)
        signs = torch.randint(2, like.shape, generator=generator, device="cpu") * 2 - 1
        signs = signs.to(device=like.device, dtype=like.dtype)
        argument = values.to(device=like.device, dtype=like.dtype)
        slope, signed = application.pull_back(argument, [torch.ones_like(signs), signs])
        if not bool(((signed == signs * slope) | slope.isnan()).all()):
            raise _NotElementwiseError
        yield slope.cpu().double(), values
