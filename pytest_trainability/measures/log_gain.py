"""The whole chain's gradient amplification."""

from __future__ import annotations

from ..engine.exponents import SWEEP
from ..engine.run import Run
from .measure import Measure


def log_gain(run: Run) -> float:
    """Return ``ln ‖u_0‖ / ‖u_L‖`` of a random Gaussian cotangent of the last state, averaged over trajectories.

    Returns:
        Nats; ``-inf`` where the cotangent vanishes.
    """
    return float(run[SWEEP].sums()[:, 0].mean())


MEASURE = Measure("log_gain", "scalar", "nats", "linear", frozenset({SWEEP}), log_gain, tolerance=0.3)
