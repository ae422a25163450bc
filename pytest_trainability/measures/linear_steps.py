"""Steps that an activation was expected in."""

from __future__ import annotations

from ..engine.linearity import LINEAR_STEPS
from ..engine.run import Run
from .measure import Measure


def linear_steps(run: Run) -> list[str]:
    """Return the steps that are exactly linear although an activation was expected.

    Two layers without an activation between them are one: ``W₂ (W₁ x + b₁) + b₂``. A weight layer is named if it reads
    nothing but the output of the weight layer before it, through linear operators only, and nobody else reads that; a
    step that is made of modules if it is linear where another of its class is not, or where the one before it is linear
    as well. Meant are, and not named, bottlenecks (LoRA) and separable convolutions. It misleads where an operator is
    linear that is not known to be, and where a normalization stands between that takes its averages from the batch:
    neither is named.

    Returns:
        Step names, in program order; the step before the missing activation is the one before. None along time, where
        linear recurrences take in an input at every step.

    Source: Goodfellow, Bengio & Courville, Deep Learning (2016), section 6.1, on why hidden units must be nonlinear.
    """
    return run[LINEAR_STEPS]


MEASURE = Measure("linear_steps", "names", "", "linear", frozenset({LINEAR_STEPS}), linear_steps)
