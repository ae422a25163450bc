"""The rate at which the angle between tokens, or between samples, grows or shrinks along the chain."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...engine.runs.run import Run
from ..measure import declare
from .similarity import SIMILARITIES

__all__ = ["log_slope"]

ROUND_OFF = 1e-13
"""Value of 1 - cos below which round-off of cosines in float64 dominates."""


def log_slope(distances: Sequence[float], floor: float) -> float:
    """Return the slope of ``ln d_l`` over l, by least squares.

    Args:
        distances: The distances ``d_0 … d_L``; NaN where they are unknown.
        floor: Distance up to which a number is round-off. Such a number and all later ones are left out.

    Returns:
        The slope; ``-inf`` if only the first known distance exceeds the floor, and NaN if none does or only one is known.
    """
    known = [(index, distance) for index, distance in enumerate(distances) if not math.isnan(distance)]
    resolved = known[: next((place for place, (_, d) in enumerate(known) if d <= floor), len(known))]
    if len(resolved) < 2:
        return -math.inf if resolved and len(known) > 1 else math.nan
    middle = sum(index for index, _ in resolved) / len(resolved)
    weight = sum((index - middle) ** 2 for index, _ in resolved)
    return sum((index - middle) * math.log(distance) for index, distance in resolved) / weight


def _cosines(similarities: dict[str, float], names: Sequence[str]) -> list[float]:
    """Return the cosines between tokens by state if two states have tokens, else those between samples; NaN where unknown."""
    tokens = [similarities.get(f"{name} tokens", math.nan) for name in names]
    if sum(not math.isnan(cosine) for cosine in tokens) > 1:
        return tokens
    return [similarities.get(name, math.nan) for name in names]


@declare("scalar", unit="nats/step", needs=[SIMILARITIES], tolerance=0.02)
def angle_exponent(run: Run) -> float:
    """Return the slope of ``ln(1 - c_l)`` over the states, where c_l is the mean cosine between the tokens of a sample.

    If states have no tokens, it is the mean cosine between samples (``sample_similarity``). For small angles θ, ``1 - c = θ²/2``,
    so that the angle itself changes by half of the exponent. Near c = 1, wide random networks have the exponent ``ln χ`` with
    the slope χ of the correlation map at its fixed point 1: the exponent is negative if tokens collapse to one direction
    (ordered phase), and positive if nearby tokens separate (chaotic phase). The slope is by least squares over all states. States
    from the first one on whose ``1 - c`` is round-off are left out.

    It misleads where angles are large: no angle grows beyond independence, so that a chaotic network has an exponent near 0 on
    independent inputs. Inputs with small angles show the exponent of the fixed point.

    Returns:
        A number in nats per step. ``-inf`` if all angles vanish in the first step; NaN if the first state has no angles, or if
        fewer than two states have known cosines.

    Source: Cowsik, Nebabu, Qi & Ganguli, arXiv:2403.02579 (2024), angle exponent; Schoenholz et al., ICLR 2017, eq. 9, for
    fully connected networks.
    """
    cosines = _cosines(run[SIMILARITIES], ("input", *run.chain.names))
    coarsest = max(run.chain.epsilon(index) for index in range(1, len(run.chain) + 1))
    return log_slope([1 - cosine for cosine in cosines], max(ROUND_OFF, (4 * coarsest) ** 2))
