"""Above which learning rate gradient descent leaves a quadratic loss."""

from __future__ import annotations

import math

from ..engine.curvature import LARGEST_CURVATURE
from ..engine.run import Run
from .measure import Measure


def stable_learning_rate(run: Run) -> float:
    """Return ``2 / sharpness``: above that learning rate plain gradient descent on a quadratic loss diverges.

    Along the eigenvector of the largest eigenvalue each step multiplies the distance to the minimum by ``1 - η λ_max``.

    It misleads where the optimizer is not plain gradient descent: momentum β raises it to ``2 (1 + β) / sharpness``, and
    adaptive ones have a bound on the preconditioned Hessian. Nor is a network's loss quadratic: above this rate training often
    first diverges, then finds a place that is flatter, and below it sharpness rises until it reaches ``2/η``.

    Returns:
        A learning rate; ``inf`` where sharpness is not positive, NaN where it is.

    Raises:
        InapplicableError: There is no loss or nothing to train; or the loss cannot be differentiated twice, or its second
            derivative is not symmetric.

    Source: Cohen, Kaur, Li, Kolter & Talwalkar, Gradient descent on neural networks typically occurs at the edge of stability,
    ICLR 2021, section 2; LeCun, Simard & Pearlmutter, NeurIPS 1992.
    """
    sharpness = run[LARGEST_CURVATURE].value
    return math.inf if sharpness <= 0 else 2 / sharpness


MEASURE = Measure(
    "stable_learning_rate", "scalar", "", "log", frozenset({LARGEST_CURVATURE}), stable_learning_rate, tolerance=0.3
)
