"""How large the branch of each residual step is beside the stream."""

from __future__ import annotations

from ..engine.branches import BRANCH_SIZES
from ..engine.run import Run
from .measure import Measure


def branch_ratio(run: Run) -> dict[str, float]:
    """Return ``rms(f_l(x_{l-1})) / rms(x_{l-1})`` of each residual step ``x_l = x_{l-1} + f_l(x_{l-1})``.

    f is the sum of all that is added to the stream between the two states: attention's and the feed-forward network's branch
    of a transformer's block. It misleads where one is asked for: 0 is what zero-initialized branches have, and healthy.

    Returns:
        Pure numbers by residual step, in program order; 0 where branches are zero, ``inf`` where only the stream is, NaN where
        an addition is hidden in a scripted function. Empty for a model without residual steps: post-normalization leaves no
        identity path, nor does a projection in the skip.

    Raises:
        ModelError: The model does something else when it is run again.

    Source: De & Smith, NeurIPS 2020; Zhang, Dauphin & Ma, ICLR 2019.
    """
    return run[BRANCH_SIZES]


MEASURE = Measure("branch_ratio", "profile", "", "log", frozenset({BRANCH_SIZES}), branch_ratio, tolerance=0.1)
