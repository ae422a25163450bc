"""Needs that measures of several families share: parameter gradients and the RMS of states."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..capture.recorder import Edge, Recorder
from ..linalg.norms import norm
from .objective import functional, trainable_parameters
from .run import Need, Run, Stage

__all__ = ["STATE_RMS", "SquareSums", "PARAMETER_GRADIENTS"]


def _parameter_gradients(run: Run) -> dict[str, Tensor | None]:
    capture = run.capture
    parameters = trainable_parameters(capture.model)
    if not parameters:
        return {}
    roots, weights = functional(capture.output, capture.loss, run.seed)
    found = torch.autograd.grad(roots, list(parameters.values()), weights, allow_unused=True)
    return dict(zip(parameters, found))


PARAMETER_GRADIENTS = Need("parameter gradients", _parameter_gradients, Stage.BACKWARD)
"""By name; None where no path leads from the loss to the parameter. Frozen parameters are absent."""


@dataclass(slots=True, eq=False)
class SquareSums:
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
def _watching(recorder: Recorder) -> Iterator[SquareSums]:
    found = SquareSums()
    recorder.observers.append(found.look)
    yield found


STATE_RMS: Need[SquareSums] = Need("magnitudes", lambda run: run.capture.watched[_watching], instruments=(_watching,))
