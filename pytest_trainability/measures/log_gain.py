"""The whole chain's gradient amplification."""

from __future__ import annotations

from ..engine.ensemble import Run
from .measure import Measure


def log_gain(run: Run) -> float:
    """Return ``ln ‖u_0‖ / ‖u_L‖`` of a random Gaussian cotangent of the last state, averaged over trajectories.

    Returns:
        Nats; ``-inf`` where the cotangent vanishes.
    """
    assert run.sweep is not None
    return float(run.sweep.sums()[:, 0].mean())


MEASURE = Measure("log_gain", "scalar", "nats", "linear", frozenset({"sweep"}), log_gain, tolerance=0.3)
