"""How far the Jacobian of the chain is from an isometry."""

from __future__ import annotations

from ..engine.run import Run
from ..engine.singular_values import SINGULAR_VALUES
from .measure import Measure


def isometry_gap(run: Run) -> float:
    """Return the variance of the squared singular values over their squared mean, averaged over trajectories.

    ``(1/N) Σ s⁴ / ((1/N) Σ s²)² - 1``, over all ``N = min(n_0, n_L)`` singular values of ``J = J_L … J_1``, zeros included:
    0 where all are equal (an isometry times any gain), N - 1 where only one is not zero. In the limit of width it is L for
    Gaussian linear layers, 2 L for ReLU ones with Gaussian weights and L with orthogonal ones; near 0 it can be for linear or
    hard-tanh layers with orthogonal weights, never for ReLU.

    It misleads once it comes near N - 1, where it says no more than that one direction outweighs all others.

    Returns:
        A pure number. NaN where the Jacobian vanishes. Where both end states have more than 512 numbers per trajectory it is an
        estimate with a standard error below 5 % of it plus 0.01, NaN where that is not reached.

    Source: Pennington, Schoenholz & Ganguli, NeurIPS 2017 (variance and mean of the spectrum of ``JJᵀ``).
    """
    return float(run[SINGULAR_VALUES].spread.mean())


MEASURE = Measure("isometry_gap", "scalar", "", "linear", frozenset({SINGULAR_VALUES}), isometry_gap, tolerance=0.2)
