"""Judging what was measured against a bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from ..records import Estimate, Names, Profile, Spectrum, VerdictRecord
from .bounds import Bound
from .statistics import estimate

__all__ = ["Value", "first_outside", "judge"]

Value: TypeAlias = "Estimate | Spectrum | Profile | Names"

WORST_SHOWN = 5


def judge(measure: str, value: Value, bound: Bound, *, scale: str = "linear") -> VerdictRecord:
    """Judge one measure: the point estimate decides, of a profile every element's.

    Args:
        measure: Its name.
        value: What was measured.
        bound: What it must lie in. Of names, their number.
        scale: ``"log"`` makes the margin a logarithm of a ratio.

    Returns:
        The verdict; it describes the worst element. A profile without elements does not hold.
    """
    elements = _elements(value)
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
        marginal=all(_straddles(e, bound) for e in outside) if outside else any(_straddles(e, bound) for e in elements),
        margin=_margin(worst.mean, bound, scale),
        where=worst.name,
        violations=len(outside),
        elements=len(elements),
        worst=tuple((e.name, e.mean) for e in outside[:WORST_SHOWN]),
    )


def _elements(value: Value) -> Sequence[Estimate]:
    if isinstance(value, Estimate):
        return [value]
    if isinstance(value, Names):
        return [estimate([float(count) for count in value.counts], name=", ".join(value.names[:3]))]
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


def _straddles(value: Estimate, bound: Bound) -> bool:
    """Whether a bound's end lies inside the interval of the estimate."""
    ends = [end for end in (bound.low, bound.high) if end is not None]
    return any(value.low < end < value.high for end in ends)


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
