"""Judging a contract on the models of several seeds: which rules are broken, at a stated probability of a false alarm."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..records.names import template
from .assignment import Assignment, as_contract, assign
from .laws import Law
from .places import tensors_of
from .reading import Reading, look_of, read_model
from .rules import RuleLike
from .significance import correlation_probability, mean_probability, shape_probability, std_probability
from .statistics import TensorStatistics, statistics_of

__all__ = ["FALSE_ALARM", "Breach", "Judgement", "check_models", "pooled", "probabilities_of"]

FALSE_ALARM = 1e-6
"""Largest probability that a model which keeps its contract fails, over all tests of all its parameters."""


@dataclass(frozen=True, slots=True)
class Breach:
    """One part of a parameter that breaks its rule in one way."""

    reading: Reading
    kind: str
    """``"broken"`` (beyond chance), ``"std"``, ``"mean"``, ``"shape"``, ``"rows"``, ``"columns"``, ``"entries"``, ``"seeds"``,
    ``"layers"`` or ``"together"`` (the shape of all parameters of a rule)."""
    words: str = ""
    found: TensorStatistics | None = None
    """Statistics over all seeds; None where they do not matter."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Result of a check."""

    seeds: tuple[int, ...]
    model: str
    assignment: Assignment
    breaches: tuple[Breach, ...]
    tests: int
    """Number of tests that chance may fail."""
    totals: Mapping[tuple[str, str], int]
    """Number of judged parts by pattern and folded name."""
    facts: Mapping[str, tuple[int, ...]]
    """Numbers of the model's configuration."""
    names: tuple[str, ...] = ()
    """Names of the parameters."""

    @property
    def holds(self) -> bool:
        """Whether the model keeps the contract."""
        return not (self.breaches or self.assignment.unmatched or self.assignment.unused)


@dataclass(slots=True)
class _Gathered:
    """Readings of all seeds."""

    by_part: dict[tuple[str, str], list[Reading]] = field(default_factory=lambda: defaultdict(list))
    seeds: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the models of all seeds have in common."""

    assignment: Assignment
    model: str
    facts: Mapping[str, tuple[int, ...]]
    names: tuple[str, ...]


_Test = tuple[float, Breach]


def check_models(contract: Mapping[str, RuleLike], models: Iterable[tuple[int, nn.Module]]) -> Judgement:
    """Judge a contract on models of several seeds.

    Args:
        contract: Rules by pattern.
        models: Seed and model, one after the other; a model is not kept.

    Returns:
        The result.

    Raises:
        UsageError: The contract is invalid, or does not fit the shapes of the model.
    """
    gathered, known = _gathered(as_contract(contract), models)
    certain, tests = _certain(gathered), list(_tests(gathered))
    breaches = _unlikely(tests, {(b.reading.name, b.reading.label) for b in certain})
    totals: dict[tuple[str, str], int] = defaultdict(int)
    for readings in gathered.by_part.values():
        totals[readings[0].pattern, template(readings[0].name) + readings[0].label] += 1
    return Judgement(
        seeds=tuple(gathered.seeds),
        model=known.model,
        assignment=known.assignment,
        breaches=(*certain, *breaches),
        tests=len(tests),
        totals=dict(totals),
        facts=known.facts,
        names=known.names,
    )


def probabilities_of(
    contract: Mapping[str, RuleLike], models: Iterable[tuple[int, nn.Module]]
) -> list[tuple[str, float]]:
    """Return each test that chance may fail: its kind and its probability. Benchmarks count them.

    Args:
        contract: Rules by pattern.
        models: Seed and model, one after the other.

    Returns:
        Kind, as in :class:`Breach`, and probability.
    """
    gathered, _ = _gathered(as_contract(contract), models)
    return [(breach.kind, probability) for probability, breach in _tests(gathered)]


def _gathered(rules: Mapping[str, RuleLike], models: Iterable[tuple[int, nn.Module]]) -> tuple[_Gathered, _Known]:
    """Return the readings of all models, and what these have in common.

    Raises:
        UsageError: The models have different parameters.
    """
    gathered, known = _Gathered(), None
    for seed, model in models:
        tensors = tensors_of(model)
        assignment = assign(rules, tensors)
        if known is None:
            names = (*tensors.parameters, *tensors.parametrized)
            known = _Known(assignment, type(model).__name__, tensors.facts, names)
        elif assignment != known.assignment:
            msg = f"the models of all seeds must have the same parameters. That of seed {seed} has others than the first one."
            raise UsageError(msg)
        gathered.seeds.append(seed)
        for reading in read_model(rules, assignment.patterns, tensors):
            gathered.by_part[reading.name, reading.label].append(reading)
    assert known is not None, "there is at least one seed"
    return gathered, known


def _certain(gathered: _Gathered) -> list[Breach]:
    """Return the parts that break their rule beyond chance in some seed, each once."""
    broken = ((next((r for r in rs if r.broken), None), rs) for rs in gathered.by_part.values())
    found = []
    for reading, readings in broken:
        if reading is not None:
            count = sum(bool(r.broken) for r in readings)
            seeds = f" ({count} of {len(readings)} seeds)" if count < len(readings) else ""
            found.append(Breach(reading, "broken", reading.broken + seeds, _pooled_statistics(readings)))
    return found


def _unlikely(tests: Sequence[_Test], certain: set[tuple[str, str]]) -> list[Breach]:
    """Return the deviations that chance does not explain. A part whose moments are off is not judged further.

    The tests share the probability of a false alarm (Bonferroni).
    """
    limit = FALSE_ALARM / max(len(tests), 1)
    failed = [breach for probability, breach in tests if probability < limit]
    order = ("seeds", "layers", "rows", "columns", "std", "mean", "entries", "shape", "together")
    found: dict[tuple[str, str], Breach] = {}
    for breach in sorted(failed, key=lambda b: order.index(b.kind)):
        part = breach.reading.name, breach.reading.label
        blamed = {b.reading.pattern for b in found.values()} if breach.kind == "together" else set()
        if part not in certain and breach.reading.pattern not in blamed:
            found.setdefault(part, breach)
    return list(found.values())


def _tests(gathered: _Gathered) -> Iterator[_Test]:
    """Yield the probability of each deviation that chance may cause, and what it would mean."""
    for readings in gathered.by_part.values():
        yield from _tests_of_part(readings)
    yield from _pooled_shapes(gathered.by_part.values())
    yield from _pairs_of_layers(gathered)


def _tests_of_part(readings: Sequence[Reading]) -> Iterator[_Test]:
    first = readings[0]
    for reading in readings:
        yield from ((p, Breach(reading, kind)) for kind, p in reading.probabilities)
    yield from _between_seeds(readings)
    law, found = first.law, _pooled_statistics(readings)
    if law is None or found is None:
        return
    yield mean_probability(found, law, first.rounding), Breach(first, "mean", found=found)
    if found.count > 1:
        yield std_probability(found, law, first.rounding), Breach(first, "std", found=found)
    entries = [r.entries for r in readings if r.entries is not None]
    shape = shape_probability(torch.cat(entries).double(), law, first.rounding)
    yield shape, Breach(first, "shape", look_of(found), found)


def _between_seeds(readings: Sequence[Reading]) -> Iterator[_Test]:
    """Yield the correlations of the first model with that of each other seed."""
    first, *others = readings
    for other in others:
        if first.paired is not None and other.paired is not None:
            correlation = float(first.paired @ other.paired)
            words = f"not drawn again for each seed (correlation {correlation:.2f})"
            yield correlation_probability(correlation, len(first.paired)), Breach(first, "seeds", words)


def _pooled_shapes(parts: Iterable[Sequence[Reading]]) -> Iterator[_Test]:
    """Yield the shape of all entries of one rule together, in standard deviations."""
    groups: dict[tuple[str, tuple[float, ...]], list[Sequence[Reading]]] = defaultdict(list)
    for readings in parts:
        if readings[0].law is not None:
            groups[readings[0].pattern, readings[0].law.shape_name()].append(readings)
    for group in groups.values():
        if len(group) > 1:
            first = group[0][0]
            entries = torch.cat([_uniform_entries(reading) for readings in group for reading in readings])
            law = Law("uniform", 0.5, 12**-0.5, 1.8, 0.0, 1.0)
            rounding = max(r.rounding for readings in group for r in readings)
            together = torch.cat([_standardized(reading) for readings in group for reading in readings])
            words = f"{look_of(statistics_of(together))}, in units of the rule, over {len(group)} parameters together"
            yield shape_probability(entries, law, 2 * rounding), Breach(first, "together", words)


def _uniform_entries(reading: Reading) -> Tensor:
    """Return entries after the distribution function of their rule, which makes them uniform."""
    assert reading.law is not None and reading.entries is not None
    return reading.law.cdf(reading.entries.double())


def _standardized(reading: Reading) -> Tensor:
    """Return entries in standard deviations of their rule."""
    assert reading.law is not None and reading.entries is not None
    return (reading.entries.double() - reading.law.mean) / reading.law.std


def _pairs_of_layers(gathered: _Gathered) -> Iterator[_Test]:
    """Yield the correlation of each parameter with the most similar other one of the same shape, in the first model.

    The largest of k correlations counts k times.
    """
    groups: dict[tuple[int, ...], list[Reading]] = defaultdict(list)
    for readings in gathered.by_part.values():
        if readings[0].paired is not None:
            groups[readings[0].shape].append(readings[0])
    for group in groups.values():
        if len(group) < 2:
            continue
        rows = torch.stack([r.paired for r in group if r.paired is not None])
        correlations = (rows @ rows.T).tril(-1)
        largest = correlations.abs().max(1)
        for i in range(1, len(group)):
            j = int(largest.indices[i])
            words = f"the entries of {group[j].name} (correlation {float(correlations[i, j]):.2f})"
            probability = i * correlation_probability(float(largest.values[i]), rows.shape[1])
            yield min(1.0, probability), Breach(group[i], "layers", words)


def _pooled_statistics(readings: Sequence[Reading]) -> TensorStatistics | None:
    found = [r.statistics for r in readings if r.statistics is not None]
    return pooled(found) if len(found) == len(readings) else None


def pooled(found: Sequence[TensorStatistics]) -> TensorStatistics:
    """Return the statistics of the entries of several tensors together, whose entries are all finite.

    Args:
        found: Statistics of each tensor.

    Returns:
        Their statistics.
    """
    count = sum(s.count for s in found)
    mean = math.fsum(s.count * s.mean for s in found) / count
    shifts = [s.mean - mean for s in found]
    variance = math.fsum(s.count * (s.variance + d**2) for s, d in zip(found, shifts, strict=True)) / count
    # The third moments are left out: they are multiplied by small shifts.
    fourths = (s.count * (s.fourth + 6 * d**2 * s.variance + d**4) for s, d in zip(found, shifts, strict=True))
    return TensorStatistics(
        count=count,
        not_finite=sum(s.not_finite for s in found),
        zeros=sum(s.zeros for s in found),
        mean=mean,
        variance=variance,
        fourth=math.fsum(fourths) / count,
        low=min(s.low for s in found),
        high=max(s.high for s in found),
    )
