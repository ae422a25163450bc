"""Averages over seeds and their intervals."""

from __future__ import annotations

import math
import operator
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any, Literal

from ..errors import UsageError
from ..records.estimates import Estimate

__all__ = ["CONFIDENCE", "DEFAULT_SEEDS", "FIXED", "Level", "as_confidence", "as_seeds", "estimate", "seeds_to_settle"]

CONFIDENCE = 0.99
DEFAULT_SEEDS = 4
MOST_SEEDS = 10**6
"""Above which nobody asks how many seeds would settle a verdict."""


@dataclass(frozen=True, slots=True)
class Level:
    """How surely intervals cover: one by itself, or all those of a sample that grows up to a ceiling.

    With a ceiling the intervals at n = 2, 3, …, N form a confidence sequence: whoever looks after each seed and stops when
    it pleases is still wrong with probability ``α = 1 - confidence`` at most. Each is Student's, and a union bound over
    the looks divides α: half is kept for the last look, where the verdicts fall that are not clear; the looks before it
    share the other half in proportion to ``1 / (n (n - 1))``, so that a clear case is settled by two or three seeds. A
    martingale for that half (Wang & Ramdas, arXiv:2310.03722) would not be narrower at so few seeds.

    Source: Darling & Robbins, PNAS 58, 66 (1967), for confidence sequences; Jennison & Turnbull, J. R. Stat. Soc. B 51, 305
    (1989), for repeated intervals up to a ceiling; Lan & DeMets, Biometrika 70, 659 (1983), for spending the error.
    """

    confidence: float = CONFIDENCE
    ceiling: int | None = None
    """Of seeds; None where their number is fixed."""

    def at(self, count: int) -> float:
        """Return the confidence of the interval of ``count`` values, two or more."""
        if self.ceiling is None or self.ceiling <= 2:
            return self.confidence
        share = 1.0 if count >= self.ceiling else (self.ceiling - 1) / (self.ceiling - 2) / (count * (count - 1))
        return 1 - (1 - self.confidence) / 2 * share

    def shared(self, elements: int) -> Level:
        """Return the level of each of many intervals that shall all cover (Bonferroni)."""
        return Level(1 - (1 - self.confidence) / elements, self.ceiling)

    def up_to(self, count: int) -> Level:
        """Return the level with another ceiling, where there is one."""
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
    """Average values over seeds, with a two-sided Student-t interval.

    Args:
        values: One per seed. A value that is not finite makes the mean what it makes a sum: ``-inf`` and NaN carry over.
        unit: As printed.
        name: Element of a profile.
        scale: ``"log"`` averages logarithms: the mean is geometric, and zero where a value is zero.
        level: Probability that the interval covers the mean, for normal values.

    Returns:
        The estimate; with one seed its interval is NaN.

    Source: Student, Biometrika 6, 1 (1908).
    """
    values = tuple(values)
    if scale == "log":
        mean, half = _mean_and_half_width([_log(value) for value in values], level)
        mean, low, high = _exp(mean), _exp(mean - half), _exp(mean + half)
        if len(set(values)) == 1 and values[0] > 0:
            # Exactly: of 2^22 the exponential of the logarithm is more, and no bound of 2^22 would hold.
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


def seeds_to_settle(value: Estimate, end: float, *, level: Level) -> float:
    """Return how many seeds would make the interval shorter than the distance to a bound's end.

    The spread over the seeds at hand is taken for the true one, so that with few of them this is a rough number.

    Returns:
        The number, above that of the values; infinity where no number that could be run would do.
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
