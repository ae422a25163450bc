"""The loss before the first step."""

from __future__ import annotations

from ..engine.guess import initial_loss as loss_of
from ..engine.run import Run
from .measure import Measure


def initial_loss(run: Run) -> float:
    """Return the loss of the run's batch, before any step is taken.

    A classifier that knows nothing costs ``ln(classes)``; ``excess_loss`` is what is above that. It misleads where the
    loss is no mean over samples: a sum grows with the batch.

    Returns:
        Loss units, as the loss is reduced.

    Raises:
        InapplicableError: There is no loss.

    Source: Karpathy, A Recipe for Training Neural Networks (2019), "verify loss @ init".
    """
    return float(loss_of(run))


MEASURE = Measure("initial_loss", "scalar", "", "linear", frozenset(), initial_loss, tolerance=0.05)
