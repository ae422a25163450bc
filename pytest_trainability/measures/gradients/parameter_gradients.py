"""How large each parameter's gradient is, and which parameters get none."""

from __future__ import annotations

import math

from ...engine.linalg.norms import norm
from ...engine.runs.common_needs import PARAMETER_GRADIENTS
from ...engine.runs.run import Run
from ..measure import declare


@declare(
    "profile",
    scale="log",
    needs=[PARAMETER_GRADIENTS],
    tolerance=0.3,
    explained_by_growth=1,
    zero_by_design="gradient",
    measured_with="waking_step",
    recorded=["depth", "time"],
)
def gradient_norm(run: Run) -> dict[str, float]:
    """Return ``‖∂loss/∂w‖₂`` for each parameter, from one backward pass of the whole loss.

    Without a loss it is the gradient of a random functional of the outputs, with Gaussian weights of unit norm. The
    norm is taken in float64: squares of 1e-23 vanish in float32.

    Returns:
        Loss units per weight, by parameter name; zero where the parameter is used and gets no gradient. Frozen and
        unused parameters are left out.
    """
    return {name: float(norm(g)) for name, g in run[PARAMETER_GRADIENTS].items() if g is not None}


@declare(
    "profile",
    scale="log",
    needs=[PARAMETER_GRADIENTS],
    tolerance=0.3,
    zero_by_design="gradient",
    measured_with="waking_step",
)
def relative_gradient_norm(run: Run) -> dict[str, float]:
    """Return ``‖∂loss/∂w‖ / ‖w‖`` for each parameter.

    Returns:
        Pure numbers by parameter name; ``inf`` for a parameter that is zero (biases, zero-initialized branches), NaN
        where its gradient is zero too. Frozen and unused parameters are left out.
    """
    parameters = dict(run.capture.model.named_parameters())
    ratios = {}
    for name, gradient in run[PARAMETER_GRADIENTS].items():
        if gradient is not None:
            above, below = float(norm(gradient)), float(norm(parameters[name]))
            ratios[name] = above / below if below > 0 else (math.inf if above > 0 else math.nan)
    return ratios


@declare("names", needs=[PARAMETER_GRADIENTS], recorded=["depth", "time"])
def unused_parameters(run: Run) -> list[str]:
    """Return the trainable parameters that the loss (without one, the output) does not depend on.

    A parameter whose gradient is zero by value is used; one behind ``.detach()`` or in a branch that was not run is not.

    Returns:
        Parameter names, in the model's order.
    """
    return [name for name, gradient in run[PARAMETER_GRADIENTS].items() if gradient is None]
