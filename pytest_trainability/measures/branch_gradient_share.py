"""Which part of a residual step's gradient comes through its branch."""

from __future__ import annotations

from ..engine.branches import BRANCH_GRADIENTS
from ..engine.run import Run
from .measure import Measure


def branch_gradient_share(run: Run) -> dict[str, float]:
    """Return ``‖F_lᵀu‖² / (‖u‖² + ‖F_lᵀu‖²)`` of each residual step, ``J_l = I + F_l``, with u the random cotangent there.

    What the skip carries back is u, what the branch adds is ``F_lᵀu``. Where the two are uncorrelated, the step's growth rate
    is ``-½ ln(1 - share)``. Behind a rectifier that follows the addition, u is the cotangent in front of it.

    Returns:
        Between 0 (the step is an identity, as with zero-initialized branches) and 1 (the skip counts for nothing) by residual
        step, in program order, averaged over trajectories; NaN where no gradient arrives. Empty for a model without residual
        steps.

    Source: Balduzzi et al., ICML 2017; De & Smith, NeurIPS 2020.
    """
    return run[BRANCH_GRADIENTS]


MEASURE = Measure(
    "branch_gradient_share",
    "profile",
    "",
    "linear",
    frozenset({BRANCH_GRADIENTS}),
    branch_gradient_share,
    tolerance=0.05,
)
