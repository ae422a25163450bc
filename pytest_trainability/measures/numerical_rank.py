"""How many directions survive the chain."""

from __future__ import annotations

from ..engine.run import Run
from ..engine.singular_values import SINGULAR_VALUES
from .measure import Measure


def numerical_rank(run: Run) -> float:
    """Return how many singular values of ``J = J_L … J_1`` are above the working precision, averaged over trajectories.

    Judged step by step: of the directions that have come so far, those count on that the step does not cut to
    ``8 eps √n`` of the longest. A product whose singular values span thousands of nats has full rank as long as every
    step has, and a ReLU layer has not.

    It misleads as a measure of what can be learned: a direction that is 1e-30 of another counts. Look at
    ``condition_number`` and ``lyapunov_spectrum``.

    Returns:
        A number of dimensions, ``min(n_0, n_L)`` at most. NaN where both end states have more than 512 numbers per trajectory,
        unless the smallest singular value is settled: then it is full.

    Source: Demmel, Dumitriu & Holtz, Numer. Math. 108, 59 (2007), for rank from a random basis.
    """
    return float(run[SINGULAR_VALUES].rank.mean())


MEASURE = Measure("numerical_rank", "scalar", "", "linear", frozenset({SINGULAR_VALUES}), numerical_rank, tolerance=0.5)
