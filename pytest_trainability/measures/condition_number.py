"""How far the Jacobian of the chain is from keeping all directions alike."""

from __future__ import annotations

import math

import torch

from ..engine.run import Run
from ..engine.singular_values import SINGULAR_VALUES
from .measure import Measure


def condition_number(run: Run) -> float:
    """Return ``κ = σ_max / σ_min`` of ``J = J_L … J_1``, a geometric mean over trajectories.

    ``σ_min`` is the smallest of all ``N = min(n_0, n_L)`` singular values, zeros included. From logarithms: it is right where
    both ends of the fraction are far outside the range of floats.

    It misleads for ReLU nets, whose product is rank deficient: it is infinite, whatever their health. Look at
    ``numerical_rank`` and ``isometry_gap``.

    Returns:
        A pure number; ``inf`` where some trajectory's product is rank deficient (a single step cuts a direction to round-off,
        or a state on the way has fewer than N numbers), and beyond 1e308: ``numerical_rank`` tells which. NaN where both end
        states have more than 512 numbers per trajectory and the smallest value is not settled.

    Source: Saxe, McClelland & Ganguli, ICLR 2014.
    """
    found = run[SINGULAR_VALUES]
    logs = torch.where(found.smallest == -math.inf, math.inf, found.logs[:, 0] - found.smallest)
    return float(logs.mean().exp())


MEASURE = Measure(
    "condition_number", "scalar", "", "log", frozenset({SINGULAR_VALUES}), condition_number, tolerance=0.5
)
