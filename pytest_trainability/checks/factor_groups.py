"""Groups of like factors, which of them stand out, and what their numbers say about the growth of the gradient."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean, median

from ..records.factors import FactorRecord, GateRecord
from ..records.names import folded, template, with_stars
from ..records.text import format_names

__all__ = [
    "LEAST_DEVIATION",
    "FactorGroup",
    "are_constants_of_the_design",
    "closed_gates",
    "determining",
    "explains_fair_part",
    "factor_groups",
    "gains_by_layer",
    "is_gru",
    "is_made_by_others",
    "is_unusual_gain",
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

SINGLE_SHARE, GROUP_SHARE = 0.5, 0.25
"""Parts of the total from which a single factor, or a group of them, is named. See Note [Causes explain their share]."""
LEAST_DEVIATION = 0.7
"""Smallest deviation of a single factor that is named, in nats: a factor of two."""
UNLIKE = 4.0
"""Ratio of the gains of weights in branches, ``rms * sqrt(fan-in)``, from which on those of one layer are named."""
FEW_OTHERS = 3
"""Number of modules from which on those that belong to a part of a group are listed, and not those that do not."""
FEWEST_NUMBERS = 3
"""Number of layers from which on one number in the code of all of them is a part of the design."""
LEAST_EFFECT = 0.25
"""Part of the largest effect of a parameter on the gain from which on others are returned with it."""


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
    def gain_of_weights(self) -> float:
        """Gain ``rms * sqrt(fan-in)`` of weights that are drawn independently of each other."""
        return self.weight_rms * math.sqrt(self.first.fan_in)

    @property
    def place(self) -> str:
        """The modules, such as ``blocks.*.mlp``, with their class."""
        names, kind = list(dict.fromkeys(member.module for member in self.members)), self.first.module_kind
        if names == [""]:
            return kind
        where = places([name or kind for name in names])
        return f"{len(names)} × {kind} ({where})" if len(names) > 1 else f"{where} ({kind})"

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


def places(names: Sequence[str]) -> str:
    """Return names of modules for a report, with ``*`` for numbers: ``blocks.*.mlp``.

    The modules of an ``nn.Sequential`` are called 0, 2, 4. A lone star would say nothing, and the first of them stand for all.
    """
    forms = [form for form, _, _ in with_stars(names, names)]
    return ", ".join(forms) if forms != ["*"] else format_names(names)


def factor_groups(factors: Sequence[FactorRecord]) -> list[FactorGroup]:
    """Return the factors by operations and modules, in the order of the first of each; without those that move entries only."""
    found: dict[tuple[object, ...], list[FactorRecord]] = {}
    for factor in factors:
        if factor.kind != "layout":
            key = (factor.kind, factor.operations, template(factor.module), factor.module_kind)
            found.setdefault(key, []).append(factor)
    return [FactorGroup(tuple(members)) for members in found.values()]


def with_branches(factors: Sequence[FactorRecord]) -> Iterator[FactorRecord]:
    """Yield factors, each followed by those of its parallel paths."""
    for factor in factors:
        yield factor
        for branch in factor.branches:
            yield from with_branches(branch)


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


# What stands out --------------------------------------------------------------------------------------------------


def outlier(factors: Sequence[FactorRecord]) -> FactorRecord | None:
    """Return the factor that deviates most from its peers if that explains the total; None if there is none.

    Peers are the other factors with the same operations. If there are fewer than two, they are those of the same kind, for
    products with weights, normalizations and parallel paths. The usual gain of a factor with fewer than two peers is 0.
    """
    total = sum(factor.gain for factor in factors)
    candidates = [factor for factor in factors if factor.kind != "layout"]
    deviations = [factor.gain - usual_gain(factor, candidates) for factor in candidates]
    if not deviations:
        return None
    index = max(range(len(deviations)), key=lambda i: deviations[i] * math.copysign(1, total))
    explained = deviations[index] * math.copysign(1, total)
    rest = abs(total) - explained
    is_cause = explained > max(SINGLE_SHARE * abs(total), LEAST_DEVIATION) and rest < explained
    return candidates[index] if is_cause else None


def usual_gain(factor: FactorRecord, factors: Sequence[FactorRecord]) -> float:
    """Return the median gain of a factor's peers, nats; 0 if it has fewer than two. See :func:`outlier`."""
    others = [f for f in factors if f is not factor and f.kind == factor.kind]
    same = [f.gain for f in others if f.operations == factor.operations]
    if len(same) >= 2:
        return median(same)
    # Products and normalizations have the same part in every layer. Functions of each entry need not.
    alike = [f.gain for f in others] if factor.kind in {"weights", "normalization", "parallel"} else []
    return median(alike) if len(alike) >= 2 else 0.0


def vanishing(factors: Sequence[FactorRecord]) -> FactorRecord | None:
    """Return the factor behind which nothing is left of the gradient; None if there is none."""
    return next((factor for factor in factors if factor.gain == -math.inf), None)


def explains_fair_part(gain: float, total: float) -> bool:
    """Return whether the gain of a group explains a fair part of the total. See Note [Causes explain their share].

    Args:
        gain: Sum of the gains of the group, nats.
        total: Gain of all factors.
    """
    return gain * math.copysign(1, total) > GROUP_SHARE * abs(total)


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
    groups = sorted((FactorGroup(tuple(m)) for m in members.values() if m), key=lambda group: group.gain_of_weights)
    usual = groups[-2].gain_of_weights if len(groups) > 1 else math.inf
    return (groups[-1], usual) if groups and groups[-1].gain_of_weights > UNLIKE * usual else None


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
    are_usual = all(0.5 <= group.gain_of_weights <= 2 for group in weights if group.first.fan_in)
    return bool(weights) and are_usual and explained > SINGLE_SHARE * abs(total)


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


def _is_in_every_layer(group: FactorGroup, layers: int) -> bool:
    """Return whether a group has as many members as there are layers with weights; one layer, the last one, may lack it."""
    return abs(len(group.members) - layers) <= 1


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
    return {form: means[form] for form in ranked if largest and abs(means[form]) > LEAST_EFFECT * largest}


def is_unusual_gain(rms: float) -> bool:
    """Return whether the root mean square of a normalization's gain is far from one; False if it is unknown."""
    return rms <= 0.5 or rms >= 2


def closed_gates(factors: Sequence[FactorRecord]) -> list[GateRecord]:
    """Return the gates of factors that something in front of them closes or opens, the most extreme one first."""
    gates = (gate for factor in with_branches(factors) for gate in factor.gates if gate.bias or gate.constant)
    return sorted(gates, key=lambda gate: min(gate.mean, 1 - gate.mean))


def is_gru(factor: FactorRecord) -> bool:
    """Return whether a factor is that of a GRU, whose update gate keeps the state."""
    return factor.module_kind.startswith("GRU")
