"""How many units no gradient passes through."""

from __future__ import annotations

from ..engine.activations import ACTIVATIONS
from ..engine.run import Run
from .measure import Measure


def dead_fraction(run: Run) -> dict[str, float]:
    """Return the share of units of each activation with ``φ'(x) = 0`` in the whole batch, at every position.

    A unit is what has weights of its own: a neuron, a feature of a sequence, a channel of an image. Along which dimension
    units lie is told by the nearest parameters that the activation's input was computed with, by their gradients; where none
    tells, each entry of a sample is a unit.

    It misleads on small batches: a healthy ReLU unit is off in all of n independent samples with probability 2⁻ⁿ. A slope
    that underflows to zero in the precision of the run counts as zero.

    Returns:
        Pure numbers from 0 to 1, named and ordered as in ``saturated_fraction``. NaN where a slope is NaN.

    Source: Lu, Shin, Su & Karniadakis, Commun. Comput. Phys. 28, 1671 (2020), of units in place of whole networks.
    """
    return {name: slopes.dead for name, slopes in run[ACTIVATIONS].items()}


MEASURE = Measure("dead_fraction", "profile", "", "linear", frozenset({ACTIVATIONS}), dead_fraction, tolerance=0.05)
