"""Averages over seeds and their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from ..records import Estimate

__all__ = ["CONFIDENCE", "estimate"]

CONFIDENCE = 0.99


def estimate(
    values: Sequence[float],
    *,
    unit: str = "",
    name: str = "",
    scale: Literal["linear", "log"] = "linear",
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Average values over seeds, with a two-sided Student-t interval.

    Args:
        values: One per seed. A value that is not finite makes the mean what it makes a sum: ``-inf`` and NaN carry over.
        unit: As printed.
        name: Element of a profile.
        scale: ``"log"`` averages logarithms: the mean is geometric, and zero where a value is zero.
        confidence: Probability that the interval covers the mean, for normal values.

    Returns:
        The estimate; with one seed its interval is NaN.

    Source: Student, Biometrika 6, 1 (1908).
    """
    values = tuple(values)
    if scale == "log":
        mean, half = _mean_and_half_width([_log(value) for value in values], confidence)
        mean, low, high = _exp(mean), _exp(mean - half), _exp(mean + half)
    else:
        mean, half = _mean_and_half_width(values, confidence)
        low, high = mean - half, mean + half
    return Estimate(mean=mean, low=low, high=high, values=values, unit=unit, name=name)


def _mean_and_half_width(values: Sequence[float], confidence: float) -> tuple[float, float]:
    count = len(values)
    if not all(map(math.isfinite, values)):
        return sum(values), math.nan
    mean = math.fsum(values) / count
    if count < 2:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, _quantile(count - 1, confidence) * math.sqrt(variance / count)


@lru_cache
def _quantile(degrees: int, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))


def _log(value: float) -> float:
    if value > 0:
        return math.log(value)
    return -math.inf if value == 0 else math.nan


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
