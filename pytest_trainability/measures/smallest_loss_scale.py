"""By how much the loss must be scaled for float16."""

from __future__ import annotations

from ..engine.precision import GRADIENT_ENTRIES, loss_scale
from ..engine.run import Run
from .measure import Measure


def smallest_loss_scale(run: Run) -> float:
    """Return the smallest power of two S for which gradients of ``S · loss`` survive float16.

    That is: of every parameter's and every state's gradient at most 1 % of the non-zero entries are rounded to zero,
    and none to infinity. Where gradients overflow as they are, it is the largest one below 1. It misleads where the
    loss itself or something between two states overflows first.

    Returns:
        1 where no scale is needed; ``inf`` where none exists, because some gradients vanish where others overflow; NaN
        where a gradient is infinite or NaN already.

    Raises:
        InapplicableError: There is no loss.

    Source: Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2.
    """
    return loss_scale(run[GRADIENT_ENTRIES].values())


MEASURE = Measure(
    "smallest_loss_scale", "scalar", "", "log", frozenset({GRADIENT_ENTRIES}), smallest_loss_scale, tolerance=0.7
)
