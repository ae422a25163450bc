"""Norms of parameter gradients, and the parameters without a gradient."""

from __future__ import annotations

import math

from ...engine.linalg.norms import norm
from ...engine.runs.common_needs import GRADIENT_NORMS, PARAMETER_GRADIENTS
from ...engine.runs.run import Run
from ..measure import declare
from .unreached import UNREACHED_CAUSES


@declare(
    "profile",
    scale="log",
    needs=[GRADIENT_NORMS],
    tolerance=0.3,
    explained_by_growth=1,
    zero_by_design="gradient",
    recorded=["depth", "time"],
)
def gradient_norm(run: Run) -> dict[str, float]:
    """Return ``‖∂loss/∂w‖₂`` for each parameter, from one backward pass of the whole loss.

    Without a loss, the gradient is that of a random linear functional of the outputs, with Gaussian weights of unit norm. The
    norm is computed in float64, because the squares of entries below 1e-23 underflow in float32.

    It misleads when parameters of different sizes are compared: use ``relative_gradient_norm``.

    Returns:
        Loss units per unit of weight, by parameter name in the model's order. The value is zero for a used parameter whose
        gradient is zero. Frozen and unused parameters are omitted.

    Source: Glorot & Bengio, AISTATS 2010.
    """
    norms = run[GRADIENT_NORMS]
    return dict(norms)


@declare(
    "profile",
    scale="log",
    needs=[GRADIENT_NORMS],
    tolerance=0.3,
    zero_by_design="ratio",
)
def relative_gradient_norm(run: Run) -> dict[str, float]:
    """Return ``‖∂loss/∂w‖₂ / ‖w‖₂`` for each parameter.

    It misleads for parameters that are small by design (LayerScale, gates), whose ratio is large in a healthy model.

    Returns:
        Loss units per unit of squared weight, by parameter name in the model's order. The ratio is ``inf`` for a parameter that
        is zero (biases, zero-initialized branches), which bounds do not judge. It is NaN if the gradient is zero too, or not
        finite. Frozen and unused parameters are omitted.

    Source: You, Gitman & Ginsburg, arXiv:1708.03888 (2017), who scale learning rates by the inverse ratio (LARS).
    """
    parameters = dict(run.capture.model.named_parameters())
    ratios = {}
    for name, above in run[GRADIENT_NORMS].items():
        below = float(norm(parameters[name]))
        ratios[name] = _ratio(above, below) if math.isfinite(above) else math.nan
    return ratios


def _ratio(above: float, below: float) -> float:
    if below > 0:
        return above / below
    return math.inf if above > 0 else math.nan


@declare("names", needs=[PARAMETER_GRADIENTS], explained_by=UNREACHED_CAUSES, recorded=["depth", "time"])
def unused_parameters(run: Run) -> list[str]:
    """Return the trainable parameters on which the loss does not depend (the output, if the model has no loss).

    A parameter is unused if the autograd graph has no path to it: it is behind ``.detach()``, or in a branch that was not run. A
    parameter whose gradient is zero is used.

    It misleads where one batch does not run all of the model: an expert without tokens, a branch that stochastic depth has
    dropped.

    Returns:
        Parameter names, in the model's order.
    """
    return [name for name, gradient in run[PARAMETER_GRADIENTS].items() if gradient is None]
