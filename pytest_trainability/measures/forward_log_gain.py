"""How activations grow along the chain."""

from __future__ import annotations

import math

from ..engine.magnitudes import MAGNITUDES
from ..engine.run import Run
from .measure import Measure


def forward_log_gain(run: Run) -> float:
    """Return ``ln rms(x_L) / rms(x_0)``: the forward pass beside the backward pass's ``log_gain``.

    The two differ: a default-initialized ReLU tower keeps its activations (bias) while its gradient vanishes.

    Returns:
        Nats.
    """
    first, last = (run[MAGNITUDES].root_mean_square(run.chain.cut.states[index]) for index in (0, -1))
    return (
        math.log(last) - math.log(first) if first > 0 and last > 0 else (-math.inf if last == 0 < first else math.nan)
    )


MEASURE = Measure(
    "forward_log_gain", "scalar", "nats", "linear", frozenset({MAGNITUDES}), forward_log_gain, tolerance=0.3
)
