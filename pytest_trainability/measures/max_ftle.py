"""The maximal finite-time Lyapunov exponent."""

from __future__ import annotations

from ..engine.run import Run
from ..engine.singular_values import SINGULAR_VALUES
from .measure import Measure


def max_ftle(run: Run) -> float:
    """Return ``(1/L) ln σ_max(J_L … J_1)``, averaged over trajectories: what the worst cotangent grows by per step.

    Over all L steps, whatever ``warmup`` and ``alignment`` leave to other measures; per unit of time where steps have durations.
    On one trajectory it is never below ``lyapunov_max``, which is that of a random cotangent.

    It misleads as a substitute for ``lyapunov_max``: for wide, shallow nets it lies far above it, by
    ``½ [ψ(N/2) - ψ(½)] / L`` for Gaussian linear ones with ``L ≫ N``.

    Returns:
        Nats per step or unit of time; ``-inf`` where the Jacobian vanishes, NaN where the iterative method for large states does
        not settle it.

    Source: Newman, Commun. Math. Phys. 103, 121 (1986), for Gaussian products.
    """
    found = run[SINGULAR_VALUES]
    reached = found.time > 0
    return float((found.logs[reached, 0] / found.time[reached]).mean())


MEASURE = Measure("max_ftle", "scalar", "nats/step", "linear", frozenset({SINGULAR_VALUES}), max_ftle, tolerance=0.02)
