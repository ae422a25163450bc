"""Needs that no family of measures owns.

Parameter gradients, the RMS of states, and the operations and constants that baselines record.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..capture.operations import operations_by_step
from ..capture.recorder import Edge, Recorder
from ..capture.settings import SettingsObserver
from ..linalg.norms import norm
from .objective import functional, trainable_parameters
from .run import Need, Run, Stage

__all__ = ["OPERATIONS", "PARAMETER_GRADIENTS", "SETTINGS", "STATE_RMS", "SquareSums", "grows_by"]


def _parameter_gradients(run: Run) -> dict[str, Tensor | None]:
    capture = run.capture
    parameters = trainable_parameters(capture.model)
    if not parameters:
        return {}
    roots, weights = functional(capture.output, capture.loss, run.seed)
    found = torch.autograd.grad(roots, list(parameters.values()), weights, allow_unused=True)
    return dict(zip(parameters, found))


PARAMETER_GRADIENTS = Need("parameter gradients", _parameter_gradients, Stage.BACKWARD)
"""Gradients by the name of the trainable parameter; None for a parameter that the loss does not depend on.

Without a loss they are gradients of a random functional of the output.
"""


@dataclass(slots=True, eq=False)
class SquareSums:
    """Sums of squares of the tensors with a gradient that modules took or returned."""

    square_sums: dict[Edge, tuple[Tensor, int]] = field(default_factory=dict)
    """Sum of squares and number of elements, by the edge of the autograd graph that stands for the tensor."""

    def observe(self, edge: Edge, tensor: Tensor) -> None:
        """Add one tensor."""
        self.square_sums[edge] = norm(tensor).square(), tensor.numel()

    def root_mean_square(self, state: Iterable[Edge]) -> float:
        """Return the RMS over all elements of a state, of those tensors that modules took or returned; NaN without any."""
        seen = [self.square_sums[edge] for edge in state if edge in self.square_sums]
        count = sum(size for _, size in seen)
        return math.sqrt(sum(float(total) for total, _ in seen) / count) if count else math.nan


@contextmanager
def _square_sums(recorder: Recorder) -> Iterator[SquareSums]:
    found = SquareSums()
    recorder.observers.append(found.observe)
    yield found


STATE_RMS: Need[SquareSums] = Need(
    "state RMS", lambda run: run.capture.watched[_square_sums], instruments=(_square_sums,)
)
"""Sums of squares that give the RMS of each state."""

OPERATIONS: Need[dict[str, tuple[str, ...]]] = Need(
    "operations of the steps", lambda run: operations_by_step(run.capture, run.graph, run.chain)
)
"""Names of the operations that the signal passes, by step. No measure reads them, but baselines record them."""

SETTINGS: Need[dict[str, tuple[str, ...]]] = Need(
    "constants in the code of modules",
    lambda run: {name: tuple(calls) for name, calls in run.capture.watched[SettingsObserver].found.items()},
    instruments=(SettingsObserver,),
)
"""Calls that are given constants, by module. No measure reads them, but baselines record them."""


def grows_by(run: Run) -> float:
    """Return the logarithm of the RMS of the last state over that of the first one; NaN if one is unknown or zero.

    Args:
        run: A run with the need :data:`STATE_RMS`.
    """
    first, *_, last = run.chain.cut.states
    sizes = [run[STATE_RMS].root_mean_square(state) for state in (first, last)]
    return math.log(sizes[1] / sizes[0]) if all(size > 0 for size in sizes) else math.nan
