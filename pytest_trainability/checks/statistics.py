"""Averages over seeds and their intervals."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral
from typing import Any, Literal

from ..errors import UsageError
from ..records import Estimate

__all__ = ["CONFIDENCE", "DEFAULT_SEEDS", "as_confidence", "as_seeds", "estimate"]

CONFIDENCE = 0.99
DEFAULT_SEEDS = 4


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
    return Estimate(mean=mean, low=low, high=high, values=values, unit=unit, name=name, scale=scale)


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


def as_seeds(seeds: int | Sequence[int] | str | None) -> tuple[int, ...]:
    """Read ``8``, ``[0, 3, 5]``, ``range(4)`` or the text ``"8"``, ``"0-7"``, ``"0,3,5-6"``.

    Raises:
        UsageError: It is none of these, or names no seed.
    """
    if seeds is None:
        return tuple(range(DEFAULT_SEEDS))
    msg = (
        "seeds must be a number of at least 1, a list of whole numbers from 0 on, or text such as '8', '0-7' or "
        f"'0,3,5'. Got {seeds!r}."
    )
    given: Any = _parse_seeds(seeds, msg) if isinstance(seeds, str) else seeds
    try:
        if isinstance(given, Integral):
            given = range(_whole(given))
        found = tuple(dict.fromkeys(_whole(seed) for seed in given))
    except TypeError:
        raise UsageError(msg) from None
    if not found or min(found) < 0 or max(found) >= 2**63:
        raise UsageError(msg)
    return found


def _whole(value: Any) -> int:
    """Return a whole number of any library as an int."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _parse_seeds(text: str, msg: str) -> int | list[int]:
    try:
        if text.strip().isdecimal():
            return int(text)
        found: list[int] = []
        for part in text.split(","):
            first, dash, last = part.partition("-")
            found += range(int(first), int(last if dash else first) + 1)
    except ValueError:
        raise UsageError(msg) from None
    return found


def as_confidence(value: float | str) -> float:
    """Read the confidence of intervals, such as ``0.99``.

    Raises:
        UsageError: It is no number between 0 and 1.
    """
    try:
        confidence = float(value)
    except (TypeError, ValueError):
        confidence = math.nan
    if not 0 < confidence < 1:
        msg = f"the confidence must lie between 0 and 1, as 0.99 does. Got {value!r}."
        raise UsageError(msg)
    return confidence
