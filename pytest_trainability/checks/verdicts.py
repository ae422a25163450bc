"""Verdicts: measured values compared with bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from ..records.estimates import Estimate, Names, Profile, Spectrum
from ..records.reports import VerdictRecord
from ..records.text import format_finite, format_names
from .bounds import Bound
from .statistics import FIXED, Level, estimate, seeds_to_settle

__all__ = ["Value", "first_outside", "is_settled", "judge"]

Value: TypeAlias = "Estimate | Spectrum | Profile | Names"


def judge(
    measure: str,
    value: Value,
    bound: Bound,
    *,
    scale: str = "linear",
    level: Level = FIXED,
    by_seed: bool = False,
) -> VerdictRecord:
    """Judge one measure by its point estimates: every element must lie in the bound.

    Args:
        measure: Name of the measure.
        value: Measured value. Names are judged by their number.
        bound: Bound in the unit of the measure.
        scale: ``"log"`` if the margin is the log of a ratio.
        level: Confidence level of the intervals of ``value``.
        by_seed: Whether an element that is outside on every seed settles the failure.

    Returns:
        The verdict, with the values of the worst element. An empty profile does not hold.
    """
    elements = _elements(value, level)
    if not elements:
        return _nothing_to_judge(measure, bound, scale)
    ranked = _rank(elements, bound, scale)
    outside = [element for element in ranked if not bound.holds(element.mean)]
    is_sure = by_seed and any(not any(map(bound.holds, element.values)) for element in outside)
    worst, seeds_needed = ranked[0], 0.0 if is_sure else _seeds_needed(elements, outside, bound, level)
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
        worst=tuple((element.name, element.mean) for element in outside),
        finite=format_finite(worst.values),
        worst_finite=tuple(format_finite(element.values) for element in outside),
        names=value.names if isinstance(value, Names) and outside else (),
        spread=worst.spread,
    )


def _nothing_to_judge(measure: str, bound: Bound, scale: str) -> VerdictRecord:
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


def _rank(elements: Sequence[Estimate], bound: Bound, scale: str) -> list[Estimate]:
    """Return the elements in the order of their margins, the worst first. On a logarithmic scale, zero is below all others."""

    def margin(element: Estimate) -> float:
        is_lowest = scale == "log" and element.mean == 0 and not bound.holds(0)
        return -math.inf if is_lowest else _margin(element.mean, bound, scale)

    return sorted(elements, key=margin)


def _seeds_needed(elements: Sequence[Estimate], outside: Sequence[Estimate], bound: Bound, level: Level) -> float:
    """Return how many seeds would settle the verdict; 0 if it is settled.

    One element that is clearly outside settles a failure; a pass is settled once all elements are clearly inside.
    """
    if not outside:
        return max(_seeds_to_settle(element, bound, level) for element in elements)
    # An element outside was selected among all elements: see is_settled.
    shared = level.shared(len(elements))
    selected = [estimate(element.values, scale=element.scale, level=shared) for element in outside]
    return min(_seeds_to_settle(element, bound, shared) for element in selected)


def _seeds_to_settle(element: Estimate, bound: Bound, level: Level) -> float:
    """Return how many seeds would settle one element whose interval straddles an end of the bound; 0 if it straddles none."""
    ends = [end for end in (bound.low, bound.high) if end is not None and element.low < end < element.high]
    return max((seeds_to_settle(element, end, level=level) for end in ends), default=0)


def is_settled(value: Value, bound: Bound, *, level: Level) -> bool:
    """Whether the verdict is settled, so that no more seeds are drawn.

    A pass is settled if the intervals of all elements lie inside the bound. A failure is settled if the interval of one
    element lies outside. Among many elements one may lie outside by accident, so that its interval is computed at the level
    that all elements share (Bonferroni). The claim that all are inside needs no correction (Berger, Technometrics 24, 295
    (1982)).

    Args:
        value: Measured value.
        bound: Bound in the unit of the measure.
        level: Confidence level of the intervals of ``value``.

    Returns:
        True if more seeds would not change the verdict.
    """
    elements = _elements(value, level)
    shared = level.shared(len(elements)) if elements else level
    return any(_is_outside(e, bound, shared) for e in elements) or all(_is_inside(e, bound) for e in elements)


def _is_inside(value: Estimate, bound: Bound) -> bool:
    return bound.holds(value.low) and bound.holds(value.high)


def _is_outside(value: Estimate, bound: Bound, level: Level) -> bool:
    value = estimate(value.values, scale=value.scale, level=level)
    if math.isnan(value.low):
        # One seed has no interval. Its verdict is settled only if further seeds cannot change the mean.
        return not bound.holds(value.mean) and not _can_change(value)
    below = bound.low is not None and value.high < bound.low
    above = bound.high is not None and value.low > bound.high
    return below or above


def _can_change(value: Estimate) -> bool:
    """Whether further seeds can change the mean: infinity, NaN and the zero of a log-scale measure stay."""
    return math.isfinite(value.mean) and (value.scale != "log" or value.mean > 0)


def _elements(value: Value, level: Level) -> Sequence[Estimate]:
    """Return the estimates that must lie in the bound. The number of names is one of them."""
    if isinstance(value, Estimate):
        return [value]
    if isinstance(value, Names):
        return [estimate([float(count) for count in value.counts], name=format_names(value.names, 3), level=level)]
    return list(value.values()) if isinstance(value, Profile) else list(value)


def _margin(value: float, bound: Bound, scale: str) -> float:
    """Return the distance to the nearest end of the bound: negative outside, -inf for NaN, logarithmic for log-scale values."""
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


def first_outside(growth: Sequence[float], bound: Bound) -> int | None:
    """Return the first step, in backward order, at which the accumulated log gain leaves the bound.

    Args:
        growth: Growth rate of each step in program order, nats.
        bound: Bound on the accumulated log gain, nats.

    Returns:
        Index of the step, or None if the accumulated log gain stays in the bound.
    """
    total = 0.0
    for index in range(len(growth) - 1, -1, -1):
        total += growth[index]
        if not bound.holds(total):
            return index
    return None
