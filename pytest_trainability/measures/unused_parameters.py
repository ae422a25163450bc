"""Parameters that no path leads to."""

from __future__ import annotations

from ..engine.gradients import PARAMETER_GRADIENTS
from ..engine.run import Run
from .measure import Measure


def unused_parameters(run: Run) -> list[str]:
    """Return the trainable parameters that the loss (without one, the output) does not depend on.

    A parameter whose gradient is zero by value is used; one behind ``.detach()`` or in a branch that was not run is not.

    Returns:
        Parameter names, in the model's order.
    """
    return [name for name, gradient in run[PARAMETER_GRADIENTS].items() if gradient is None]


MEASURE = Measure("unused_parameters", "names", "", "linear", frozenset({PARAMETER_GRADIENTS}), unused_parameters)
