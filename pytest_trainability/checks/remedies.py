"""Changes of a model that might bring growth along the chain back to normal. Whether they do is for a measurement to show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, median

from ..records.causes import CauseRecord
from ..records.factors import FactorRecord
from ..records.names import template
from ..records.text import format_names, format_number
from .factor_groups import (
    are_constants_of_the_design,
    closed_gates,
    determining,
    explains_fair_part,
    factor_groups,
    gains_by_layer,
    is_gru,
    is_made_by_others,
    is_unusual_gain,
    outlier,
    unlike_weights,
    usual_gain,
    vanishing,
    with_branches,
)
from .remedy import SAME_SIZE, Remedy, indexed

__all__ = ["LARGEST_FACTOR", "remedies", "remedies_of_causes"]

LARGEST_FACTOR = 1e4
"""Largest factor, and inverse of the smallest one, by which a remedy rescales weights."""

USUAL_EPS = 1e-5
"""Constant that PyTorch's normalizations add to the variance."""


def remedies(factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield changes that might help, the most specific one first.

    Args:
        factors: Factors of the steps, in program order.
    """
    scaling = {factor.weight: factor.scaled_by for factor in with_branches(factors) if factor.scaled_by}
    for remedy in _of_factors(factors):
        is_computed = remedy.kind == "scale" and scaling.keys() & {*remedy.targets}
        yield remedy.by_other_names(scaling) if is_computed else remedy


def _of_factors(factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    blocked = vanishing(factors)
    if blocked is not None:
        yield from _of_zeros(blocked)
    if not factors or not all(math.isfinite(factor.gain) for factor in factors):
        return
    single = outlier(factors)
    specific = [*_closed_gates([single]), *_of_single(single, factors)] if single is not None else []
    if specific:
        yield from specific
        return
    yield from _closed_gates(factors)
    yield from _of_buffers(factors)
    yield from _of_unlike_weights(factors)
    yield from _biases(factors)
    is_plain = not {factor.kind for factor in factors} & {"normalization", "attention", "gated", "parallel"}
    of_weights = (
        [r for r in _weights(factors) if r.kind != "scale" or not is_made_by_others(factors)] if is_plain else []
    )
    if are_constants_of_the_design(factors):
        yield from (remedy for remedy in of_weights if remedy.kind == "scale")
    yield from _constants(factors)
    yield from _skips(factors)
    yield from _parameters_of_slopes(factors)
    yield from _epsilons(factors)
    yield from _gains_of_normalizations(factors)
    yield from _gates(factors)
    yield from _recurrences(factors)
    if any(factor.kind == "parallel" for factor in factors):
        yield from _branches(factors)
    yield from of_weights


def remedies_of_causes(causes: Iterable[CauseRecord]) -> Iterator[Remedy]:
    """Yield changes that might remove causes other than growth, each alone and then all of them together.

    Args:
        causes: Causes of what has failed.
    """
    found = list(dict.fromkeys(remedy for cause in causes for remedy in _of_cause(cause)))
    yield from found
    covered: set[str] = set()
    parts = []
    for remedy in found:
        for one in remedy.parts or (remedy,):
            part = one.without(covered)
            if part.kind != "layer norm" and (part.targets or part.kind == "standard inputs"):
                parts.append(part)
                covered |= {*part.targets}
    if len(parts) > 1 and len(found) > 1:
        yield Remedy("several", tuple(sorted(covered)), parts=tuple(parts))


def _of_cause(cause: CauseRecord) -> Iterator[Remedy]:
    if cause.is_inline:
        yield Remedy("inline", (cause.multiplier,), (cause.factor,), note="behind the head")
    elif cause.multiplier:
        yield Remedy("output", (cause.multiplier,), (1 / cause.factor,))
    if cause.callers:
        yield Remedy("function", cause.callers, tuple(map(float, cause.calls)), function=cause.function)
    if cause.normalizations:
        yield Remedy("eps", cause.normalizations, (USUAL_EPS,) * len(cause.normalizations))
    for value in cause.values:
        yield Remedy("fill", cause.filled, (value,) * len(cause.filled))
    if cause.adding:
        yield Remedy("sum", cause.adding, cause.constants)
    if cause.input_deviation:
        yield Remedy("standard inputs", (), (cause.input_mean, cause.input_deviation))
    if cause.weights:
        yield Remedy("scale", cause.weights, cause.factors, cause.rms)
    if cause.padding:
        yield Remedy("padding", cause.padding)
    if cause.in_order:
        yield _of_ordered_zeros(cause)
    else:
        yield from _of_values(cause)
    if cause.module:
        yield Remedy("layer norm", (cause.module,))


def _of_values(cause: CauseRecord) -> Iterator[Remedy]:
    """Yield that parameters are drawn anew, are one, or are zero."""
    if cause.drawn:
        yield Remedy("draw", cause.drawn, cause.deviations)
    if cause.ones:
        yield _ones(cause.ones, cause.zeros)
    elif cause.zeros:
        yield Remedy("zeros", cause.zeros)


def _of_ordered_zeros(cause: CauseRecord) -> Remedy:
    """Return one remedy for all zeros, of which those at the end may turn out to be needed as they are."""
    parts = tuple(part for one in _of_values(cause) for part in one.parts or (one,))
    targets = tuple(name for part in parts for name in part.targets)
    whole = parts[0] if len(parts) == 1 else Remedy("several", targets, parts=parts)
    return replace(whole, in_order=cause.in_order)


def _ones(gains: tuple[str, ...], shifts: tuple[str, ...], rms: tuple[float, ...] = ()) -> Remedy:
    """Return that parameters start from one, together with shifts that start from zero if there are any."""
    ones = Remedy("ones", gains, rms=rms)
    return Remedy("several", (*gains, *shifts), parts=(ones, Remedy("zeros", shifts))) if shifts else ones


def _of_single(factor: FactorRecord, factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield what gives a factor that stands out the gain of its peers."""
    if factor.kind == "weights" and factor.weight:
        change = math.exp(usual_gain(factor, factors) - factor.gain)
        yield Remedy("scale", (factor.weight,), (change,), (factor.weight_rms,), note="as its peers")
    yield from _of_constants([factor])


def _closed_gates(factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield that nothing is added in front of sigmoids that are closed or open because of it, or a bias of the other sign.

    Half of the conventions for a gate keep what it opens, and the other half what it closes.
    """
    gates = closed_gates(factors)
    biased = {gate.bias: gate for gate in gates if gate.bias}
    numbers = {gate.module: gate.constant for gate in gates if gate.constant}
    for part in dict.fromkeys((gate.part, gate.parts) for gate in biased.values()):
        of_part = {name: gate.bias_mean for name, gate in biased.items() if (gate.part, gate.parts) == part}
        names, opposite = tuple(of_part), -fmean(of_part.values())
        yield Remedy("gate bias", names, (*part, 0.0)) if part[1] > 1 else Remedy("zeros", names)
        yield Remedy("gate bias", names, (*part, opposite), note="the other sign")
    if numbers:
        yield Remedy("sum", tuple(numbers), tuple(numbers.values()))


def _of_buffers(factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield that a buffer is scaled to a gain of 1, where products with it explain the growth, such as those with neighbours."""
    total = sum(factor.gain for factor in factors)
    for group in factor_groups(factors):
        buffers = dict.fromkeys(buffer for member in group.members for buffer in member.buffers)
        if buffers and explains_fair_part(group.gain, total):
            names, change = tuple(buffer.name for buffer in buffers), math.exp(-group.gain / len(group.members))
            factor = change ** (1 / max(1, len(group.first.buffers)))
            sums = [format_number(factor * buffer.row_sum) for buffer in buffers if math.isfinite(buffer.row_sum)]
            note = f"its rows then sum to {sums[0]} on average" if len(names) == len(sums) == 1 else ""
            yield Remedy("scale", names, (factor,) * len(names), note=note)


def _of_unlike_weights(factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield that weights in branches that stand out get the size of the others there."""
    found = unlike_weights(factors)
    if found is not None:
        group, gain = found
        sizes = {member.weight: member.weight_rms for member in group.members}
        factor = gain / group.gain_of_weights
        factor_of_each = (factor,) * len(sizes)
        as_others = Remedy("scale", tuple(sizes), factor_of_each, tuple(sizes.values()))
        yield replace(as_others, note="as the others in the branches")
        yield replace(as_others, adjustable=True, is_minimal=True)


def _of_zeros(blocked: FactorRecord) -> Iterator[Remedy]:
    """Yield that parameters start from one, where nothing passes because they are zero."""
    if blocked.zero_parameters and blocked.weight not in blocked.zero_parameters:
        yield Remedy("ones", blocked.zero_parameters)
    elif blocked.kind == "normalization" and blocked.zero_parameters:
        gains = tuple(name for name in blocked.zero_parameters if not name.endswith("bias"))
        leaf = blocked.shift_of_one.rpartition(".")[2]
        yield _ones(gains, tuple(f"{name.rpartition('.')[0]}.{leaf}" for name in gains) if leaf else ())
    elif blocked.zero_parameters and blocked.fan_in:
        deviation = 1 / math.sqrt(blocked.fan_in)
        yield Remedy("draw", blocked.zero_parameters, (deviation,) * len(blocked.zero_parameters))


def _biases(factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield biases of zero, where they and not the weights move most entries to where an activation passes little.

    That is the case if a bias is larger than the product that it is added to, and the slopes behind it are at fault.
    """
    total = sum(factor.gain for factor in factors)
    behind = {f.weight: after for f, after in pairwise(factors) if f.weight and after.kind == "entrywise"}
    larger = [f for f in factors if f.weight in behind and f.bias and f.bias_rms > f.product_rms]
    lost = sum(behind[f.weight].gain for f in larger)
    if larger and lost < 0 and explains_fair_part(lost, total):
        first = larger[0]
        sizes = [format_number(size) for size in (first.bias_rms, first.product_rms)]
        note = f"the rms of {indexed(first.bias)}, {sizes[0]}, exceeds that of the product with the weights, {sizes[1]}"
        yield Remedy("zeros", tuple(dict.fromkeys(f.bias for f in larger)), note=note)


def _constants(factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield that numbers are removed with which a group of like modules multiplies, where these explain the growth."""
    total = sum(factor.gain for factor in factors)
    for group in factor_groups(factors):
        is_named = explains_fair_part(group.gain, total)
        # The start of a parameter that sets the number, such as a logarithm of it, is a change by itself.
        if is_named and all(not f.parameters or _is_mean(f, f.slopes.high) for f in group.members if f.slopes):
            yield from _of_constants(group.members)


def _of_constants(members: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield that numbers are removed with which factors multiply, or that parameters start from one that are such numbers."""
    slopes = [factor.slopes for factor in members]
    constants = [s.high for s in slopes if s is not None and s.is_constant and s.high]
    if len(constants) < len(slopes):
        return
    numbers = dict(zip((factor.module for factor in members), constants))
    are_parameters = all(_is_mean(factor, number) for factor, number in zip(members, constants))
    whole = all(factor.module and factor.is_whole_module for factor in members)
    if are_parameters:
        yield Remedy("ones", tuple(dict.fromkeys(factor.parameters[0] for factor in members)))
    elif whole:
        yield Remedy("output", tuple(numbers), tuple(1 / number for number in numbers.values()))
    else:
        yield _inline(members[0], numbers)


def _is_mean(factor: FactorRecord, number: float) -> bool:
    """Return whether a factor multiplies with the only parameter that it reads, or with the mean of it."""
    return len(factor.parameters) == 1 and math.isclose(factor.parameter_means[0], number, rel_tol=1e-3)


def _inline(first: FactorRecord, numbers: Mapping[str, float]) -> Remedy:
    note = first.operations[0] if first.module else f"{first.operations[0]} in {first.module_kind}"
    return Remedy("inline", tuple(numbers), tuple(numbers.values()), note=note)


def _skips(factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield that numbers are removed with which skip connections are multiplied, where these explain the growth."""
    total, gain = sum(factor.gain for factor in factors), 0.0
    found: dict[str, tuple[FactorRecord, float]] = {}
    for factor in factors:
        for path, along in zip(factor.branches, factor.branch_gains):
            constant = [f for f in path if f.kind != "layout"]
            slopes = constant[0].slopes if len(constant) == 1 else None
            if slopes is not None and slopes.is_constant and not constant[0].parameters:
                gain += along
                found[constant[0].module] = constant[0], slopes.high
    if found and explains_fair_part(gain, total):
        first, _ = next(iter(found.values()))
        numbers = {name: number for name, (_, number) in found.items()}
        yield replace(_inline(first, numbers), note="the skip connection")


def _parameters_of_slopes(factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield another start of a parameter that sets the slopes of factors, such as a decay, where these explain the growth."""
    total = sum(factor.gain for factor in factors)
    for group in factor_groups(factors):
        is_named = explains_fair_part(group.gain, total)
        members = [f for f in group.members if f.parameters] if group.first.kind == "entrywise" and is_named else []
        means = {
            name: mean for f in members for name, mean in zip(f.parameters, f.parameter_means) if math.isfinite(mean)
        }
        if means and "Norm" in group.first.module_kind:
            yield Remedy("ones", tuple(means))
        elif means and total:
            yield from _shifts(members, means, total)


def _shifts(members: Sequence[FactorRecord], means: Mapping[str, float], total: float) -> Iterator[Remedy]:
    """Yield a shift of each parameter that sets slopes, first of those that are zero: nobody has chosen their start."""
    effects = determining(members)
    if not effects:
        step = math.copysign(0.5, -total)
        yield Remedy("shift", tuple(means), (step,) * len(means), tuple(means.values()), adjustable=True)
    named = {form: [name for name in means if template(name) == form] for form in effects}
    for form in sorted(named, key=lambda form: any(means[name] for name in named[form])):
        names = named[form]
        step = math.copysign(0.5, -total * effects[form])
        rms = tuple(means[name] for name in names)
        yield Remedy("shift", tuple(names), (step,) * len(names), rms, adjustable=True)


def _epsilons(factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield the usual ε of normalizations, where it decides what they divide by."""
    norms = [f for f in with_branches(factors) if f.kind == "normalization" and f.eps > USUAL_EPS]
    found = dict.fromkeys(f.module for f in norms if f.module and f.input_deviation**2 < 4 * f.eps)
    if found:
        yield Remedy("eps", tuple(found), (USUAL_EPS,) * len(found))


def _gains_of_normalizations(factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield that the gains of normalizations start at one, where they do not."""
    everywhere = [f for f in with_branches(factors) if f.kind == "normalization" and f.weight]
    unusual = {f.weight: f.weight_rms for f in everywhere if f.weight_rms > 0 and is_unusual_gain(f.weight_rms)}
    if unusual:
        shifts = dict.fromkeys(f.shift_of_one for f in everywhere if f.weight in unusual and f.shift_of_one)
        yield _ones(tuple(unusual), tuple(shifts), tuple(unusual.values()))


def _gates(factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield orthogonal recurrent weights for each gate of an LSTM or GRU, and a larger bias of the gate that keeps the state."""
    gated = [f for f in factors if f.kind == "gated" and f.weight and math.isfinite(f.forget_bias)]
    if not gated:
        return
    are_gru = is_gru(gated[0])
    elsewhere = {name: float(part) for f in gated if f.misplaced_bias for name, part in [f.misplaced_bias]}
    if elsewhere:
        note = f"the second is that of the {'update' if are_gru else 'forget'} gate"
        yield Remedy("other gate", tuple(elsewhere), tuple(elsewhere.values()), note=note)
    weights = {name: f.weight_rms for f in gated for name in _recurrent_weights(f) or [f.weight]}
    if any(not 0.9 < f.weight_rms * math.sqrt(f.fan_in) < 1.1 for f in gated):
        number = (3.0 if are_gru else 4.0,) * len(weights)
        yield Remedy("orthogonal gates", tuple(weights), number, rms=tuple(weights.values()))
    biases = tuple(name.replace("weight_hh", "bias_ih") for name in weights)
    yield Remedy(
        "update bias" if are_gru else "forget bias",
        biases,
        (math.log(max(len(factors), 3) - 1),) * len(biases),
        note="ln(T - 1) for T steps",
    )


def _recurrent_weights(factor: FactorRecord) -> list[str]:
    """Return the recurrent weights of all layers of PyTorch's recurrent modules that a factor reads."""
    return [name for name in factor.parameters if name.rpartition(".")[2].startswith("weight_hh")]


def _recurrences(factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield recurrent weights of another size for steps of several layers, whose factors are no plain products."""
    several = [f for f in factors if f.kind == "other" and _recurrent_weights(f)]
    if several and len(several) == len(factors):
        names = tuple(dict.fromkeys(name for f in several for name in _recurrent_weights(f)))
        change = math.exp(min(max(-sum(f.gain for f in several) / len(several), -9.0), 9.0))
        yield Remedy("scale", names, (change,) * len(names), adjustable=True)


def _branches(factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield smaller last projections of the branches, or gains of normalizations that come after these."""
    last: dict[str, float] = {}
    for factor in factors:
        for branch in factor.branches:
            scaled = [f for f in branch if f.kind in {"weights", "normalization"} and f.weight]
            if scaled:
                last[scaled[-1].weight] = scaled[-1].weight_rms
    if last:
        change = 1 / math.sqrt(len(last))
        yield Remedy(
            "scale",
            tuple(last),
            (change,) * len(last),
            tuple(last.values()),
            adjustable=True,
            is_minimal=True,
            is_fallback=True,
        )
    norms = {f.kind for f in with_branches(factors)} & {"normalization"}
    first = [
        next((f.module for f in branch if f.kind == "weights"), "") for f in factors for branch in f.branches if branch
    ]
    if not norms and any(first):
        yield Remedy("layer norm", tuple(dict.fromkeys(name for name in first if name)), is_fallback=True)


def _weights(factors: Sequence[FactorRecord]) -> Iterator[Remedy]:
    """Yield other weights for a plain chain: all by one factor, each layer by its own, or a LayerNorm before each."""
    weights = {factor.weight: factor for factor in factors if factor.kind == "weights" and factor.weight}
    if not weights:
        return
    rms = tuple(factor.weight_rms for factor in weights.values())
    yield from _of_one_rule(weights, dict(gains_by_layer(factors)))
    total, count = sum(factor.gain for factor in factors), sum(factor.kind == "weights" for factor in factors)
    change = math.exp(min(max(-total / count, -9.0), 9.0))
    yield Remedy("scale", tuple(weights), (change,) * len(weights), rms, adjustable=True)
    each = {name: math.exp(min(max(-gain, -9.0), 9.0)) for name, gain in gains_by_layer(factors)}
    if len(each) == len(weights) > 1:
        note = "layer by layer, as LSUV does: Mishkin & Matas, ICLR 2016"
        yield Remedy("scale", tuple(each), tuple(each.values()), rms, adjustable=True, note=note)
    modules = tuple(dict.fromkeys(factor.module for factor in weights.values() if factor.module))
    if modules:
        are_convolutions = any("Conv" in factor.module_kind for factor in weights.values())
        note = "nn.GroupNorm(1, channels) before a convolution" if are_convolutions else ""
        yield Remedy("layer norm", modules, note=note)


def _of_one_rule(weights: Mapping[str, FactorRecord], gains: Mapping[str, float]) -> Iterator[Remedy]:
    """Yield a gain of 1 for most weights, if others have neither their size nor their gain: those were drawn by another rule.

    The first layer of a SIREN is drawn wider than the others, and is right where these are not.
    """
    usual, _ = Counter(factor.fan_in for factor in weights.values()).most_common(1)[0]
    alike = [factor for factor in weights.values() if factor.fan_in == usual]
    size = math.sqrt(fmean(factor.weight_rms**2 for factor in alike))

    def is_of_the_rule(factor: FactorRecord) -> bool:
        ratio = factor.weight_rms / size if size else math.nan
        ratios = ratio, ratio * math.sqrt(factor.fan_in / usual)
        return any(1 / SAME_SIZE < ratio < SAME_SIZE for ratio in ratios)

    chosen = {name: factor.weight_rms for name, factor in weights.items() if usual and is_of_the_rule(factor)}
    others = [name for name in weights if name not in chosen]
    if len(chosen) > len(others) > 0 and gains.keys() >= chosen.keys():
        change = math.exp(min(max(-median(gains[name] for name in chosen), -9.0), 9.0))
        note = f"{format_names(others)} stay{'' if len(others) > 1 else 's'}"
        names, sizes = tuple(chosen), tuple(chosen.values())
        yield Remedy("scale", names, (change,) * len(names), sizes, is_estimate=True, note=note)
