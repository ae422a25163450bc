"""Whether a function is an activation, and how steep it is: both by its derivative, whatever it is called."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ...engine.isolation import preserved_generators
from ...engine.trees import map_tensors

__all__ = ["Application", "generator_states", "steepest_slope"]


REACH = 20.0
"""How far from zero an activation is tried."""
POINTS = 513
"""At how many values; they stand 0.014 apart at zero, which is one of them.

The largest slope of what bends within a distance of one is found to 1e-4 around there."""
GROWTH = 1.5
"""By what factor the largest slope may be larger beyond half the reach than within it; that of ``x²`` doubles."""
BEND = 0.01
"""By what part of its maximum a slope must change with the value. That of a scale, a mask or dropout does not."""


@dataclass(frozen=True, slots=True, eq=False)
class Application:
    """A function that was applied to one tensor that carries a gradient, all else that it is given held fixed."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    tensor: Tensor
    """The one among the arguments."""
    values: Tensor
    """What it held then; it may have been overwritten."""
    generators: Sequence[tuple[Generator, Tensor]]
    """Random generators and the states that they were in."""

    def pull_back(self, values: Tensor, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """Apply the function to other values, with the same random numbers, and ``Jᵀ`` to each of the cotangents."""
        leaf = values.detach().requires_grad_()
        with self._as_it_was():
            # A copy, for the function may work in place.
            entering = leaf.clone()
            args, kwargs = map_tensors(
                (self.args, dict(self.kwargs)), lambda t: entering if t is self.tensor else _constant(t)
            )
            output = self.function(*args, **kwargs)
            return [
                torch.autograd.grad(output, leaf, cotangent.to(output.dtype), retain_graph=True)[0]
                for cotangent in cotangents
            ]

    def slope(self) -> Tensor:
        """Return ``φ'`` at the values that the function was applied to, of their shape."""
        return self.pull_back(self.values, [torch.ones_like(self.values)])[0]

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(preserved_generators())
            for generator, state in self.generators:
                generator.set_state(state)
            # What counts calls of functions or keeps tensors for the backward pass, a checkpoint, must see none of this.
            stack.enter_context(torch._C.DisableTorchFunction())
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda t: t))
            stack.enter_context(torch.enable_grad())
            yield


def _constant(tensor: Tensor) -> Tensor:
    """Return a parameter's values, and a copy of any other tensor: a running average is changed by the call."""
    return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


def generator_states(device: torch.device) -> list[tuple[Generator, Tensor]]:
    """Return the generators that a function may draw from on a device, and their states."""
    found = [torch.default_generator]
    if device.type == "cuda":
        found.append(torch.cuda.default_generators[device.index or 0])
    return [(generator, generator.get_state()) for generator in found]


class _MixesEntriesError(Exception):
    """A function does not act on each entry alone."""


def steepest_slope(application: Application) -> float | None:
    """Return ``max |φ'|`` where the function is an activation, None where it is not.

    An activation acts on each entry alone, ``J = diag(φ')``: ``Jᵀ s = s ⊙ Jᵀ 1`` for random signs s, to the last bit, for
    nothing is rounded when a sign changes. Its slope depends on the value, as that of a scale, a mask or dropout does not, and is
    bounded, as that of a square, a root, a logarithm or an exponential, which norms and softmax are written with, is not.
    """
    for like in _samples(application.values):
        try:
            found = list(_tried(application, like))
        except _MixesEntriesError:
            return None
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever it refuses to be tried with
            continue
        return _steepest(*map(torch.stack, zip(*found)))
    return None


def _samples(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a few rows of a tensor, then all: some functions are given something else that is as long."""
    if tensor.dim() > 0 and len(tensor) > 2:
        rows = max(2, -(-2 * POINTS // tensor[0].numel()))
        if rows < len(tensor):
            yield tensor[:rows]
    yield tensor


def _steepest(slopes: Tensor, values: Tensor) -> float | None:
    """Return the largest of the slopes at the values tried, ``(attempts, *shape)``; None where they are no activation's."""
    sizes = slopes.abs()
    largest = float(sizes.max())
    if not bool(slopes.isfinite().all()):
        return None
    bends = bool((slopes.amax(dim=0) - slopes.amin(dim=0) > BEND * largest).any())
    is_far = values.abs() > REACH / 2
    grows = float(sizes[is_far].max()) > GROWTH * float(sizes[~is_far].max())
    return largest if bends and not grows else None


def _tried(application: Application, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Try the function on a tensor that takes all values of the grid, if need be in several attempts.

    Yields:
        Slopes and the values that they were found at, in float64 on the CPU; another value at each entry each time.

    Raises:
        _MixesEntriesError: The function does not act on each entry alone.
    """
    size = like.numel()
    grid = (torch.linspace(-1, 1, POINTS, dtype=torch.float64, device="cpu") * math.asinh(REACH)).sinh()
    generator = torch.Generator("cpu").manual_seed(0)
    for attempt in range(max(2, -(-POINTS // size))):
        # 197 has no factor in common with the number of points: neighbors get values far apart, and none is left out.
        places = (torch.arange(size, device="cpu") + attempt * min(size, POINTS // 2)) * 197 % POINTS
        values = grid[places].reshape(like.shape)
        signs = torch.randint(2, like.shape, generator=generator, device="cpu") * 2 - 1
        signs = signs.to(device=like.device, dtype=like.dtype)
        entering = values.to(device=like.device, dtype=like.dtype)
        slope, signed = application.pull_back(entering, [torch.ones_like(signs), signs])
        if not bool(((signed == signs * slope) | slope.isnan()).all()):
            raise _MixesEntriesError
        yield slope.cpu().double(), values
