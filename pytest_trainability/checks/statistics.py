"""Averages over seeds and their intervals."""

from __future__ import annotations

import math
import operator
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from numbers import Integral
from typing import Any, Literal

from ..errors import UsageError
from ..records.estimates import Estimate
from ..records.text import short_repr

__all__ = [
    "CEILING",
    "CONFIDENCE",
    "DEFAULT_SEEDS",
    "FIXED",
    "Level",
    "as_confidence",
    "as_seeds",
    "estimate",
    "prediction_interval",
    "seeds_to_settle",
]

CONFIDENCE = 0.99
"""Default confidence level of intervals."""
DEFAULT_SEEDS = 4
CEILING = 10_000
"""Largest number of seeds of one measurement. More would take hours for the smallest model."""
MOST_SEEDS = 10**6
"""Largest number of seeds that is computed for a marginal verdict; more counts as infinite."""


@dataclass(frozen=True, slots=True)
class Level:
    """Confidence level of an interval, or of all intervals of a sample that grows up to a ceiling.

    With a ceiling N the intervals at n = 2, 3, …, N form a confidence sequence: the probability that any of them misses the
    mean is at most ``α = 1 - confidence``, so that one may look after each seed and stop at any time. Each interval is
    Student's, and a union bound divides α among the looks. The last look gets half, because undecided verdicts reach it. The
    earlier looks share the other half in proportion to ``1 / (n (n - 1))``, so that two or three seeds settle a clear case. A
    martingale for that half (Wang & Ramdas, arXiv:2310.03722) is not narrower with so few seeds.

    Source: Darling & Robbins, PNAS 58, 66 (1967), for confidence sequences; Jennison & Turnbull, J. R. Stat. Soc. B 51, 305
    (1989), for repeated intervals up to a ceiling; Lan & DeMets, Biometrika 70, 659 (1983), for spending the error.
    """

    confidence: float = CONFIDENCE
    """Probability that the interval, or all intervals up to the ceiling, cover the mean of normal values."""
    ceiling: int | None = None
    """Largest number of seeds; None if the number of seeds is fixed."""

    def at(self, count: int) -> float:
        """Return the confidence level of the interval of ``count`` values, two or more."""
        if self.ceiling is None or self.ceiling <= 2:
            return self.confidence
        share = 1.0 if count >= self.ceiling else (self.ceiling - 1) / (self.ceiling - 2) / (count * (count - 1))
        return 1 - (1 - self.confidence) / 2 * share

    def shared(self, elements: int) -> Level:
        """Return the level of each of several intervals that cover jointly at this level (Bonferroni)."""
        return Level(1 - (1 - self.confidence) / elements, self.ceiling)

    def up_to(self, count: int) -> Level:
        """Return the level with another ceiling, if it has one."""
        return self if self.ceiling is None else Level(self.confidence, count)


FIXED = Level()


def estimate(
    values: Sequence[float],
    *,
    unit: str = "",
    name: str = "",
    scale: Literal["linear", "log"] = "linear",
    level: Level = FIXED,
) -> Estimate:
    """Return the mean of values over seeds, with a two-sided Student-t interval.

    Args:
        values: One value per seed. An infinite value or NaN makes the mean infinite or NaN, as in a sum.
        unit: Unit as printed.
        name: Name of the element of a profile.
        scale: ``"log"`` averages logarithms: the mean is geometric, and zero if a value is zero.
        level: Confidence level of the interval.

    Returns:
        The estimate. Its interval is NaN with one seed or with values that are not finite.

    Source: Student, Biometrika 6, 1 (1908).
    """
    values = tuple(values)
    if scale == "log":
        mean, half = _mean_and_half_width([_log(value) for value in values], level)
        mean, low, high = _exp(mean), _exp(mean - half), _exp(mean + half)
        if len(set(values)) == 1 and values[0] > 0:
            # exp(log(2^22)) exceeds 2^22, and a bound of 2^22 would not hold.
            mean = values[0]
    else:
        mean, half = _mean_and_half_width(values, level)
        low, high = mean - half, mean + half
    return Estimate(mean=mean, low=low, high=high, values=values, unit=unit, name=name, scale=scale)


def _mean_and_half_width(values: Sequence[float], level: Level) -> tuple[float, float]:
    if not all(map(math.isfinite, values)):
        return sum(values), math.nan
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, _half_width(_spread(values, mean), len(values), level)


def _spread(values: Sequence[float], mean: float) -> float:
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _half_width(spread: float, count: int, level: Level) -> float:
    return _quantile(count - 1, level.at(count)) * spread / math.sqrt(count)


def prediction_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Return the center and the half-width of Student's prediction interval for one further draw.

    Args:
        values: Finite values of earlier draws, two or more.
        confidence: Probability that the interval covers one further draw from the same normal distribution.

    Source: Hahn & Meeker, Statistical Intervals (Wiley 1991), section 4.7.
    """
    mean, count = math.fsum(values) / len(values), len(values)
    return mean, _quantile(count - 1, confidence) * _spread(values, mean) * math.sqrt(1 + 1 / count)


def seeds_to_settle(value: Estimate, end: float, *, level: Level) -> float:
    """Return how many seeds would make the half-width of the interval less than the distance to an end of a bound.

    The spread over the given seeds is used for all further seeds, so that the number is rough if they are few.

    Args:
        value: Estimate whose interval straddles the end.
        end: End of the bound, in the unit of the value.
        level: Confidence level. Its ceiling, if any, is replaced by the number of seeds in question.

    Returns:
        The number of seeds, larger than the number of values; infinity above :data:`MOST_SEEDS`.
    """
    values, mean = list(value.values), value.mean
    if value.scale == "log":
        values, mean, end = [_log(v) for v in values], _log(mean), _log(end)
    distance, spread = abs(mean - end), _spread(values, mean)
    more = range(len(values) + 1, MOST_SEEDS)
    found = bisect_left(more, 1, key=lambda count: int(_half_width(spread, count, level.up_to(count)) < distance))
    return more[found] if found < len(more) else math.inf


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
    """Return the seeds that an argument or option names, without repetition.

    Args:
        seeds: A number of seeds, a sequence of seeds, a text such as ``"8"``, ``"0-7"`` or ``"0,3,5-6"``, or None for the
            default number.

    Raises:
        UsageError: The value has another form, or names no seed or more than :data:`CEILING`.

    >>> as_seeds(3), as_seeds("0,3,5-6")
    ((0, 1, 2), (0, 3, 5, 6))
    """
    if seeds is None:
        return tuple(range(DEFAULT_SEEDS))
    msg = (
        "seeds must be a number of at least 1, a list of whole numbers from 0 on, or text such as '8', '0-7' or "
        f"'0,3,5'. Got {short_repr(seeds)}."
    )
    given: Any = _parse_seeds(seeds, msg) if isinstance(seeds, str) else seeds
    try:
        if isinstance(given, Integral):
            _refuse_too_many(_whole(given), seeds)
            given = range(_whole(given))
        # One more than is allowed: the list need not end.
        given = [_whole(seed) for seed in islice(given, CEILING + 1)]
    except TypeError:
        raise UsageError(msg) from None
    if not given or min(given) < 0 or max(given) >= 2**63:
        raise UsageError(msg)
    _refuse_too_many(len(given), seeds)
    return tuple(dict.fromkeys(given))


def _refuse_too_many(count: int, given: Any) -> None:
    """Refuse a number of seeds above the ceiling, such as a date that was meant as one seed.

    Raises:
        UsageError: There are too many.
    """
    if count <= CEILING:
        return
    msg = f"seeds must be at most {CEILING:,} in number. Got {short_repr(given)}."
    if isinstance(given, Integral) or (isinstance(given, str) and given.strip().isdecimal()):
        one = f"{given}".strip() if count < 2**63 else "N"
        msg += f" A number is a count of seeds. A single seed is {f'{one}-{one}' if isinstance(given, str) else f'[{one}]'}."
    raise UsageError(msg)


def _whole(value: Any) -> int:
    """Return a whole number, such as a numpy integer, as an int; raise TypeError for another value."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _parse_seeds(text: str, msg: str) -> int | Iterable[int]:
    try:
        if text.strip().isdecimal():
            return int(text)
        parts = (part.partition("-") for part in text.split(","))
        return chain.from_iterable([range(int(first), int(last if dash else first) + 1) for first, dash, last in parts])
    except ValueError:
        raise UsageError(msg) from None


def as_confidence(value: float | str) -> float:
    """Return the confidence level of intervals, such as ``0.99``, as a float.

    Raises:
        UsageError: The value is not a number between 0 and 1.
    """
    try:
        confidence = float(value)
    except (TypeError, ValueError):
        confidence = math.nan
    if not 0 < confidence < 1:
        msg = f"the confidence must lie between 0 and 1, such as 0.99. Got {value!r}."
        raise UsageError(msg)
    return confidence
