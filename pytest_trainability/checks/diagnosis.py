"""Likely cause of a failure: which factors of the chain's Jacobians make the gradient grow or shrink, and why they do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, median

from ..records.factors import FactorRecord
from ..records.reports import VerdictRecord
from ..records.text import exp_or_infinity, format_number
from .factor_groups import (
    FactorGroup,
    are_constants_of_the_design,
    explains_fair_part,
    factor_groups,
    gains_by_layer,
    is_made_by_others,
    outlier,
    vanishing,
)
from .factor_text import (
    details,
    factor_name,
    group_effect,
    group_name,
    part_of_total,
    weight_lines,
)

__all__ = ["diagnose", "is_about_growth"]

NEGLIGIBLE = 0.02
"""Absolute growth rate, in nats per step, below which the gradient counts as constant."""


def is_about_growth(verdict: VerdictRecord, explained_by_growth: int, gain: float) -> bool:
    """Return whether growth along the chain can explain a verdict that does not hold.

    A measure that increases with the log gain is too small if gradients shrink and too large if they grow. For a measure that
    decreases with the log gain it is the other way round.

    Args:
        verdict: A verdict that does not hold.
        explained_by_growth: 1 if the measure increases with the log gain, -1 if it decreases, 0 if it does not depend on it.
        gain: Log gain of the chain, nats.
    """
    if not explained_by_growth or verdict.elements == 0:
        return False
    if not (math.isfinite(gain) and math.isfinite(verdict.value)):
        return True
    too_small = verdict.low is not None and verdict.value < verdict.low
    shrinks = too_small == (explained_by_growth > 0)
    return gain < 0 if shrinks else gain > 0


def diagnose(
    growth: Sequence[float],
    names: Sequence[str],
    factors: Sequence[FactorRecord] = (),
    not_finite: Sequence[str] = (),
    *,
    along: str = "depth",
) -> list[str]:
    """Return lines on why the gradient grows or shrinks along the chain, those on the largest part first.

    Args:
        growth: Growth rate of each step, nats, in program order, averaged over seeds.
        names: Names of the steps.
        factors: Factors of the steps on one seed; none if the steps could not be taken apart.
        not_finite: Names of values that contain NaN or infinity, in the order of the forward pass, then of gradients.
        along: ``"depth"`` or ``"time"``.

    Returns:
        Lines of text; none if there is no growth to explain.
    """
    if not growth or len(growth) != len(names):
        return []
    blocked = vanishing(factors)
    for index in range(len(growth) - 1, -1, -1):
        if math.isnan(growth[index]) or growth[index] == math.inf:
            return [_not_finite(names[index], not_finite, factors)]
        if growth[index] == -math.inf:
            return [_blocked(blocked) if blocked is not None else f"{names[index]} passes no gradient"]
    if not factors or blocked is not None:
        return _of_steps(growth, names)
    total = sum(factor.gain for factor in factors)
    single = outlier(factors)
    if single is not None:
        return list(_of_group(FactorGroup((single,)), factors, total, math.fsum(growth), along))
    if abs(total) < NEGLIGIBLE * len(growth):
        return []
    return [*_of_steps(growth, names), *_of_groups(factors, total, math.fsum(growth), along)]


def _not_finite(step: str, names: Sequence[str], factors: Sequence[FactorRecord]) -> str:
    """Return the first value that is not finite, else the last factor, or step, that the gradient is not finite behind."""
    forward = [name for name in names if not name.startswith("gradient of ")]
    if forward:
        return f"first value that is not finite: {forward[0]}"
    last = next((factor for factor in reversed(factors) if not factor.gain < math.inf), None)
    if last is not None:
        is_root = bool({"Sqrt", "Pow", "LinalgVectorNorm"} & {*last.operations})
        why = " (the slope of a root is infinite at 0)" if is_root else ""
        return f"the gradient is not finite from {factor_name(last)} on: {' × '.join(last.operations[:6])}{why}"
    return f"the gradient is not finite from {step} on: check this step for overflow or NaN"


def _blocked(factor: FactorRecord) -> str:
    """Return why a factor passes no gradient."""
    place = factor_name(factor)
    if factor.group_size == 1:
        return f"{place} passes no gradient: it normalizes groups of one element, so that its output is constant"
    zeros = [name for name in factor.zero_parameters if name in factor.parameters]
    if zeros and factor.weight_rms != 0:
        return f"{place} passes no gradient: {zeros[0]} is zero"
    if factor.kind in {"weights", "normalization"} and factor.weight_rms == 0:
        what = "weight" if factor.kind == "weights" else "gain"
        return f"{place} passes no gradient: its {what} {factor.weight} is zero"
    if factor.kind == "weights":
        return f"{place} passes no gradient: the outputs of {factor.weight} do not depend on its inputs"
    if factor.branches:
        return f"{place} passes no gradient: both the branch and its skip connection are cut"
    return f"{place} passes no gradient: all its slopes are zero (dead units, or a step function)"


# Groups -----------------------------------------------------------------------------------------------------------


def _of_groups(factors: Sequence[FactorRecord], total: float, mean: float, along: str) -> Iterator[str]:
    """Yield lines on the groups of factors that explain a fair part of the total, largest first, and on the size of weights."""
    groups = factor_groups(factors)
    named = [group for group in groups if explains_fair_part(group.gain, total)]
    needed = list(_needed_weights(factors, groups, total, along))
    # Half of the slopes of a ReLU are zero, and a SIREN has its frequency in every layer: the weights have to make up for this.
    is_usual = any(group.first.slopes is not None and 0.3 < group.first.slopes.zeros < 0.7 for group in named)
    is_usual = is_usual or are_constants_of_the_design(factors)
    yield from needed if is_usual else ()
    for group in sorted(named, key=lambda group: -abs(group.gain))[:2]:
        yield from _of_group(group, factors, total, mean, along)
    yield from () if is_usual else needed


def _of_group(
    group: FactorGroup, factors: Sequence[FactorRecord], total: float, mean: float, along: str
) -> Iterator[str]:
    """Yield what a group does to the gradient and its part in the log gain, then the numbers that explain it."""
    yield f"{group_name(group)} {group_effect(group, along)}: {part_of_total(group.gain, total, mean)}"
    yield from details(group, factors)


def _needed_weights(
    factors: Sequence[FactorRecord], groups: Sequence[FactorGroup], total: float, along: str
) -> Iterator[str]:
    """Yield the rms that weights would need for a gain of 1 at the measured slopes, where their scale decides the gain."""
    weights = [group for group in groups if group.first.kind == "weights" and group.first.weight]
    kinds = {group.first.kind for group in groups}
    if not weights or not kinds <= {"weights", "entrywise", "other"}:
        yield from (line for g in weights if explains_fair_part(g.gain, total) for line in weight_lines(g))
        return
    if is_made_by_others(factors):
        return
    count = sum(len(group.members) for group in weights)
    largest = max(weights, key=lambda group: len(group.members))
    alike = largest.of_most_frequent_fan_in
    factor = exp_or_infinity(-total / count)
    if alike is not largest:
        # The first layer, whose fan-in is another one, may follow a rule of its own.
        by_layer = dict(gains_by_layer(factors))
        factor = exp_or_infinity(-median(by_layer[member.weight] for member in alike.members))
    if 0.01 < factor < 100:
        slopes = _typical_slopes(groups)
        at_slopes = f"at slopes of rms {format_number(slopes)} " if slopes is not None else ""
        now = alike.weight_rms
        what = "recurrent weights" if along == "time" else "weights"
        place = largest.place if alike is largest else alike.place_among(largest)
        yield (
            f"{what} of rms {format_number(now)} over {alike.first.fan_in} inputs in {place}: {at_slopes}a gain of 1 "
            f"needs an rms of about {format_number(now * factor)}"
        )


def _typical_slopes(groups: Sequence[FactorGroup]) -> float | None:
    """Return the rms over all slopes that are no constant factor; None without any."""
    squares = [
        member.slopes.rms**2 for g in groups for member in g.members if member.slopes and not member.slopes.is_constant
    ]
    return math.sqrt(fmean(squares)) if squares else None


# Steps only -------------------------------------------------------------------------------------------------------


def _of_steps(growth: Sequence[float], names: Sequence[str]) -> list[str]:
    """Return a line on the growth of the steps: one that stands out, else the average."""
    index = _outlying_step(growth)
    if index is not None:
        return [f"{names[index]} alone contributes {part_of_total(growth[index], sum(growth))}"]
    rate = fmean(growth)
    if abs(rate) < NEGLIGIBLE:
        return []
    steadily = "steadily" if median(abs(g - rate) for g in growth) < abs(rate) / 2 else "on average"
    if abs(rate) > 100:
        return [f"every step changes the gradient by {rate:+.0f} nats, {steadily}"]
    return [f"every step multiplies the gradient by {format_number(math.exp(rate))}, {steadily}"]


def _outlying_step(growth: Sequence[float]) -> int | None:
    """Return the step with more than half of the total growth and a rate far from the others; None if there is none."""
    if len(growth) < 4:
        return None
    index = max(range(len(growth)), key=lambda i: abs(growth[i]))
    middle = median(growth)
    spread = median(abs(g - middle) for g in growth)
    rest = sum(growth) - growth[index]
    far = abs(growth[index] - middle) > 10 * max(spread, NEGLIGIBLE)
    return index if far and abs(growth[index]) > abs(rest) else None
