"""What was measured once, and whether it still is: entries of a baseline, and their comparison.

A change must be both larger than a tolerance and no accident. Where the same weights were drawn on the same kind of machine
by the same torch, unchanged code gives the same numbers up to arithmetic: nothing is an accident. Where only the weights are
the same, dropout may have been drawn otherwise, and seeds are compared in pairs. Where they are not, two samples are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias

from ..records.reports import BaselineChange

__all__ = ["Entry", "NameSet", "Recorded", "Series", "compare", "environment_key", "find_entry"]

FALSE_ALARMS = 1e-4
"""Probability that unchanged code is said to have changed, where chance has a part in it."""
AMPLIFIED = 1e-3
"""Relative size of round-off, carried through the network, from which arithmetic has a part in it."""
ROUND_OFF = 10
"""Elements of a profile this many units of round-off below the largest are compared as if they were there: a gradient
that is zero but for arithmetic, such as that of a bias which a softmax cancels, differs between any two machines."""

_ARITHMETIC = ("platform", "threads", "torch")
_REPEATABLE = ("device", "dtype", "platform", "torch")
"""What must be the same for dropout to be drawn alike."""
_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


@dataclass(frozen=True, slots=True)
class Series:
    """One measure's numbers, per seed."""

    unit: str
    scale: Literal["linear", "log"]
    values: Mapping[str, tuple[float | None, ...]]
    """By element, ``""`` for a scalar; None for a seed whose model did not have it."""


@dataclass(frozen=True, slots=True)
class NameSet:
    """Names of what is at fault on every seed: what is dropped at random now and then is not."""

    names: tuple[str, ...]


Recorded: TypeAlias = "Series | NameSet"


@dataclass(frozen=True, slots=True)
class Entry:
    """What was measured of one model in one test."""

    environment: Mapping[str, str]
    """Where: ``device`` (its class), ``dtype``, ``platform``, ``torch`` (its version), ``threads``."""
    conditions: Mapping[str, str]
    """How: ``chain``, ``frame``, ``mode``. To be read, not compared."""
    seeds: tuple[int, ...]
    draws: tuple[str, ...]
    """A digest per seed of how the weights were drawn and of the inputs; behind a space one of what the run drew."""
    measures: Mapping[str, Recorded]

    @property
    def key(self) -> str:
        """Of the environment, in a file that holds several."""
        return environment_key(self.environment)


def environment_key(environment: Mapping[str, str]) -> str:
    """Return what tells environments apart whose numbers may differ: ``cpu float32``.

    Platform, version and threads change arithmetic, and masks of dropout, only.
    """
    first = ("device", "dtype")
    rest = sorted(set(environment) - {*first, *_ARITHMETIC})
    return " ".join([*(environment[name] for name in first), *(f"{name}={environment[name]}" for name in rest)])


def find_entry(entries: Mapping[str, Entry], new: Entry) -> Entry | None:
    """Return, of the entries of one measurement by environment, the one to compare with.

    Where none was recorded on this kind of device, another one's numbers are the same up to arithmetic.
    """
    if new.key in entries:
        return entries[new.key]
    device = {"device": new.environment["device"]}
    elsewhere = (e for _, e in sorted(entries.items()) if environment_key({**e.environment, **device}) == new.key)
    return next(elsewhere, None)


def compare(old: Entry, new: Entry, tolerances: Mapping[str, float]) -> tuple[BaselineChange, ...]:
    """Return what has changed, in the order in which ``new`` names the measures, the largest shift of a profile first.

    Args:
        old: The baseline.
        new: What was measured now.
        tolerances: By measure, in its unit; of a scale in nats of ratio; 0 where there is none. Above it a
            significant shift is a change.

    Returns:
        Shifts, and measures or elements that have vanished or are new. Empty where nothing has changed.

    Source: Student, Biometrika 6, 1 (1908), for pairs that need not repeat; Welch, Biometrika 34, 28 (1947), otherwise,
    with the degrees of freedom of two samples as small as the smaller one at most. The error is shared out over measures
    and, within a measure, over elements (Bonferroni).
    """
    pairs = _pairs(old, new)
    repeatable = all(old.draws[i] == new.draws[j] for i, j in pairs) and _is_repeatable(old, new)
    names = list(dict.fromkeys([*new.measures, *old.measures]))
    error = FALSE_ALARMS / max(len(names), 1)
    found: list[BaselineChange] = []
    chains = old.conditions.get("chain", ""), new.conditions.get("chain", "")
    if "growth_rate" not in names and chains[0] != chains[1]:
        # Nothing else tells that a chain along time has become longer or shorter.
        found += _renamed("chain", chains[:1], chains[1:])
    for name in names:
        before, after = old.measures.get(name), new.measures.get(name)
        if before is None or after is None:
            found.append(BaselineChange(name, "new" if before is None else "vanished"))
        elif isinstance(before, NameSet) and isinstance(after, NameSet):
            found += _renamed(name, set(before.names) - set(after.names), set(after.names) - set(before.names))
        elif isinstance(before, Series) and isinstance(after, Series):
            found += _renamed(name, _always(before) - set(after.values), _always(after) - set(before.values))
            shared = [element for element in after.values if element in before.values]
            tolerance = max(tolerances.get(name, 0.0), STORED)
            test = _Test(pairs, repeatable, tolerance, error / max(len(shared), 1))
            # One for both: what is zero in both must not move with what it is set beside.
            low = max(_round_off(old, before), _round_off(new, after))
            found += sorted(_shifts(name, shared, before, after, low, test), key=lambda change: -_size(change))
        else:
            found += [BaselineChange(name, "vanished"), BaselineChange(name, "new")]
    return tuple(found)


def _pairs(old: Entry, new: Entry) -> list[tuple[int, int]]:
    """Return where in both the same weights were drawn from the same seed; nothing where that is not so of all in common."""
    common = [(old.seeds.index(seed), index) for index, seed in enumerate(new.seeds) if seed in old.seeds]
    whole = len(common) == min(len(old.seeds), len(new.seeds))
    alike = all(old.draws[i].split(" ")[0] == new.draws[j].split(" ")[0] for i, j in common)
    return common if whole and alike else []


def _is_repeatable(old: Entry, new: Entry) -> bool:
    """Whether unchanged code gives the same numbers on the same draws: dropout is drawn alike, and round-off stays small.

    A perturbation of the first state grows as the gradient does, by the log gain at most. Chaos over hundreds of steps
    makes round-off as large as the numbers.
    """
    if any(old.environment.get(name) != new.environment.get(name) for name in _REPEATABLE):
        return False
    gains = [entry.measures.get("log_gain") for entry in (old, new)]
    values = [v for gain in gains if isinstance(gain, Series) for row in gain.values.values() for v in row]
    largest = max((v for v in values if v is not None and v != -math.inf), default=0.0)
    epsilon = _EPSILON.get(old.environment["dtype"], 1.0)
    return largest < math.log(AMPLIFIED / epsilon)


def _renamed(measure: str, vanished: Iterable[str], new: Iterable[str]) -> Iterator[BaselineChange]:
    if vanished:
        yield BaselineChange(measure, "vanished", elements=tuple(sorted(vanished)))
    if new:
        yield BaselineChange(measure, "new", elements=tuple(sorted(new)))


def _always(series: Series) -> set[str]:
    """Return the elements of every seed: one that is dropped at random now and then may be missing by chance."""
    return {element for element, values in series.values.items() if None not in values}


def _size(change: BaselineChange) -> float:
    size = abs(change.shift)
    return math.inf if math.isnan(size) else size


def _round_off(entry: Entry, series: Series) -> float:
    """Return the smallest value of a positive profile that is more than round-off."""
    if series.scale != "log" or len(series.values) < 2:
        return 0.0
    largest = max(
        (v for v in chain.from_iterable(series.values.values()) if v is not None and math.isfinite(v)), default=0
    )
    return ROUND_OFF * _EPSILON.get(entry.environment["dtype"], 0.0) * largest


def _shifts(
    measure: str,
    elements: Sequence[str],
    before: Series,
    after: Series,
    low: float,
    test: _Test,
) -> Iterator[BaselineChange]:
    for element in elements:
        old = [_on_scale(value, before.scale, low) for value in before.values[element]]
        new = [_on_scale(value, before.scale, low) for value in after.values[element]]
        shift = test.shift(old, new)
        if shift is not None:
            yield BaselineChange(
                measure,
                "moved",
                element=element,
                old=_mean(before.values[element], before.scale),
                new=_mean(after.values[element], before.scale),
                shift=shift,
                tolerance=test.tolerance,
                unit=after.unit,
                scale=before.scale,
                considered=len(elements),
            )


def _on_scale(value: float | None, scale: str, low: float) -> float | None:
    if value is None or scale != "log":
        return value
    value = max(value, low) if value == value else value
    return math.log(value) if value > 0 else -math.inf if value == 0 else math.nan


def _mean(values: Iterable[float | None], scale: str) -> float:
    known = [value for value in (_on_scale(v, scale, 0.0) for v in values) if value is not None]
    mean = sum(known) / len(known) if known else math.nan
    return math.exp(min(mean, 709.0)) if scale == "log" else mean


STORED = 1e-4
"""Files hold four decimals, or five digits of a scale: nothing finer is a change."""


@dataclass(frozen=True, slots=True)
class _Test:
    """Whether two lists of numbers differ by more than the tolerance and more than chance."""

    pairs: Sequence[tuple[int, int]]
    """Of positions in both lists; empty where they are two samples."""
    repeatable: bool
    """Whether unchanged code gives the same pairs, so that the tolerance alone decides."""
    tolerance: float
    error: float

    def shift(self, old: Sequence[float | None], new: Sequence[float | None]) -> float | None:
        """Return by how much the mean has moved, NaN where finite numbers have become others; None for no change."""
        try:
            if self.pairs:
                found = [(old[i], new[j]) for i, j in self.pairs]
                return self._of_pairs([(a, b) for a, b in found if a is not None and b is not None])
            return self._of_samples([a for a in old if a is not None], [b for b in new if b is not None])
        except OverflowError:
            # Finite numbers whose squares are not: nothing that was ever measured.
            return math.nan

    def _of_pairs(self, pairs: Sequence[tuple[float, float]]) -> float | None:
        if any(str(a) != str(b) for a, b in pairs if not (math.isfinite(a) and math.isfinite(b))):
            return math.nan
        differences = [b - a for a, b in pairs if math.isfinite(a)]
        if not differences:
            return None
        mean, variance = _moments(differences)
        if self.repeatable:
            # Round-off may send a single seed past a kink or to another expert: without it, too.
            rest = sorted(differences, key=abs)[: max(len(differences) - 1, 1)]
            return mean if abs(mean) > self.tolerance < abs(math.fsum(rest) / len(rest)) else None
        return self._judged(mean, variance / len(differences), len(differences) - 1)

    def _of_samples(self, old: Sequence[float], new: Sequence[float]) -> float | None:
        before, after = ([value for value in values if math.isfinite(value)] for values in (old, new))
        if self._differ_in_finiteness(len(before), len(old), len(after), len(new)):
            return math.nan
        if not before or not after:
            return None
        (m1, v1), (m2, v2) = _moments(before), _moments(after)
        n1, n2 = len(before), len(after)
        if n1 == 1 or n2 == 1:
            # One draw has the spread of the others, if there are others.
            return self._judged(m2 - m1, (v1 + v2) * (1 / n1 + 1 / n2), max(n1, n2) - 1)
        s1, s2 = v1 / n1, v2 / n2
        degrees = (s1 + s2) ** 2 / (s1**2 / (n1 - 1) + s2**2 / (n2 - 1)) if s1 + s2 > 0 else n1 + n2 - 2
        # Beside a large sample, a small one whose values lie close by accident would pass for well known.
        return self._judged(m2 - m1, s1 + s2, min(degrees, 2 * (min(n1, n2) - 1)))

    def _judged(self, shift: float, variance_of_mean: float, degrees: float) -> float | None:
        if abs(shift) <= self.tolerance:
            return None
        if degrees == 0 or variance_of_mean == 0:
            return shift
        from scipy.special import stdtr

        chance = 2 * float(stdtr(degrees, -abs(shift) / math.sqrt(variance_of_mean)))
        return shift if chance < self.error else None

    def _differ_in_finiteness(self, finite_old: int, old: int, finite_new: int, new: int) -> bool:
        """Whether dead or overflowing networks have become more or fewer than chance allows (Fisher's exact test)."""
        if finite_old == old and finite_new == new:
            return False
        if min(old, new) <= 1:
            return (finite_old == old) != (finite_new == new)
        from scipy.stats import fisher_exact

        table = [[finite_old, old - finite_old], [finite_new, new - finite_new]]
        # A handful of seeds cannot reach a small error even if all died: then all must have.
        reachable = fisher_exact([[old, 0], [0, new]]).pvalue
        return bool(fisher_exact(table).pvalue <= max(self.error, reachable))


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and unbiased variance; the variance of one value is 0."""
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
