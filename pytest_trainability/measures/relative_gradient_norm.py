"""How large each parameter's gradient is beside the parameter."""

from __future__ import annotations

import math

from ..engine.gradients import PARAMETER_GRADIENTS
from ..engine.run import Run
from ..engine.trees import norm
from .measure import Measure


def relative_gradient_norm(run: Run) -> dict[str, float]:
    """Return ``‖∂loss/∂w‖ / ‖w‖`` for each parameter.

    Returns:
        Pure numbers by parameter name; ``inf`` for a parameter that is zero (biases, zero-initialized branches), NaN
        where its gradient is zero too. Frozen and unused parameters are left out.
    """
    parameters = dict(run.record.model.named_parameters())
    ratios = {}
    for name, gradient in run[PARAMETER_GRADIENTS].items():
        if gradient is not None:
            above, below = float(norm(gradient)), float(norm(parameters[name]))
            ratios[name] = above / below if below > 0 else (math.inf if above > 0 else math.nan)
    return ratios


MEASURE = Measure(
    "relative_gradient_norm",
    "profile",
    "",
    "log",
    frozenset({PARAMETER_GRADIENTS}),
    relative_gradient_norm,
    tolerance=0.3,
)
