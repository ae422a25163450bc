"""How much worse than a guess the model is before the first step."""

from __future__ import annotations

from ..engine.guess import GUESS
from ..engine.guess import initial_loss as loss_of
from ..engine.run import Run
from .measure import Measure


def excess_loss(run: Run) -> float:
    """Return ``loss − ln(classes)``: what the loss is above that of a model that gives every class the same score.

    With logits of independent N(0, s²) it is ``s²/2 − (e^{s²} − 1) / (2 classes)`` on average. The number of classes is
    the one that was given (``classes=``); else that of the cross-entropy that the loss computes, if with equal scores
    it is ``ln(classes)``. It misleads where a part of the loss is not about classes (an auxiliary loss of a mixture of
    experts): with ``classes`` given that part counts as excess.

    Returns:
        Nats; exactly zero where all scores are equal, and negative where the model guesses better than at random.

    Raises:
        InapplicableError: There is no loss, or none that shows among how many classes it chooses.

    Source: Karpathy, A Recipe for Training Neural Networks (2019), "verify loss @ init".
    """
    return float(loss_of(run)) - run[GUESS].loss


MEASURE = Measure("excess_loss", "scalar", "nats", "linear", frozenset({GUESS}), excess_loss, tolerance=0.05)
