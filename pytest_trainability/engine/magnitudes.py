"""How large the tensors are that modules read and write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from .capture import Edge, Recorder
from .run import Need
from .trees import norm

__all__ = ["MAGNITUDES", "Magnitudes"]


@dataclass(slots=True, eq=False)
class Magnitudes:
    """Sum of squares and number of elements of every grad-carrying tensor that a module read or wrote."""

    square_sums: dict[Edge, tuple[Tensor, int]] = field(default_factory=dict)

    def look(self, edge: Edge, tensor: Tensor) -> None:
        """Take in one tensor."""
        self.square_sums[edge] = norm(tensor).square(), tensor.numel()

    def root_mean_square(self, state: Iterable[Edge]) -> float:
        """Return the RMS over those tensors of a state that a module read or wrote, NaN where there is none."""
        seen = [self.square_sums[edge] for edge in state if edge in self.square_sums]
        count = sum(size for _, size in seen)
        return math.sqrt(sum(float(total) for total, _ in seen) / count) if count else math.nan


@contextmanager
def _watching(recorder: Recorder) -> Iterator[Magnitudes]:
    found = Magnitudes()
    recorder.observers.append(found.look)
    yield found


MAGNITUDES: Need[Magnitudes] = Need("magnitudes", lambda run: run.record.watched[_watching], instruments=(_watching,))
