"""Likely cause of a failure: which factors of the chain's Jacobians make the gradient grow or shrink, and why they do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean, median

from ..records.factors import FactorRecord, GateRecord
from ..records.names import folded, template, with_stars
from ..records.reports import VerdictRecord
from ..records.text import format_names, format_number

__all__ = [
    "FactorGroup",
    "are_constants_of_the_design",
    "closed_gates",
    "determining",
    "diagnose",
    "factor_groups",
    "gains_by_layer",
    "is_about_growth",
    "is_gru",
    "is_made_by_others",
    "outlier",
    "places",
    "unlike_weights",
    "usual_gain",
    "vanishing",
    "with_branches",
]

# Note [Causes explain their share]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# The gains of all factors add up to the log gain of the chain, so that the part of each can be stated in nats. A factor is named
# as a cause if it acts in the direction of the failure and explains a fair part of it: a single factor if it deviates from its
# peers by more than half of the total, a group of like factors if it contributes more than a quarter.

NEGLIGIBLE = 0.02
"""Absolute growth rate, in nats per step, below which the gradient counts as constant."""
SINGLE_SHARE, GROUP_SHARE = 0.5, 0.25
"""Parts of the total from which a single factor, or a group of them, is named. See Note [Causes explain their share]."""
UNLIKE = 4.0
"""Ratio of the gains of weights in branches, ``rms * sqrt(fan-in)``, from which on those of one layer are named."""
FEW_OTHERS = 3
"""Number of modules from which on those that belong to a part of a group are listed, and not those that do not."""
FEWEST_NUMBERS = 3
"""Number of layers from which on one number in the code of all of them is a part of the design."""
TYPICAL = 0.2
"""Relative deviation of a seed's log gain from the mean up to which the parts of one are those of the other."""
LEAST_DEVIATION = 0.7
"""Smallest deviation of a single factor that is named, in nats: a factor of two."""


@dataclass(frozen=True, slots=True)
class FactorGroup:
    """Factors with the same operations, in modules whose names differ by numbers only."""

    members: tuple[FactorRecord, ...]

    @property
    def first(self) -> FactorRecord:
        """The first factor in program order."""
        return self.members[0]

    @property
    def gain(self) -> float:
        """Sum of the gains, nats."""
        return sum(member.gain for member in self.members)

    @property
    def weight_rms(self) -> float:
        """Root mean square over the weights of all members."""
        return math.sqrt(fmean(member.weight_rms**2 for member in self.members))

    @property
    def place(self) -> str:
        """The modules, such as ``blocks.*.mlp``, with their class."""
        return _place([member.module for member in self.members], self.first.module_kind)

    def place_among(self, group: FactorGroup) -> str:
        """Return the modules, such as ``5 × Linear (layers.*, not layers.0)``, where these are only a part of a group."""
        names = dict.fromkeys(member.module for member in self.members)
        others = [name for name in dict.fromkeys(member.module for member in group.members) if name not in names]
        few = f"{places([*names])}, not {', '.join(others)}" if len(others) < FEW_OTHERS else ", ".join(folded(names))
        return f"{len(names)} × {self.first.module_kind} ({few})"

    @property
    def of_most_frequent_fan_in(self) -> FactorGroup:
        """The members whose weights have the most frequent number of inputs; the group itself if all of them have."""
        numbers = Counter(member.fan_in for member in self.members)
        if len(numbers) == 1:
            return self
        usual, _ = numbers.most_common(1)[0]
        return FactorGroup(tuple(member for member in self.members if member.fan_in == usual))

    @property
    def weights(self) -> str:
        """The names of the weights, such as ``blocks.*.mlp.up.weight``."""
        names = list(dict.fromkeys(member.weight for member in self.members))
        return ", ".join(form for form, _, _ in with_stars(names, names))


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
    """Return one to three lines on why the gradient grows or shrinks along the chain.

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
        return [_single(single, total, math.fsum(growth)), *_details(FactorGroup((single,)), factors)]
    if abs(total) < NEGLIGIBLE * len(growth):
        return []
    return [*_of_steps(growth, names), *_of_groups(factors, total, math.fsum(growth), along)]


def _not_finite(step: str, holders: Sequence[str], factors: Sequence[FactorRecord]) -> str:
    forward = [holder for holder in holders if not holder.startswith("gradient of ")]
    if forward:
        return f"first value that is not finite: {forward[0]}"
    last = next((factor for factor in reversed(factors) if not factor.gain < math.inf), None)
    if last is not None:
        roots = (
            " (the slope of a root is infinite at 0)"
            if {"Sqrt", "Pow", "LinalgVectorNorm"} & {*last.operations}
            else ""
        )
        return f"the gradient is not finite from {_named(last)} on: {' × '.join(last.operations[:6])}{roots}"
    return f"the gradient is not finite from {step} on: check this step for overflow or NaN"


def vanishing(factors: Sequence[FactorRecord]) -> FactorRecord | None:
    """Return the factor behind which nothing is left of the gradient; None if there is none."""
    return next((factor for factor in factors if factor.gain == -math.inf), None)


def _blocked(factor: FactorRecord) -> str:
    """Return why a factor passes no gradient."""
    place = _named(factor)
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


# Single factors and groups ----------------------------------------------------------------------------------------


def factor_groups(factors: Sequence[FactorRecord]) -> list[FactorGroup]:
    """Return the factors by operations and modules, in the order of the first of each; without those that move entries only."""
    found: dict[tuple[object, ...], list[FactorRecord]] = {}
    for factor in factors:
        if factor.kind != "layout":
            key = (factor.kind, factor.operations, template(factor.module), factor.module_kind)
            found.setdefault(key, []).append(factor)
    return [FactorGroup(tuple(members)) for members in found.values()]


def outlier(factors: Sequence[FactorRecord]) -> FactorRecord | None:
    """Return the factor that deviates most from its peers if that explains the total; None if there is none.

    Peers are the factors with the same operations, or those of the same kind if there are fewer than three. The normal gain of
    a factor without peers is 0.
    """
    total = sum(factor.gain for factor in factors)
    candidates = [factor for factor in factors if factor.kind != "layout"]
    deviations = [factor.gain - usual_gain(factor, candidates) for factor in candidates]
    if not deviations:
        return None
    index = max(range(len(deviations)), key=lambda i: deviations[i] * math.copysign(1, total))
    explained = deviations[index] * math.copysign(1, total)
    rest = abs(total) - explained
    return (
        candidates[index] if explained > max(SINGLE_SHARE * abs(total), LEAST_DEVIATION) and rest < explained else None
    )


def usual_gain(factor: FactorRecord, factors: Sequence[FactorRecord]) -> float:
    """Return the median gain of a factor's peers, nats; 0 if it has none. See :func:`outlier`."""
    others = [f for f in factors if f is not factor and f.kind == factor.kind]
    same = [f.gain for f in others if f.operations == factor.operations]
    if len(same) >= 2:
        return median(same)
    # Products and normalizations have the same part in every layer. Functions of each entry need not.
    alike = [f.gain for f in others] if factor.kind in {"weights", "normalization", "parallel"} else []
    return median(alike) if len(alike) >= 2 else 0.0


def with_branches(factors: Sequence[FactorRecord]) -> Iterator[FactorRecord]:
    """Yield factors, each followed by those of its parallel paths."""
    for factor in factors:
        yield factor
        for branch in factor.branches:
            yield from with_branches(branch)


def unlike_weights(factors: Sequence[FactorRecord]) -> tuple[FactorGroup, float] | None:
    """Return the weights in branches that are much larger than all others there, where gradients grow, and the gain of these.

    In a residual network the skip connection hides the gain of each weight in a branch. Small weights are usual: last
    projections are often scaled down.

    Args:
        factors: Factors of the steps.

    Returns:
        The weights of the layers of one name, and the gain ``rms * sqrt(fan-in)`` of the others that is nearest to theirs; None
        if there are none.
    """
    if sum(factor.gain for factor in factors) <= 0:
        return None
    members: dict[str, list[FactorRecord]] = {}
    inside = [f for factor in factors for branch in factor.branches for f in with_branches(branch)]
    for factor in inside:
        for name, rms, inputs in factor.products:
            # Two products may be multiplied with each other, as in a gated unit, and are one factor then.
            alone = replace(factor, kind="weights", weight=name, weight_rms=rms, fan_in=inputs)
            members.setdefault(template(name), []).extend([alone] if rms > 0 else [])
    groups = sorted((FactorGroup(tuple(m)) for m in members.values() if m), key=_gain_of_weights)
    usual = _gain_of_weights(groups[-2]) if len(groups) > 1 else math.inf
    return (groups[-1], usual) if groups and _gain_of_weights(groups[-1]) > UNLIKE * usual else None


def _gain_of_weights(group: FactorGroup) -> float:
    return group.weight_rms * math.sqrt(group.first.fan_in)


def _single(factor: FactorRecord, total: float, mean: float) -> str:
    return f"{_named(factor)} {_effect(factor)}: {_nats(factor.gain, total, mean)}"


def _of_groups(factors: Sequence[FactorRecord], total: float, mean: float, along: str) -> Iterator[str]:
    """Yield lines on the groups of factors that explain a fair part of the total, largest first, and on the size of weights."""
    groups = factor_groups(factors)
    named = [group for group in groups if _is_named(group, total)]
    needed = list(_needed_weights(factors, groups, total, along))
    # Half of the slopes of a ReLU are zero, and a SIREN has its frequency in every layer: the weights have to make up for this.
    is_usual = any(group.first.slopes is not None and 0.3 < group.first.slopes.zeros < 0.7 for group in named)
    is_usual = is_usual or are_constants_of_the_design(factors)
    yield from needed if is_usual else ()
    for group in sorted(named, key=lambda group: -abs(group.gain))[:2]:
        yield f"{_group_name(group)} {_group_effect(group, along)}: {_nats(group.gain, total, mean)}"
        yield from _details(group, factors)
    yield from () if is_usual else needed


def _needed_weights(
    factors: Sequence[FactorRecord], groups: Sequence[FactorGroup], total: float, along: str
) -> Iterator[str]:
    """Yield the rms that weights would need for a gain of 1 at the measured slopes, where their scale decides the gain."""
    weights = [group for group in groups if group.first.kind == "weights" and group.first.weight]
    kinds = {group.first.kind for group in groups}
    if not weights or not kinds <= {"weights", "entrywise", "other"}:
        yield from (line for group in weights for line in _weight_lines(group) if _is_named(group, total))
        return
    if is_made_by_others(factors):
        return
    count = sum(len(group.members) for group in weights)
    largest = max(weights, key=lambda group: len(group.members))
    alike = largest.of_most_frequent_fan_in
    factor = math.exp(-total / count)
    if alike is not largest:
        # The first layer, whose fan-in is another one, may follow a rule of its own.
        by_layer = dict(gains_by_layer(factors))
        factor = _exp(-median(by_layer[member.weight] for member in alike.members))
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


def is_made_by_others(factors: Sequence[FactorRecord]) -> bool:
    """Return whether the weights of plain layers have a usual size, and other factors explain most of the growth.

    Those are products that do more than these layers, such as a sum over neighbours, products with a buffer, and numbers that the
    signal is multiplied with. A number or a function in every layer may be what the weights ought to make up for: it does not
    count.

    Args:
        factors: Factors of the steps, in program order.
    """
    groups = factor_groups(factors)
    weights = [group for group in groups if group.first.kind == "weights"]
    layers = sum(len(group.members) for group in weights)

    def is_other(group: FactorGroup) -> bool:
        if group.first.kind == "other":
            return bool(group.first.products or group.first.buffers) or not _is_in_every_layer(group, layers)
        slopes = group.first.slopes
        is_number = slopes is not None and (slopes.is_constant or bool(group.first.buffers))
        return is_number and not _is_in_every_layer(group, layers)

    total = sum(factor.gain for factor in factors)
    explained = sum(group.gain for group in groups if is_other(group)) * math.copysign(1, total)
    are_usual = all(0.5 <= _gain_of_weights(group) <= 2 for group in weights if group.first.fan_in)
    return bool(weights) and are_usual and explained > SINGLE_SHARE * abs(total)


def _is_in_every_layer(group: FactorGroup, layers: int) -> bool:
    """Return whether a group has as many members as there are layers with weights; one layer, the last one, may lack it."""
    return abs(len(group.members) - layers) <= 1


def are_constants_of_the_design(factors: Sequence[FactorRecord]) -> bool:
    """Return whether code multiplies with the same number in every layer, as that of a SIREN does.

    A number in modules that do nothing else is a part that can be taken out.
    """
    layers = sum(factor.kind == "weights" for factor in factors)
    constant = (
        group for group in factor_groups(factors) if all(f.slopes and f.slopes.is_constant for f in group.members)
    )
    inline = (group for group in constant if not (group.first.parameters or group.first.is_whole_module))
    everywhere = (group for group in inline if _is_in_every_layer(group, layers))
    numbers = ([f.slopes.high for f in group.members if f.slopes] for group in everywhere)
    return any(len(n) >= FEWEST_NUMBERS and math.isclose(min(n), max(n), rel_tol=1e-3) for n in numbers)


def gains_by_layer(factors: Sequence[FactorRecord]) -> Iterator[tuple[str, float]]:
    """Yield each weight with the gain of its factor and of those that follow up to the next weight, nats.

    Args:
        factors: Factors of the steps, in program order.
    """
    place = 0
    numbered: list[tuple[int, FactorRecord]] = []
    for factor in factors:
        place += factor.kind == "weights"
        numbered.append((place, factor))
    for number, layer in groupby(numbered, key=lambda pair: pair[0]):
        members = [factor for _, factor in layer]
        if number and members[0].weight:
            yield members[0].weight, sum(factor.gain for factor in members)


def _is_named(group: FactorGroup, total: float) -> bool:
    """Return whether a group explains a fair part of the total."""
    return group.gain * math.copysign(1, total) > GROUP_SHARE * abs(total)


def _typical_slopes(groups: Sequence[FactorGroup]) -> float | None:
    """Return the rms over all slopes that are no constant factor; None without any."""
    squares = [
        member.slopes.rms**2 for g in groups for member in g.members if member.slopes and not member.slopes.is_constant
    ]
    return math.sqrt(fmean(squares)) if squares else None


# Words ------------------------------------------------------------------------------------------------------------


def _nats(gain: float, total: float, mean: float | None = None) -> str:
    """Return the part of a factor in the log gain as text.

    >>> _nats(-8.9, -16.5), _nats(-16.5, -16.5), _nats(-17.6, -16.5)
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


def _place(modules: Sequence[str], kind: str) -> str:
    names = list(dict.fromkeys(modules))
    if names == [""]:
        return kind
    where = places([name or kind for name in names])
    count = f"{len(names)} × " if len(names) > 1 else ""
    return f"{count}{kind} ({where})" if count else f"{where} ({kind})"


def places(names: Sequence[str]) -> str:
    """Return names of modules for a report, with ``*`` for numbers: ``blocks.*.mlp``.

    The modules of an ``nn.Sequential`` are called 0, 2, 4. A lone star would say nothing, and the first of them stand for all.
    """
    forms = [form for form, _, _ in with_stars(names, names)]
    return ", ".join(forms) if forms != ["*"] else format_names(names)


def _named(factor: FactorRecord) -> str:
    """Return the module of a factor, and its operations if the module does more."""
    return _group_name(FactorGroup((factor,)))


def _group_name(group: FactorGroup) -> str:
    """Return the modules of a group, with the operations if these do not follow from the class of the modules."""
    first, place = group.first, group.place
    if first.kind not in {"entrywise", "other"} or _is_named_for(first):
        return place
    return f"{' × '.join(first.operations[:4])} in {place}"


def _is_named_for(factor: FactorRecord) -> bool:
    """Return whether the class of a module says which operation it performs, as ``ReLU`` does."""
    kind = factor.module_kind.lower()
    return len(factor.operations) == 1 and bool(factor.module) and factor.operations[0].lower() in kind


def _effect(factor: FactorRecord) -> str:
    return _group_effect(FactorGroup((factor,)))


def _group_effect(group: FactorGroup, along: str = "depth") -> str:
    """Return what the members of a group do to the gradient."""
    first, many = group.first, len({member.module for member in group.members}) > 1
    each = " each" if many else f" per {'time step' if along == 'time' else 'call'}" if len(group.members) > 1 else ""
    gain = format_number(_exp(group.gain / len(group.members)))
    if first.slopes is not None and first.slopes.is_constant:
        by = first.slopes.rms if many else first.slopes.high
        return f"multipl{'y' if many else 'ies'} the gradient by {format_number(by)}{each}"
    if first.slopes is not None:
        return f"{'have' if many else 'has'} {_slopes_text(group)}"
    return f"multipl{'y' if many else 'ies'} the gradient by {gain}{each}"


def _slopes_text(group: FactorGroup) -> str:
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


def determining(factors: Sequence[FactorRecord]) -> dict[str, float]:
    """Return the parameters that set the slopes of factors, by the change of the gain per unit of a shift, the largest first.

    Those with less than a quarter of the largest effect are left out. None are returned if the effects are not known.

    Args:
        factors: Factors of a group.
    """
    effects: dict[str, list[float]] = {}
    for factor in factors:
        for name, effect in zip(factor.parameters, factor.sensitivities):
            effects.setdefault(template(name), []).append(effect)
    means = {form: fmean(values) for form, values in effects.items()}
    largest = max(map(abs, means.values()), default=0.0)
    ranked = sorted(means, key=lambda form: -abs(means[form]))
    return {form: means[form] for form in ranked if largest and abs(means[form]) > GROUP_SHARE * largest}


def _details(group: FactorGroup, factors: Sequence[FactorRecord] = ()) -> Iterator[str]:
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
        yield from _weight_lines(group)
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


def closed_gates(factors: Sequence[FactorRecord]) -> list[GateRecord]:
    """Return the gates of factors that something in front of them closes or opens, the most extreme one first."""
    gates = (gate for factor in with_branches(factors) for gate in factor.gates if gate.bias or gate.constant)
    return sorted(gates, key=lambda gate: min(gate.mean, 1 - gate.mean))


def _closed_gate(gate: GateRecord) -> str:
    if gate.constant:
        where = gate.module or "the model"
        reason = f"the constant {format_number(gate.constant)} in the forward code of {where} is added in front of it"
    else:
        which = f"part {gate.part + 1} of {gate.parts} of {gate.bias}" if gate.parts > 1 else gate.bias
        reason = f"{which} has mean {format_number(gate.bias_mean)}"
    return f"a sigmoid is {format_number(gate.mean)} on average: {reason}"


def _weight_lines(group: FactorGroup) -> Iterator[str]:
    rms, inputs = group.weight_rms, group.first.fan_in
    if math.isfinite(rms) and group.weights:
        gain = format_number(rms * math.sqrt(inputs))
        yield f"{group.weights}: rms {format_number(rms)} over {inputs} inputs, rms × √inputs = {gain}"


def _gate_lines(group: FactorGroup) -> Iterator[str]:
    """Yield the gain of the recurrent weights of each gate, and what forget gates keep."""
    bias = group.first.forget_bias
    if not math.isfinite(bias):
        yield from _weight_lines(group)
    else:
        yield from (f"{line} (1 if each gate's is orthogonal)" for line in _weight_lines(group))
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


def is_gru(factor: FactorRecord) -> bool:
    """Return whether a factor is that of a GRU, whose update gate keeps the state."""
    return factor.module_kind.startswith("GRU")


def _normalization_lines(group: FactorGroup) -> Iterator[str]:
    first = group.first
    deviation, eps = fmean(member.input_deviation for member in group.members), first.eps
    if first.group_size == 1:
        yield "it normalizes groups of one element"
        return
    if first.weight and _is_unusual(group.weight_rms):
        yield f"its gain {group.weights} has rms {format_number(group.weight_rms)}, where 1 is usual"
    if math.isfinite(eps) and eps > 0 and deviation**2 < 4 * eps:
        yield f"its inputs deviate by no more than √eps = {format_number(math.sqrt(eps))}"
    elif math.isfinite(deviation):
        yield f"its inputs deviate by {format_number(deviation)}, by which it divides"


def _is_unusual(rms: float) -> bool:
    """Return whether the root mean square of a normalization's gain is far from one; False if it is unknown."""
    return rms <= 0.5 or rms >= 2


def _branch_lines(factor: FactorRecord, unlike: tuple[FactorGroup, float] | None) -> Iterator[str]:
    """Yield the gain of a branch and of its skip connection, and what stands out in the branches."""
    pairs = sorted(zip(factor.branch_gains, factor.branches), key=lambda pair: len(pair[1]))
    (skip, on_skip), (branch, inner) = pairs[0], max(pairs[1:], key=lambda pair: pair[0])
    if not on_skip or all(f.kind in {"layout", "entrywise"} for f in on_skip):
        yield (
            f"its branch multiplies the gradient by {format_number(_exp(branch))}, the skip connection by "
            f"{format_number(_exp(skip))}"
        )
    if unlike is not None:
        group, usual = unlike
        gain = format_number(_gain_of_weights(group))
        yield (
            f"in the branches, {group.weights} has rms {format_number(group.weight_rms)} over {group.first.fan_in} inputs: a "
            f"gain rms × √inputs of {gain}, where that of other weights is {format_number(usual)}"
        )
        return
    # A normalization divides by the size of its input, which others have made. It is at fault if its own gain is unusual.
    own = [f for f in inner if math.isfinite(f.gain) and (f.kind != "normalization" or _is_unusual(f.weight_rms))]
    largest = max(own, key=lambda f: f.gain * math.copysign(1, factor.gain), default=None)
    if largest is not None and abs(largest.gain) > LEAST_DEVIATION:
        yield f"in the branch, {_named(largest)} {_effect(largest)}"
        yield from _details(FactorGroup((largest,)))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


# Steps only -------------------------------------------------------------------------------------------------------


def _of_steps(growth: Sequence[float], names: Sequence[str]) -> list[str]:
    """Return a line on the growth of the steps: one that stands out, else the average."""
    index = _outlying_step(growth)
    if index is not None:
        return [f"{names[index]} alone contributes {_nats(growth[index], sum(growth))}"]
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
