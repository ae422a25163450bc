"""How large each parameter's gradient is."""

from __future__ import annotations

from ..engine.gradients import PARAMETER_GRADIENTS
from ..engine.run import Run
from ..engine.trees import norm
from .measure import Measure


def gradient_norm(run: Run) -> dict[str, float]:
    """Return ``‖∂loss/∂w‖₂`` for each parameter, from one backward pass of the whole loss.

    Without a loss it is the gradient of a random functional of the outputs, with Gaussian weights of unit norm. The
    norm is taken in float64: squares of 1e-23 vanish in float32.

    Returns:
        Loss units per weight, by parameter name; zero where the parameter is used and gets no gradient. Frozen and
        unused parameters are left out.
    """
    return {name: float(norm(g)) for name, g in run[PARAMETER_GRADIENTS].items() if g is not None}


MEASURE = Measure("gradient_norm", "profile", "", "log", frozenset({PARAMETER_GRADIENTS}), gradient_norm, tolerance=0.3)
