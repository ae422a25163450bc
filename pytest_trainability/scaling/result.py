"""How a measure scales: slopes, verdicts on them, and their description in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ..checks.bounds import BoundLike, as_bound
from ..checks.statistics import estimate
from ..checks.verdicts import judge
from ..errors import BoundError, TrainabilityFailure, UsageError
from ..measurement import Measurement
from ..records.estimates import Estimate, Profile, selected
from ..records.names import unmatched
from ..records.reports import VerdictRecord
from ..records.text import format_names, format_number, visible
from ..report.explain import explain, labelled, reproduce_command
from .arguments import CHANGE, SUMMARIES, Along, Patterns, Summary, refuse_measure
from .fits import fit, is_linear_in_size, ordinates, why_no_slope
from .presentation import SweepPresentation
from .sweep import SizeSweep

__all__ = ["Scaling", "scaling_of"]

_NOTABLE_BEND = 0.05
"""Difference between the first and the last local slope below which a curve counts as straight, whatever its noise."""
_WIDTH = 80


@dataclass(frozen=True, repr=False)
class Scaling(SweepPresentation):
    """How a measure scales with the width or the depth of a model: the slope of a line over ``ln size``.

    ``ln value ≈ slope · ln size + c`` for a log-scale measure, and ``value ≈ slope · ln size + c`` for others, by least squares
    for each seed.

    >>> import torch
    >>> from torch import nn
    >>> from pytest_trainability import at_most, width_sweep
    >>> def mlp(width):
    ...     return nn.Sequential(nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 1))
    >>> scaling = width_sweep(mlp, [8, 16, 32], torch.ones(2, 4), seeds=2)
    >>> scaling.sizes, list(scaling.slope)
    ((8, 16, 32), ['input', '0', '1', '2'])
    >>> scaling.matching("[01]").check(at_most(0.5))
    >>> len(scaling.local_slopes), scaling.last.sizes
    (2, (16, 32))
    """

    measure: str
    along: Along
    sizes: tuple[int, ...]
    """Widths or depths, increasing."""
    values: tuple[Estimate, ...] | tuple[Profile, ...]
    """Value of the measure at each size: an estimate, or a profile of the elements that are followed."""
    seeds: tuple[int, ...]
    """Seeds of every measurement."""
    summary: tuple[str, ...] = ()
    """Summaries of a profile that are followed; empty where each element is."""
    left_out: tuple[str, ...] = ()
    """Elements that are not followed, because some size or seed does not have them."""
    _sweep: SizeSweep = field(kw_only=True, compare=False)

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """The measurement at each size."""
        return tuple(self._sweep.measurements[self._sweep.sizes.index(size)] for size in self.sizes)

    @property
    def slope(self) -> Estimate | Profile:
        """Least-squares slope over ``ln size``, fitted for each seed: an estimate, or one for each element of a profile.

        For a log-scale measure, such as ``activation_rms``, it is the exponent of a power law, without unit. For others it is the
        change of the value per factor of e in size, in the unit of the measure. It is NaN, and violates every bound, where a
        value is not finite, or is zero and the measure log-scale.
        """
        self._sweep.note_read(self.cautions())
        return self._slope

    @cached_property
    def _slope(self) -> Estimate | Profile:
        return self._of_each(lambda name: self._slope_of(self._at(name), self.sizes))

    @cached_property
    def local_slopes(self) -> tuple[Estimate | Profile, ...]:
        """Slopes between each size and the next. For a power law they are equal."""
        return tuple(map(self._slope_after, range(len(self.sizes) - 1)))

    def _slope_after(self, index: int) -> Estimate | Profile:
        """Return the slope between a size and the next."""
        pair = slice(index, index + 2)
        return self._of_each(lambda name: self._slope_of(self._at(name)[pair], self.sizes[pair]))

    @property
    def last(self) -> Scaling:
        """The scaling between the last two sizes: closest to the limit of large sizes, and noisier."""
        return replace(self, sizes=self.sizes[-2:], values=self.values[-2:])

    def matching(self, *patterns: str) -> Scaling:
        """Return the scaling of the elements of a profile whose names match at least one shell pattern.

        Raises:
            UsageError: A pattern matches no element, or the measure is one number.
        """
        return self._keeping(patterns, keep=True)

    def excluding(self, *patterns: str) -> Scaling:
        """Return the scaling of the elements of a profile whose names match no shell pattern.

        Raises:
            UsageError: A pattern matches no element, every element matches, or the measure is one number.
        """
        return self._keeping(patterns, keep=False)

    def _keeping(self, patterns: Sequence[str], *, keep: bool) -> Scaling:
        names = list(self._profiles()[0])
        if message := unmatched(patterns, names):
            raise UsageError(message)
        profiles = [selected(profile, patterns, keep=keep, every=False) for profile in self._profiles()]
        if not profiles[0]:
            named = ", ".join(names)
            msg = f"the patterns must leave an element of {named}. Got {', '.join(map(repr, patterns))}, which leave none."
            raise UsageError(msg)
        return replace(self, values=tuple(profiles))

    def of(
        self, measure: str, *, summary: Summary = None, matching: Patterns = "*", excluding: Patterns = ()
    ) -> Scaling:
        """Return the scaling of another measure of the same models.

        A measure that was not read yet repeats the seeded runs of every size.

        Args:
            measure: Name of the measure.
            summary: As in :func:`pytest_trainability.width_sweep`.
            matching: As in :func:`pytest_trainability.width_sweep`.
            excluding: As in :func:`pytest_trainability.width_sweep`.

        Returns:
            The scaling, over the same sizes.

        Raises:
            UsageError: The measure is a list of names, or cannot be measured after the size sweep.
            BoundError: The measure is unknown.
        """
        if measure != CHANGE or not self._sweep.trained:
            refuse_measure("of()", measure, trained=False)
        found = scaling_of(self._sweep, measure, summary, matching, excluding)
        first = self._sweep.sizes.index(self.sizes[0])
        return replace(found, sizes=self.sizes, values=found.values[first : first + len(self.sizes)])

    def check(self, bound: BoundLike) -> None:
        """Judge the slope; for a profile, the slope of every element.

        >>> scaling.check(within(0.1))  # doctest: +SKIP

        Args:
            bound: ``within(eps)``, ``within(low, high)``, ``at_least(x)``, ``at_most(x)`` or ``(low, high)``, in the unit of the
                slope.

        Raises:
            TrainabilityFailure: A slope does not lie in the bound, or is not a number.
            BoundError: The argument is not a bound.
        """
        __tracebackhide__ = True
        context = self._sweep.context
        what = f"slope of {self.measure}"
        try:
            given = as_bound(bound, measure=what, where=f"check() in {context.test}" if context.test else "check()")
        except BoundError as error:
            raise error.with_traceback(None) from error.__cause__
        verdict = judge(what, self._slope, given, level=self._sweep.level)
        reading = self._read(verdict.where)
        names = () if isinstance(self._slope, Estimate) else tuple(self._slope)
        self._sweep.verdicts[self.measure, self.summary, names, self.sizes] = verdict, reading
        self._sweep.report(self.cautions())
        if not verdict.holds:
            raise TrainabilityFailure(self._explain(verdict, reading), check=context.name)

    @property
    def reading(self) -> str:
        """The slope in words; for a profile, the steepest slope."""
        if isinstance(self._slope, Estimate):
            return visible(self._read(self._slope.name))
        return visible(
            self._read(max(self._slope.values(), key=lambda e: math.inf if math.isnan(e.mean) else abs(e.mean)).name)
        )

    def __str__(self) -> str:
        return f"{self.reading} ({self.along}s {', '.join(map(str, self.sizes))})"

    def __repr__(self) -> str:
        return visible(f"<{self.measure} over {self.along}s {', '.join(map(str, self.sizes))}: slope {self._slope!r}>")

    def _shown_slope(self) -> Estimate | Profile:
        return self._slope

    def _shown_reading(self) -> str:
        return self.reading

    def _shown_table(self, name: str) -> list[str]:
        return self._table(name)

    # Elements

    def _profiles(self) -> tuple[Profile, ...]:
        found = tuple(value for value in self.values if isinstance(value, Profile))
        if not found:
            msg = f"only a profile has elements to select. {self.measure} is one number here."
            raise UsageError(msg)
        return found

    def _of_each(self, compute: Callable[[str], Estimate]) -> Estimate | Profile:
        first = self.values[0]
        return compute("") if isinstance(first, Estimate) else Profile({name: compute(name) for name in first})

    def _at(self, name: str) -> list[Estimate]:
        """Return one element at each size; the only one, whatever the name, where the measure is one number."""
        return [value if isinstance(value, Estimate) else value[name] for value in self.values]

    def _slope_of(self, values: Sequence[Estimate], sizes: Sequence[int]) -> Estimate:
        first = values[0]
        slopes = [fit([math.log(size) for size in sizes], ys) for ys in ordinates(values)]
        unit = "" if first.scale == "log" else f"{first.unit} per e-fold".strip()
        return estimate(slopes, unit=unit, name=first.name, level=self._sweep.level)

    def _local(self, values: Sequence[Estimate]) -> list[Estimate]:
        return [self._slope_of(values[i : i + 2], self.sizes[i : i + 2]) for i in range(len(values) - 1)]

    # Words

    def cautions(self) -> Iterator[str]:
        """Yield a sentence for each thing that the slope does not cover."""
        if self.left_out:
            yield f"not at every {self.along} and seed, and not followed: {format_names(self.left_out)}"

    def _read(self, name: str) -> str:
        """Return a description of how one element scales."""
        values = self._at(name)
        label = self._label(name)
        broken = [(size, word) for size, e in zip(self.sizes, values) if (word := why_no_slope(e))]
        if broken:
            size, word = broken[0]
            return f"{label} is {word} at {self.along} {size}: it has no slope, and no bound holds"
        slope, law = self._slope_of(values, self.sizes), self._law(values)
        if law:
            return f"{label} {'grows' if slope.mean > 0 else 'shrinks'} {law}"
        power = f"{self.along}^{format_number(slope.mean)}"
        if values[0].scale != "log":
            power = f"{format_number(slope.mean)} ln({self.along})"
        bend = self._bend(values)
        curved = f", and bends: {bend}" if bend else ""
        if slope.low <= 0 <= slope.high:
            return f"{label} goes like {power}{curved}, and 0 lies in the interval of the slope"
        return f"{label} {'grows' if slope.mean > 0 else 'shrinks'} like {power}{curved}"

    def _label(self, name: str) -> str:
        if self.summary:
            return f"{SUMMARIES[self._at(name)[0].name]} {self.measure}"
        return f"{self.measure} of {name}" if name else self.measure

    def _bend(self, values: Sequence[Estimate]) -> str:
        """Return how the local slope changes, in words; empty where the change is small or may be noise."""
        local = self._local(values)
        change = estimate([b - a for a, b in zip(local[0].values, local[-1].values)], level=self._sweep.level)
        if abs(change.mean) < _NOTABLE_BEND or change.low <= 0 <= change.high:
            return ""
        return f"the local slope goes from {format_number(local[0].mean)} to {format_number(local[-1].mean)}"

    def _law(self, values: Sequence[Estimate]) -> str:
        """Return growth with the size itself, in words; empty where a line over the size does not fit clearly better."""
        if len(values) < 3 or not self._bend(values):
            return ""
        means = [math.fsum(ys) / len(ys) for ys in zip(*ordinates(values))]
        if not is_linear_in_size(self.sizes, means):
            return ""
        rate = fit(self.sizes, means)
        if values[0].scale == "log":
            return f"exponentially with {self.along}: by a factor of {math.exp(rate):.3g} per unit of {self.along}"
        unit = f" {values[0].unit}" if values[0].unit else ""
        return f"in proportion to {self.along}: {format_number(rate)}{unit} per unit of {self.along}"

    def _explain(self, verdict: VerdictRecord, reading: str) -> str:
        """Return the message of a failed check."""
        record = self._sweep.to_record([verdict], self.cautions())
        plain = replace(record, notes=(), cautions=(), reproduce="")
        lines = explain(plain, width=_WIDTH, full=self._sweep.context.full).splitlines()
        more = self._table(verdict.where)
        more += labelled("reading", reading, _WIDTH - 2)
        for note in (*record.cautions, *self._sweep.measurements[-1].notes):
            more += labelled("note", note, _WIDTH - 2)
        if record.reproduce:
            more += labelled("reproduce", reproduce_command(record))
        return "\n".join([*lines, *("  " + line for line in more)])

    def _table(self, name: str) -> list[str]:
        """Return lines with the values of one element by size, and the slopes between them."""
        values = self._at(name)
        texts = [str(replace(e, unit="")) for e in values]
        slopes = ["", *(f"slope {format_number(slope.mean)}" for slope in self._local(values))]
        first, second = len(str(self.sizes[-1])), max(map(len, texts))
        rows = [
            f"{n:<{first}}  {text:<{second}}  {slope}".rstrip() for n, text, slope in zip(self.sizes, texts, slopes)
        ]
        rows = [self._label(name), *rows]
        return [line for i, row in enumerate(rows) for line in labelled("" if i else f"by {self.along}", row)]


def scaling_of(
    sweep: SizeSweep, measure: str, summary: Summary = None, matching: Patterns = "*", excluding: Patterns = ()
) -> Scaling:
    """Return how one measure of a size sweep scales.

    Raises:
        UsageError: There is no element to follow.
    """
    found = sweep.follow(measure, summary, matching, excluding)
    return Scaling(
        measure, sweep.along, sweep.sizes, found.values, sweep.seeds, found.summary, found.left_out, _sweep=sweep
    )
