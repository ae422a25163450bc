"""Parameters that get no gradient, and will not."""

from __future__ import annotations

import math

from ..engine.run import Run
from ..engine.updates import WAKING_STEPS
from .measure import Measure


def asleep_parameters(run: Run) -> list[str]:
    """Return the trainable parameters whose gradient is zero at initialization and after three optimizer steps.

    Parameters that start behind a zero which is meant to move (a zero-initialized branch, gate or head) wake by then, and are
    not among them; ``waking_step`` says when. What is left lies behind dead units, or behind a zero that has no gradient
    itself, such as a zero in front of a ReLU. Parameters that no path leads to are ``unused_parameters``, and not listed here.

    It misleads where one batch does not reach all of the model: an expert that no token is sent to, an embedding of kinds that do
    not occur.

    Returns:
        Parameter names, in the model's order.

    Raises:
        UsageError: ``optimizer=`` makes no optimizer of the parameters, or it cannot step on these gradients.
        ModelError: The model does not run after a step.

    Source: Lu, Shin, Su & Karniadakis, Commun. Comput. Phys. 28, 1671 (2020), for ReLU networks that are born dead.
    """
    return [name for name, step in run[WAKING_STEPS].items() if step == math.inf]


MEASURE = Measure("asleep_parameters", "names", "", "linear", frozenset({WAKING_STEPS}), asleep_parameters)
