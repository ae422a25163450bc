"""Over how many steps a gradient is more than round-off."""

from __future__ import annotations

import math

import torch

from ..engine.exponents import SWEEP, horizon
from ..engine.run import Run
from .measure import Measure


def precision_horizon(run: Run) -> float:
    """Return the number of steps after which a random cotangent has fallen below the working precision.

    What is left is then less than the round-off of what a nearer step adds to the same weights' gradient: ``eps`` of the state's
    type, 1.2e-7 for float32.

    Returns:
        Steps, or units of time where steps have durations, as ``memory_horizon``.
    """
    eps = max(torch.finfo(dtype).eps for _, dtype in run.chain.shapes(len(run.chain)))
    return horizon(run, -math.log(eps))


MEASURE = Measure("precision_horizon", "scalar", "steps", "log", frozenset({SWEEP}), precision_horizon, tolerance=0.2)
