"""What a report says about a group of factors: where it is, what it does to the gradient, and which numbers explain that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from ..records.factors import FactorRecord, GateRecord
from ..records.names import template, with_stars
from ..records.text import exp_or_infinity, format_number
from .factor_groups import (
    LEAST_DEVIATION,
    FactorGroup,
    closed_gates,
    determining,
    is_gru,
    is_unusual_gain,
    places,
    unlike_weights,
    with_branches,
)

__all__ = ["details", "factor_name", "group_effect", "group_name", "part_of_total", "weight_lines"]

TYPICAL = 0.2
"""Relative deviation of a seed's log gain from the mean up to which the parts of one are those of the other."""


def factor_name(factor: FactorRecord) -> str:
    """Return the module of a factor, and its operations if the module does more."""
    return group_name(FactorGroup((factor,)))


def group_name(group: FactorGroup) -> str:
    """Return the modules of a group, with the operations if these do not follow from the class of the modules."""
    first, place = group.first, group.place
    if first.kind not in {"entrywise", "other"} or _is_named_for(first):
        return place
    return f"{' × '.join(first.operations[:4])} in {place}"


def _is_named_for(factor: FactorRecord) -> bool:
    """Return whether the class of a module says which operation it performs, as ``ReLU`` does."""
    kind = factor.module_kind.lower()
    return len(factor.operations) == 1 and bool(factor.module) and factor.operations[0].lower() in kind


def group_effect(group: FactorGroup, along: str = "depth") -> str:
    """Return what the members of a group do to the gradient, along ``"depth"`` or ``"time"``."""
    first, many = group.first, len({member.module for member in group.members}) > 1
    each = " each" if many else f" per {'time step' if along == 'time' else 'call'}" if len(group.members) > 1 else ""
    gain = format_number(exp_or_infinity(group.gain / len(group.members)))
    if first.slopes is not None and first.slopes.is_constant:
        by = first.slopes.rms if many else first.slopes.high
        return f"multipl{'y' if many else 'ies'} the gradient by {format_number(by)}{each}"
    if first.slopes is not None:
        return f"{'have' if many else 'has'} {_slopes_text(group)}"
    return f"multipl{'y' if many else 'ies'} the gradient by {gain}{each}"


def _slopes_text(group: FactorGroup) -> str:
    """Return the size of the slopes of a group, how many are zero, or which parameters set them."""
    slopes = [member.slopes for member in group.members if member.slopes is not None]
    text = f"slopes of rms {format_number(math.sqrt(fmean(s.rms**2 for s in slopes)))}"
    zeros = fmean(s.zeros for s in slopes)
    if zeros > 0.01:
        return f"{text}, {100 * zeros:.0f} % of them zero"
    read = list(dict.fromkeys(name for member in group.members for name in member.parameters))
    if read and group.first.operations == ("Mul",):
        low, high = min(s.low for s in slopes), max(s.high for s in slopes)
        return f"slopes from {format_number(low)} to {format_number(high)}, which {_determine(group, read)}"
    return text


def _determine(group: FactorGroup, read: Sequence[str]) -> str:
    """Return the parameters that set the slopes of a group, those that matter most with what a shift of their entries does."""
    most = determining(group.members)
    if not most:
        names = [form for form, _, _ in with_stars(read, read)]
        return f"{', '.join(names)} {'determine' if len(names) > 1 else 'determines'}"
    forms = {form: [name for name in read if template(name) == form] for form in most}
    names = [f"{places(forms[form])} ({gain:+.2g})" for form, gain in most.items()]
    verb = "determine" if len(names) > 1 else "determines"
    unit = f" (nats of gain for a shift by 1; {len(read) - len(names)} others less)" if len(read) > len(names) else ""
    return f"{', '.join(names)} {verb}{unit}"


def part_of_total(gain: float, total: float, mean: float | None = None) -> str:
    """Return the part of a factor in the log gain as text.

    >>> part_of_total(-8.9, -16.5), part_of_total(-16.5, -16.5), part_of_total(-17.6, -16.5)
    ('-8.9 of -16.5 nats', 'the whole log gain', '-17.6 nats, everything else +1.1')

    Args:
        gain: Gain of the factor, nats.
        total: Gain of all factors on the same seed.
        mean: Log gain, averaged over seeds, which the report shows. The part is that of this number if the seed is typical.
    """
    if mean is not None and total and abs(mean / total - 1) < TYPICAL:
        gain, total = gain * mean / total, mean
    decimals = 1 if abs(total) >= 10 else 2
    part, whole = round(gain, decimals), round(total, decimals)
    if part == whole:
        return "the whole log gain"
    if abs(part) > abs(whole):
        return f"{part:+.{decimals}f} nats, everything else {whole - part:+.{decimals}f}"
    return f"{part:+.{decimals}f} of {whole:+.{decimals}f} nats"


# What the numbers of a group say ----------------------------------------------------------------------------------


def details(group: FactorGroup, factors: Sequence[FactorRecord] = ()) -> Iterator[str]:
    """Yield what the numbers of a group say about its gain. Those on plain weights follow, with what they ought to be."""
    first = group.first
    gates = closed_gates(group.members)
    if gates and not math.isfinite(first.forget_bias):
        yield _closed_gate(gates[0])
    elif first.kind == "gated":
        yield from _gate_lines(group)
    elif first.kind == "normalization":
        yield from _normalization_lines(group)
    elif first.branches:
        yield from _branch_lines(first, unlike_weights(factors))
    elif first.kind == "weights" and len(group.members) == 1:
        yield from weight_lines(group)
    yield from _rewritten_lines(group)
    for buffer in dict.fromkeys(buffer for member in group.members for buffer in member.buffers):
        size = f"rows sum to {format_number(buffer.row_sum)} on average" if math.isfinite(buffer.row_sum) else ""
        size = size or f"entries have rms {format_number(buffer.rms)}"
        yield f"the signal is multiplied with the buffer {buffer.name}, whose {size}"


def _rewritten_lines(group: FactorGroup) -> Iterator[str]:
    """Yield which of the parameters of a group the forward pass has written, with the range of their means."""
    means: dict[str, list[float]] = {}
    for member in with_branches(group.members):
        for name, mean in zip(member.parameters, member.parameter_means):
            if name in member.rewritten:
                means.setdefault(template(name), []).append(mean)
    names = [name for member in with_branches(group.members) for name in member.rewritten]
    if means:
        texts = []
        for form, values in means.items():
            low, high = min(values), max(values)
            size = (
                f"mean {format_number(low)}" if low == high else f"means {format_number(low)} to {format_number(high)}"
            )
            texts.append(f"{places([name for name in names if template(name) == form])} ({size})")
        yield f"the first forward pass has changed {', '.join(texts)}, which it reads"


def _closed_gate(gate: GateRecord) -> str:
    """Return a line on a sigmoid that is nearly closed or open, with what is added in front of it."""
    if gate.constant:
        where = gate.module or "the model"
        reason = f"the constant {format_number(gate.constant)} in the forward code of {where} is added in front of it"
    else:
        which = f"part {gate.part + 1} of {gate.parts} of {gate.bias}" if gate.parts > 1 else gate.bias
        reason = f"{which} has mean {format_number(gate.bias_mean)}"
    return f"a sigmoid is {format_number(gate.mean)} on average: {reason}"


def weight_lines(group: FactorGroup) -> Iterator[str]:
    """Yield a line on the size of the weights of a group; none if it has no weights."""
    rms, inputs = group.weight_rms, group.first.fan_in
    if math.isfinite(rms) and group.weights:
        gain = format_number(group.gain_of_weights)
        yield f"{group.weights}: rms {format_number(rms)} over {inputs} inputs, rms × √inputs = {gain}"


def _gate_lines(group: FactorGroup) -> Iterator[str]:
    """Yield the gain of the recurrent weights of each gate, and what forget gates keep."""
    bias = group.first.forget_bias
    if not math.isfinite(bias):
        yield from weight_lines(group)
    else:
        yield from (f"{line} (1 if each gate's is orthogonal)" for line in weight_lines(group))
        kept = 1 / (1 + math.exp(-bias))
        gates, state = ("update", "state") if is_gru(group.first) else ("forget", "cell")
        yield f"{gates} gates of mean bias {format_number(bias)} keep {format_number(kept)} of the {state} per time step"
        misplaced = group.first.misplaced_bias
        if misplaced is not None:
            name, part = misplaced
            yield (
                f"{name} is large in part {part + 1} of {3 if is_gru(group.first) else 4}, and the {gates} gate's is part 2: "
                "other libraries have other orders of gates"
            )


def _normalization_lines(group: FactorGroup) -> Iterator[str]:
    """Yield the gain of a normalization if it is unusual, and what it divides by."""
    first = group.first
    deviation, eps = fmean(member.input_deviation for member in group.members), first.eps
    if first.group_size == 1:
        yield "it normalizes groups of one element"
        return
    if first.weight and is_unusual_gain(group.weight_rms):
        yield f"its gain {group.weights} has rms {format_number(group.weight_rms)}, where 1 is usual"
    if math.isfinite(eps) and eps > 0 and deviation**2 < 4 * eps:
        yield f"its inputs deviate by no more than √eps = {format_number(math.sqrt(eps))}"
    elif math.isfinite(deviation):
        yield f"its inputs deviate by {format_number(deviation)}, by which it divides"


def _branch_lines(factor: FactorRecord, unlike: tuple[FactorGroup, float] | None) -> Iterator[str]:
    """Yield the gain of a branch and of its skip connection, and what stands out in the branches."""
    pairs = sorted(zip(factor.branch_gains, factor.branches), key=lambda pair: len(pair[1]))
    (skip, on_skip), (branch, inner) = pairs[0], max(pairs[1:], key=lambda pair: pair[0])
    if not on_skip or all(f.kind in {"layout", "entrywise"} for f in on_skip):
        yield (
            f"its branch multiplies the gradient by {format_number(exp_or_infinity(branch))}, the skip connection by "
            f"{format_number(exp_or_infinity(skip))}"
        )
    if unlike is not None:
        group, usual = unlike
        gain = format_number(group.gain_of_weights)
        yield (
            f"in the branches, {group.weights} has rms {format_number(group.weight_rms)} over {group.first.fan_in} inputs: a "
            f"gain rms × √inputs of {gain}, where that of other weights is {format_number(usual)}"
        )
        return
    # A normalization divides by the size of its input, which others have made. It is at fault if its own gain is unusual.
    own = [f for f in inner if math.isfinite(f.gain) and (f.kind != "normalization" or is_unusual_gain(f.weight_rms))]
    largest = max(own, key=lambda f: f.gain * math.copysign(1, factor.gain), default=None)
    if largest is not None and abs(largest.gain) > LEAST_DEVIATION:
        alone = FactorGroup((largest,))
        yield f"in the branch, {group_name(alone)} {group_effect(alone)}"
        yield from details(alone)
