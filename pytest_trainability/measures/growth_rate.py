"""Where along the chain the gradient grows or shrinks."""

from __future__ import annotations

from ..engine.exponents import SWEEP
from ..engine.run import Run
from .measure import Measure


def growth_rate(run: Run) -> dict[str, float]:
    """Return ``ln ‖u_{l-1}‖ / ‖u_l‖`` for each step, averaged over trajectories.

    Returns:
        Nats by step, in program order. Each seed's sum to its log gain; a step that stochastic depth
        leaves out is averaged over the seeds that took it. ``-inf`` at a step that lets no gradient through, NaN
        for the steps before it, where none arrives.
    """
    rates = run[SWEEP].logs[:, :, 0].mean(dim=1)
    return dict(zip(run.chain.names, rates.tolist()))


MEASURE = Measure("growth_rate", "profile", "nats", "linear", frozenset({SWEEP}), growth_rate, tolerance=0.05)
