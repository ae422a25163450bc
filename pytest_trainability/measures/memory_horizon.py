"""Over how many steps a gradient is remembered."""

from __future__ import annotations

import math

from ..engine.exponents import SWEEP, horizon
from ..engine.run import Run
from .measure import Measure

FRACTION = 0.01


def memory_horizon(run: Run) -> float:
    """Return the number of steps after which 1 % is left of a random cotangent that starts at the last state.

    It misleads where the last steps are not like the others, and for a loss whose own cotangent is not generic: compare
    ``loss_log_gain`` with ``log_gain``.

    Returns:
        Steps, or units of time where steps have durations; a fraction of a step is interpolated. Where the chain ends before, it
        is extrapolated at the rate of the exponent; ``inf`` where that is not negative.

    Source: Bengio, Simard & Frasconi, IEEE Trans. Neural Networks 5, 157 (1994).
    """
    return horizon(run, -math.log(FRACTION))


MEASURE = Measure("memory_horizon", "scalar", "steps", "log", frozenset({SWEEP}), memory_horizon, tolerance=0.2)
