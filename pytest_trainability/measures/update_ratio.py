"""How far the first optimizer step moves each parameter."""

from __future__ import annotations

from ..engine.run import Run
from ..engine.updates import FIRST_UPDATES
from .measure import Measure


def update_ratio(run: Run) -> dict[str, float]:
    """Return ``‖Δw‖ / ‖w‖`` for each parameter, of one step of the optimizer on the run's gradients.

    The optimizer is what ``optimizer=`` makes; without it AdamW with a learning rate of 1e-3. About 1e-3 is the usual rule for
    weight matrices. Without a loss the step is one on a random functional of the outputs.

    It misleads for parameters that are small by design (LayerScale, gates), which are to move by much more than they are; for
    Adam, whose first step has the learning rate's length in every entry, however small the gradient (down to its ``eps``);
    and where a schedule starts lower than the optimizer does.

    Returns:
        Pure numbers by parameter name, of what rounding has left of the step: 0 where the step is lost in the parameter's type,
        where the gradient is zero (``waking_step`` tells whether by design), and where the optimizer does not hold it. NaN
        where the step has left anything that is not finite. A parameter that is all zeros has no ratio and is left out, as are
        frozen and unused ones.

    Raises:
        UsageError: ``optimizer=`` makes no optimizer of the parameters, or it cannot step on these gradients.

    Source: Karpathy, CS231n notes, Neural Networks part 3 (2015), "ratio of weights:updates".
    """
    return {name: update.change / update.size for name, update in run[FIRST_UPDATES].items() if update.size > 0}


MEASURE = Measure("update_ratio", "profile", "", "log", frozenset({FIRST_UPDATES}), update_ratio, tolerance=0.3)
