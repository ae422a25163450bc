"""The leading Lyapunov exponents of the backward pass."""

from __future__ import annotations

from ..engine.exponents import SWEEP, exponents
from ..engine.run import Run
from .measure import Measure


def lyapunov_spectrum(run: Run) -> list[float]:
    """Return ``λ_1 ≥ … ≥ λ_k``, averaged over trajectories.

    ``λ_i = (1/L) Σ_l ln R_l[i, i]`` from ``J_lᵀ Q_l = Q_{l-1} R_l``, with ``Q_L`` drawn at random; k is ``exponents=``.
    The average is over the steps that ``warmup`` and ``alignment`` leave, per unit of time where steps have durations.

    Returns:
        Nats per step or unit of time, in the order of the columns, which the averages over seeds are then sorted by; ``-inf``
        beyond the numerical rank of the product.

    Source: Benettin et al., Meccanica 15, 9 (1980).
    """
    means = exponents(run).mean(dim=0)
    # Sorted after the average over seeds: sorting each seed's would bias the first up and the last down.
    return [float(mean) for mean in means]


MEASURE = Measure(
    "lyapunov_spectrum", "spectrum", "nats/step", "linear", frozenset({SWEEP}), lyapunov_spectrum, tolerance=0.05
)
