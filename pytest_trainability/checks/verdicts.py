"""Judging what was measured against a bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from ..records.estimates import Estimate, Names, Profile, Spectrum
from ..records.reports import VerdictRecord
from .bounds import Bound
from .statistics import FIXED, Level, estimate, seeds_to_settle

__all__ = ["Value", "first_outside", "is_settled", "judge"]

Value: TypeAlias = "Estimate | Spectrum | Profile | Names"

WORST_SHOWN = 5


def judge(
    measure: str,
    value: Value,
    bound: Bound,
    *,
    scale: str = "linear",
    level: Level = FIXED,
) -> VerdictRecord:
    """Judge one measure: the point estimate decides, of a profile every element's.

    Args:
        measure: Its name.
        value: What was measured.
        bound: What it must lie in. Of names, their number.
        scale: ``"log"`` makes the margin a logarithm of a ratio.
        level: Of the intervals that ``value`` has.

    Returns:
        The verdict; it describes the worst element. A profile without elements does not hold.
    """
    elements = _elements(value, level)
    if not elements:
        return VerdictRecord(
            measure=measure,
            value=math.nan,
            value_low=math.nan,
            value_high=math.nan,
            unit="",
            scale=scale,
            low=bound.low,
            high=bound.high,
            holds=False,
            marginal=False,
            margin=math.nan,
            elements=0,
        )
    ranked = sorted(elements, key=lambda e: _sort_key(_margin(e.mean, bound, scale)))
    outside = [e for e in ranked if not bound.holds(e.mean)]
    worst = ranked[0]
    # One that is outside was chosen among all: see is_settled.
    shared = level.shared(len(elements))
    chosen = [estimate(e.values, scale=e.scale, level=shared) for e in outside]
    needed = [_needed(e, bound, shared) for e in chosen] or [_needed(e, bound, level) for e in elements]
    # A failure is settled by one element that is clearly outside, a pass when all are clearly inside.
    seeds_needed = min(needed) if outside else max(needed)
    return VerdictRecord(
        measure=measure,
        value=worst.mean,
        value_low=worst.low,
        value_high=worst.high,
        unit=worst.unit,
        scale=scale,
        low=bound.low,
        high=bound.high,
        holds=not outside,
        marginal=seeds_needed > 0,
        seeds_needed=seeds_needed,
        margin=_margin(worst.mean, bound, scale),
        where=worst.name,
        violations=len(outside),
        elements=len(elements),
        worst=tuple((e.name, e.mean) for e in outside[:WORST_SHOWN]),
    )


def is_settled(value: Value, bound: Bound, *, level: Level) -> bool:
    """Whether more seeds would not change the verdict: the intervals lie wholly inside the bound, or one wholly outside.

    All elements of a profile must be inside. That one is outside may be an accident among many, so that its interval must
    be outside at the level that all share (Bonferroni); for the claim that all are inside no such care is needed (Berger,
    Technometrics 24, 295 (1982)).
    """
    elements = _elements(value, level)
    shared = level.shared(len(elements)) if elements else level
    return any(_is_outside(e, bound, shared) for e in elements) or all(_is_inside(e, bound) for e in elements)


def _is_inside(value: Estimate, bound: Bound) -> bool:
    return bound.holds(value.low) and bound.holds(value.high)


def _is_outside(value: Estimate, bound: Bound, level: Level) -> bool:
    again = estimate(value.values, scale=value.scale, level=level)
    if math.isnan(again.low):
        # One seed tells nothing yet, unless its value is one that no other averages away.
        return not bound.holds(again.mean) and not _is_averaged(value)
    below = bound.low is not None and again.high < bound.low
    above = bound.high is not None and again.low > bound.high
    return below or above


def _is_averaged(value: Estimate) -> bool:
    return math.isfinite(value.mean) and (value.scale != "log" or value.mean > 0)


def _elements(value: Value, level: Level) -> Sequence[Estimate]:
    if isinstance(value, Estimate):
        return [value]
    if isinstance(value, Names):
        return [estimate([float(count) for count in value.counts], name=", ".join(value.names[:3]), level=level)]
    return list(value.values()) if isinstance(value, Profile) else list(value)


def _margin(value: float, bound: Bound, scale: str) -> float:
    """Distance to the nearest end of the bound, negative outside; NaN counts as infinitely far outside."""
    if math.isnan(value):
        return -math.inf
    if scale == "log" and value > 0 and all(end is None or end > 0 for end in (bound.low, bound.high)):
        value = math.log(value)
        low, high = (None if end is None else math.log(end) for end in (bound.low, bound.high))
    else:
        low, high = bound.low, bound.high
    below = math.inf if low is None else value - low if value != low else 0.0
    above = math.inf if high is None else high - value if value != high else 0.0
    return min(below, above)


def _sort_key(margin: float) -> float:
    return -math.inf if math.isnan(margin) else margin


def _needed(value: Estimate, bound: Bound, level: Level) -> float:
    """Return how many seeds would settle one element whose interval straddles an end of the bound; 0 where none does."""
    ends = [end for end in (bound.low, bound.high) if end is not None and value.low < end < value.high]
    return max((seeds_to_settle(value, end, level=level) for end in ends), default=0)


def first_outside(growth: Sequence[float], bound: Bound) -> int | None:
    """Return the index of the first step, going backward, at which the accumulated log gain leaves the bound.

    Args:
        growth: Growth rate of each step in program order, nats.
        bound: Of the accumulated gain, nats.

    Returns:
        The index, or None where it never leaves.
    """
    total = 0.0
    for index in range(len(growth) - 1, -1, -1):
        total += growth[index]
        if not bound.holds(total):
            return index
    return None
