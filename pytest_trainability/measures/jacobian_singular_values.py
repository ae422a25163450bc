"""Singular values of the whole chain's Jacobian."""

from __future__ import annotations

import torch

from ..engine.run import Run
from ..engine.singular_values import SINGULAR_VALUES
from .measure import Measure


def jacobian_singular_values(run: Run) -> list[float]:
    """Return ``s_1 ≥ s_2 ≥ …`` of ``J = J_L … J_1``, each a geometric mean over trajectories.

    All ``min(n_0, n_L)`` of them where the first or the last state has at most 512 numbers per trajectory, to about the working
    precision of each step, the smallest ones included. Where both are larger the leading ``exponents=``, to 0.1 %.

    It misleads at depth: the largest one grows with the logarithm of the width even where every random gradient keeps its length.

    Returns:
        Pure numbers, largest first; zero beyond the numerical rank of a trajectory, and below 1e-308, where ``max_ftle`` and
        ``condition_number`` still tell numbers apart; ``inf`` beyond 1e308. NaN for what the iterative method does not settle.

    Source: Saxe, McClelland & Ganguli, ICLR 2014; Pennington, Schoenholz & Ganguli, NeurIPS 2017.
    """
    return [float(value) for value in torch.exp(run[SINGULAR_VALUES].logs.mean(dim=0))]


MEASURE = Measure(
    "jacobian_singular_values",
    "spectrum",
    "",
    "log",
    frozenset({SINGULAR_VALUES}),
    jacobian_singular_values,
    tolerance=0.3,
    element="singular value",
)
