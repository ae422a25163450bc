"""Frames: how the entries of a state are grouped into trajectories, and states as vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..capture.chain import Chain
from ..linalg.norms import as_real, norm
from .vjp import Cotangents

__all__ = ["Frame", "acting", "as_columns", "as_rows", "dimensions", "divisions", "factorized_on"]


@dataclass(frozen=True, slots=True)
class Frame:
    """How the entries of a state are grouped into trajectories.

    ``samples`` is the number of trajectories: one per sample where samples do not interact, else a joint one. In each
    tensor of a state, sample b is row b of dimension ``axis`` (the rows b·m … b·m + m - 1 where the dimension is m
    times as long).
    """

    samples: int
    axis: int | None = 0
    """None where each tensor has samples along its first dimension that is as long as there are samples: the second one, of
    layers and samples, beside the first one, of samples."""

    def _axis(self, shape: Sequence[int]) -> int:
        return shape.index(self.samples) if self.axis is None else self.axis

    @property
    def name(self) -> str:
        """``"per sample"`` or ``"joint"``."""
        return "per sample" if self.samples > 1 else "joint"

    def rows(self, columns: Tensor) -> Tensor:
        """Reshape cotangent tensors ``(k, *shape)`` to ``(samples, k, n)``."""
        if self.samples == 1:
            return columns.reshape(1, len(columns), -1)
        axis = self._axis(columns.shape[1:])
        return columns.movedim(axis + 1, 1).reshape(len(columns), self.samples, -1).transpose(0, 1)

    def restore(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Undo :meth:`rows`."""
        count = rows.shape[1]
        if self.samples == 1:
            return rows.reshape(count, *shape)
        axis = self._axis(shape)
        moved = [count, shape[axis], *(size for i, size in enumerate(shape) if i != axis)]
        return rows.transpose(0, 1).reshape(moved).movedim(1, axis + 1)

    def scale(self, column: Tensor, factors: Tensor) -> Tensor:
        """Multiply each trajectory of one cotangent tensor by its own factor ``(samples,)``."""
        if self.samples == 1:
            return column * factors[0].to(column.dtype)
        axis = self._axis(column.shape)
        length = column.shape[axis] // self.samples
        expanded = factors.to(device=column.device, dtype=column.dtype).repeat_interleave(length)
        return column * expanded.reshape([-1 if i == axis else 1 for i in range(column.dim())])

    def norms(self, state: Sequence[Tensor | None]) -> Tensor:
        """Return the norm of each trajectory's part of one cotangent, ``(samples,)`` in float64 on the CPU."""
        total = torch.zeros(self.samples, dtype=torch.float64, device="cpu")
        for column in state:
            if column is not None:
                total += norm(self.rows(column.unsqueeze(0))[:, 0], dim=1).square()
        return total.sqrt()


def divisions(shapes: Sequence[Sequence[int]], batch: int) -> Iterator[Frame]:
    """Yield the ways in which tensors may hold the samples of a batch: all along the first dimension, or all along the second."""
    if all(len(shape) > 0 and shape[0] % batch == 0 for shape in shapes):
        yield Frame(batch, 0)
    if all(len(shape) > 1 and shape[1] == batch for shape in shapes):
        yield Frame(batch, 1)


# States as vectors -----------------------------------------------------------------------------------------------
def dimensions(chain: Chain, frame: Frame, index: int) -> int:
    """Return how many real numbers one trajectory's part of state ``index`` has."""
    return sum(math.prod(shape) * (1 + own.is_complex) for shape, own in chain.shapes(index)) // frame.samples


def acting(chain: Chain, frame: Frame) -> Tensor:
    """Return which steps act on which trajectories, ``(L, samples)``: all, but where packed sequences end early."""
    if not chain.active or chain.shapes(0)[0][0][0] != frame.samples:
        return torch.ones(len(chain), frame.samples, dtype=torch.bool, device="cpu")
    active = torch.tensor([frame.samples if number is None else number for number in chain.active], device="cpu")
    return torch.arange(frame.samples, device="cpu") < active[:, None]


def as_rows(
    chain: Chain,
    frame: Frame,
    index: int,
    columns: Sequence[Tensor | None],
    *,
    count: int | None = None,
    dtype: torch.dtype | None = None,
    least: int = 0,
) -> Tensor:
    """Write k cotangents of state ``index`` as vectors of real numbers, ``(samples, k, n)``.

    A complex number is two real ones: a backward pass is no complex-linear map where a real tensor comes before or after.

    Args:
        chain: The chain.
        frame: Its trajectories.
        index: Which state, 0 … L.
        columns: For each of its edges a tensor ``(k, *shape)``, or None for zero.
        count: The number k; left out where at least one tensor is there.
        dtype: Of the result; float64 where the state has it, else float32, unless given.
        least: Padded with zeros to this n, if there are fewer dimensions.
    """
    shapes = chain.shapes(index)
    sizes = [size // frame.samples for size in map(math.prod, _real(shapes))]
    example = next((column for column in columns if column is not None), None)
    count = len(example) if count is None and example is not None else count or 0
    place = factorized_on(chain.devices(index)[0] if example is None else example.device)
    if dtype is None:
        wide = any(own in {torch.float64, torch.complex128} for _, own in shapes)
        dtype = torch.float64 if wide else torch.float32
    rows = torch.zeros((frame.samples, count, max(sum(sizes), least)), dtype=dtype, device=place)
    offset = 0
    for column, size in zip(columns, sizes):
        if column is not None:
            rows[:, :, offset : offset + size] = frame.rows(as_real(column))
        offset += size
    return rows


def factorized_on(place: torch.device) -> torch.device:
    """Return where vectors from a device are factorized: there, or on the CPU where it has no such operators."""
    return place if place.type in {"cpu", "cuda"} else torch.device("cpu")


def as_columns(chain: Chain, frame: Frame, index: int, rows: Tensor) -> Cotangents:
    """Undo :func:`as_rows`."""
    shapes = chain.shapes(index)
    result: Cotangents = []
    offset = 0
    for (_, own), shape, place in zip(shapes, _real(shapes), chain.devices(index)):
        size = math.prod(shape) // frame.samples
        restored = frame.restore(rows[:, :, offset : offset + size], shape).contiguous()
        if own.is_complex:
            restored = torch.view_as_complex(restored)
        result.append(restored.to(device=place, dtype=own))
        offset += size
    return result


def _real(shapes: Sequence[tuple[torch.Size, torch.dtype]]) -> list[torch.Size]:
    return [torch.Size((*shape, 2)) if own.is_complex else shape for shape, own in shapes]
