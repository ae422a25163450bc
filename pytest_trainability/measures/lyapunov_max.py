"""The maximal Lyapunov exponent of the backward pass."""

from __future__ import annotations

from ..engine.exponents import SWEEP, exponents
from ..engine.run import Run
from .measure import Measure


def lyapunov_max(run: Run) -> float:
    """Return the growth of a random cotangent per step, averaged over trajectories.

    ``λ_1 = (1/L) Σ_l ln ‖u_{l-1}‖ / ‖u_l‖`` with ``u_{l-1} = J_lᵀ u_l``, over the steps that ``warmup`` and ``alignment`` leave;
    per unit of time where steps have durations (a solver's, a rollout's with ``dt``).

    This is the quenched exponent at finite depth. It is not ``(1/L) ln σ_max(J_L … J_1)``, the maximal finite-time
    exponent, which is larger, and not ``½ ln E‖u‖²``, the annealed one of mean-field theory, which it approaches as
    width grows.

    Returns:
        Nats per step or unit of time; ``-inf`` where the cotangent vanishes.

    Source: Oseledets, Trans. Moscow Math. Soc. 19, 197 (1968); Pennington, Schoenholz & Ganguli, NeurIPS 2017, for
    the annealed relative.
    """
    return float(exponents(run)[:, 0].mean())


MEASURE = Measure("lyapunov_max", "scalar", "nats/step", "linear", frozenset({SWEEP}), lyapunov_max, tolerance=0.02)
