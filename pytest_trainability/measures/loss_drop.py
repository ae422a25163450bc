"""How far the loss falls in a few optimizer steps."""

from __future__ import annotations

import math

from ..engine.run import Run
from ..engine.updates import LOSSES
from .measure import Measure


def loss_drop(run: Run) -> float:
    """Return ``(loss_0 - loss_10) / |loss_0|``: by which part the loss falls in ten optimizer steps on the run's batch.

    The optimizer is what ``optimizer=`` makes; without it AdamW with a learning rate of 1e-3. All steps see the same batch and
    the same dropout masks, so that it is one function that is to fall.

    It misleads as a forecast: ten steps on one batch say that the network can fit it, not that it generalizes, and a large drop
    may be the head alone. A loss that can be negative or starts near zero has no natural unit: look at the sign.

    Returns:
        A pure number: 1 where the loss falls to zero, 0 where it stays, negative where it grows. NaN where the loss or a
        parameter is not finite, or the first loss is zero.

    Raises:
        InapplicableError: There is no loss, or nothing to train.
        UsageError: ``optimizer=`` makes no optimizer of the parameters, or it cannot step on these gradients.
        ModelError: The model does not run after a step.

    Source: Karpathy, A Recipe for Training Neural Networks (2019), "overfit one batch"; ten steps and the unit are our choice.
    """
    before, after = run[LOSSES]
    return (before - after) / abs(before) if before and math.isfinite(before) and math.isfinite(after) else math.nan


MEASURE = Measure("loss_drop", "scalar", "", "linear", frozenset({LOSSES}), loss_drop, tolerance=0.1)
