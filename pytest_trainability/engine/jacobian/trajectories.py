"""Trajectories: how the entries of a state are divided into samples, and states as vectors of real numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..capture.chain import Chain
from ..linalg.norms import as_complex, as_real, norm
from .vjp import Cotangents

__all__ = ["Division", "Trajectories", "factorized_on", "possible_divisions"]


@dataclass(frozen=True, slots=True)
class Division:
    """How the entries of a state are divided into trajectories.

    Where samples do not interact, each sample has its own trajectory. Where they interact, the batch has one joint trajectory.
    """

    count: int
    """Number of trajectories: the number of samples, or 1 for a joint one."""
    axis: int | None = 0
    """Dimension along which each tensor of a state holds the trajectories. Trajectory b is entry b of this dimension, or
    entries b·m … b·m + m - 1 where the dimension is m times as long as there are trajectories. None: in each tensor, the first
    dimension of length ``count``, or 0 where there is none. Along time, a state can hold tensors (samples, units) and (layers,
    samples, units)."""

    def _axis(self, shape: Sequence[int]) -> int:
        if self.axis is not None:
            return self.axis
        return shape.index(self.count) if self.count in shape else 0

    def divides(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape can be divided into trajectories."""
        axis = self._axis(shape)
        return self.count == 1 or (len(shape) > axis and shape[axis] % self.count == 0)

    @property
    def name(self) -> str:
        """``"per sample"`` or ``"joint"``."""
        return "per sample" if self.count > 1 else "joint"

    def rows(self, columns: Tensor) -> Tensor:
        """Reshape k cotangents of one tensor, ``(k, *shape)``, to ``(trajectories, k, n)``."""
        if self.count == 1:
            return columns.reshape(1, len(columns), -1)
        axis = self._axis(columns.shape[1:])
        return columns.movedim(axis + 1, 1).reshape(len(columns), self.count, -1).transpose(0, 1)

    def restore(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Reshape ``(trajectories, k, n)`` to ``(k, *shape)``: the inverse of :meth:`rows`."""
        number = rows.shape[1]
        if self.count == 1:
            return rows.reshape(number, *shape)
        axis = self._axis(shape)
        moved = [number, shape[axis], *(size for i, size in enumerate(shape) if i != axis)]
        return rows.transpose(0, 1).reshape(moved).movedim(1, axis + 1)

    def multiply(self, column: Tensor, factors: Tensor) -> Tensor:
        """Multiply each trajectory's part of one cotangent, ``shape``, by its factor, ``(trajectories,)``."""
        # A factor may exceed the range of half precision although the product does not.
        wide = column.to(torch.promote_types(column.dtype, torch.float32))
        if self.count == 1:
            return (wide * factors[0].to(wide.dtype)).to(column.dtype)
        axis = self._axis(column.shape)
        length = column.shape[axis] // self.count
        expanded = factors.to(device=column.device, dtype=wide.dtype).repeat_interleave(length)
        return (wide * expanded.reshape([-1 if i == axis else 1 for i in range(column.dim())])).to(column.dtype)

    def norms(self, state: Sequence[Tensor | None]) -> Tensor:
        """Return the norm of each trajectory's part of one cotangent of a state, ``(trajectories,)`` in float64 on the CPU."""
        total = torch.zeros(self.count, dtype=torch.float64, device="cpu")
        for column in state:
            if column is not None:
                total += norm(self.rows(column.unsqueeze(0))[:, 0], dim=1).square()
        return total.sqrt()


def possible_divisions(shapes: Sequence[Sequence[int]], batch: int) -> Iterator[Division]:
    """Yield the divisions into ``batch`` samples that tensors of these shapes allow: along the first dimension, or the second."""
    if all(len(shape) > 0 and shape[0] % batch == 0 for shape in shapes):
        yield Division(batch, 0)
    if all(len(shape) > 1 and shape[1] == batch for shape in shapes):
        yield Division(batch, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Trajectories:
    """A chain whose states are divided into trajectories: what products with segments of the chain are computed on.

    A cotangent of a state has two forms. As *columns* it is a list of tensors ``(k, *shape)``, one for each edge of the state,
    which autograd takes and returns. As *rows* it is one tensor ``(trajectories, k, n)`` of real numbers, which is factorized.
    """

    chain: Chain
    division: Division

    @property
    def count(self) -> int:
        """Number of trajectories."""
        return self.division.count

    def dimensions(self, index: int) -> int:
        """Return the number of real numbers in one trajectory's part of state ``index``, 0 … L."""
        shapes = self.chain.shapes(index)
        return sum(math.prod(shape) * (1 + dtype.is_complex) for shape, dtype in shapes) // self.count

    def acting(self) -> Tensor:
        """Return which steps act on which trajectories, ``(L, trajectories)`` booleans.

        All steps act on all trajectories, except where the sequences of a packed batch end early.
        """
        chain = self.chain
        if not chain.active or chain.shapes(0)[0][0][0] != self.count:
            return torch.ones(len(chain), self.count, dtype=torch.bool, device="cpu")
        active = torch.tensor([self.count if number is None else number for number in chain.active], device="cpu")
        return torch.arange(self.count, device="cpu") < active[:, None]

    def as_rows(
        self,
        index: int,
        columns: Sequence[Tensor | None],
        *,
        count: int | None = None,
        dtype: torch.dtype | None = None,
        least: int = 0,
    ) -> Tensor:
        """Write k cotangents of state ``index`` as vectors of real numbers, ``(trajectories, k, n)``.

        A complex number becomes two real ones, because a backward pass is not complex-linear where a real tensor comes before
        or after.

        Args:
            index: Number of the state, 0 … L.
            columns: For each of its edges a tensor ``(k, *shape)``, or None for zero.
            count: The number k; needed only where all columns are None.
            dtype: Type of the result; by default float64 where the state holds double precision, else float32.
            least: Smallest n of the result; vectors of fewer dimensions are padded with zeros.

        Returns:
            Real vectors of shape ``(trajectories, k, n)``.
        """
        shapes = self.chain.shapes(index)
        sizes = [size // self.count for size in map(math.prod, _real_shapes(shapes))]
        example = next((column for column in columns if column is not None), None)
        count = len(example) if count is None and example is not None else count or 0
        device = factorized_on(self.chain.devices(index)[0] if example is None else example.device)
        if dtype is None:
            is_double = any(own in {torch.float64, torch.complex128} for _, own in shapes)
            dtype = torch.float64 if is_double else torch.float32
        rows = torch.zeros((self.count, count, max(sum(sizes), least)), dtype=dtype, device=device)
        offset = 0
        for column, size in zip(columns, sizes):
            if column is not None:
                rows[:, :, offset : offset + size] = self.division.rows(as_real(column))
            offset += size
        return rows

    def as_columns(self, index: int, rows: Tensor) -> Cotangents:
        """Write vectors ``(trajectories, k, n)`` as cotangents of state ``index``: the inverse of :meth:`as_rows`."""
        shapes = self.chain.shapes(index)
        result: Cotangents = []
        offset = 0
        for (_, dtype), shape, device in zip(shapes, _real_shapes(shapes), self.chain.devices(index)):
            size = math.prod(shape) // self.count
            restored = self.division.restore(rows[:, :, offset : offset + size], shape)
            restored = as_complex(restored) if dtype.is_complex else restored.contiguous()
            result.append(restored.to(device=device, dtype=dtype))
            offset += size
        return result


def factorized_on(device: torch.device) -> torch.device:
    """Return the device on which vectors from ``device`` are factorized: the CPU where it has no such operators."""
    return device if device.type in {"cpu", "cuda"} else torch.device("cpu")


def _real_shapes(shapes: Sequence[tuple[torch.Size, torch.dtype]]) -> list[torch.Size]:
    return [torch.Size((*shape, 2)) if dtype.is_complex else shape for shape, dtype in shapes]
