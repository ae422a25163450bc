"""How a measure scales, judged and in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from ..checks.bounds import BoundLike, as_bound
from ..checks.statistics import estimate
from ..checks.verdicts import judge
from ..errors import BoundError, TrainabilityFailure, UsageError
from ..measurement import Measurement
from ..records.estimates import Estimate, Profile
from ..records.reports import VerdictRecord
from ..records.text import format_names, format_number
from ..report.explain import explain, labelled, reproduce_command
from .arguments import CHANGE, SUMMARIES, Along, Patterns, Summary, refuse_measure
from .fits import fit, heights, misfit, why_broken

if TYPE_CHECKING:
    from .sweep import Sweep

__all__ = ["Scaling"]

_NOTABLE_BEND = 0.05
"""Difference between the first and the last local slope below which a curve is called straight, whatever its noise."""
_WIDTH = 80


@dataclass(frozen=True, repr=False)
class Scaling:
    """How a measure scales with the width or the depth of a model."""

    measure: str
    along: Along
    sizes: tuple[int, ...]
    """Widths or depths, increasing."""
    values: tuple[Estimate, ...] | tuple[Profile, ...]
    """What was measured at each size: an estimate, or a profile of the elements that are followed."""
    seeds: tuple[int, ...]
    summary: tuple[str, ...] = ()
    """What is followed of a profile; empty where it is each element."""
    left_out: tuple[str, ...] = ()
    """Elements that do not exist at every size and for every seed."""
    _sweep: Sweep = field(kw_only=True, compare=False)
    """The measurements that it was read off."""

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """The measurement at each size, for everything else that it holds."""
        return tuple(self._sweep.measurements[self._sweep.sizes.index(size)] for size in self.sizes)

    @cached_property
    def slope(self) -> Estimate | Profile:
        """The least-squares slope over ``ln size``, fitted for each seed: an estimate, or one for each element of a profile.

        Of ``ln value`` for a scale, such as ``activation_rms``: the exponent of a power law. Of the value for others: nats,
        or shares, per factor of e in size. NaN where a value is not finite, or is zero on a scale: no bound holds then.
        """
        return self._of_each(lambda name: self._slope_of(self._at(name), self.sizes))

    @cached_property
    def local_slopes(self) -> tuple[Estimate | Profile, ...]:
        """The same between each size and the next. They are alike where there is a power law."""
        return tuple(
            replace(self, sizes=pair, values=self.values[i : i + 2]).slope
            for i, pair in enumerate(pairwise(self.sizes))
        )

    @property
    def last(self) -> Scaling:
        """The scaling between the last two sizes: nearest to the limit of large ones, and noisier."""
        return replace(self, sizes=self.sizes[-2:], values=self.values[-2:])

    def matching(self, *patterns: str) -> Scaling:
        """Return the scaling of those elements of a profile whose names match one of the shell patterns."""
        return self._keeping([profile.matching(*patterns) for profile in self._profiles()], patterns)

    def excluding(self, *patterns: str) -> Scaling:
        """Return the scaling of those elements of a profile whose names match none of the shell patterns."""
        return self._keeping([profile.excluding(*patterns) for profile in self._profiles()], patterns)

    def _keeping(self, profiles: Sequence[Profile], patterns: Sequence[str]) -> Scaling:
        if not profiles[0]:
            named = ", ".join(self._profiles()[0])
            msg = f"the patterns must leave an element of {named}. Got {', '.join(map(repr, patterns))}, which leave none."
            raise UsageError(msg)
        return replace(self, values=tuple(profiles))

    def of(
        self, measure: str, *, summary: Summary = None, matching: Patterns = "*", excluding: Patterns = ()
    ) -> Scaling:
        """Return the scaling of another measure of the same models; what was not measured yet repeats the seeded runs.

        Raises:
            UsageError: It is no number, or cannot be had afterwards.
            BoundError: There is no such measure.
        """
        if measure != CHANGE or not self._sweep.trained:
            refuse_measure("of()", measure, trained=False)
        found = self._sweep.scaling(measure, summary, matching, excluding)
        first = self._sweep.sizes.index(self.sizes[0])
        return replace(found, sizes=self.sizes, values=found.values[first : first + len(self.sizes)])

    def check(self, bound: BoundLike) -> None:
        """Judge the slope; of a profile that of every element.

        >>> sweep.check(within(0.1))  # doctest: +SKIP

        Args:
            bound: ``within(eps)``, ``within(low, high)``, ``at_least(x)``, ``at_most(x)`` or ``(low, high)``.

        Raises:
            TrainabilityFailure: It does not lie in the bound, or is not a number.
            BoundError: It is no bound.
        """
        __tracebackhide__ = True
        context = self._sweep.context
        what = f"slope of {self.measure}"
        try:
            asked = as_bound(bound, measure=what, where=f"check() in {context.test}" if context.test else "check()")
        except BoundError as error:
            raise error.with_traceback(None) from error.__cause__
        verdict = judge(what, self.slope, asked, level=self._sweep.level)
        reading = self._read(verdict.where)
        names = () if isinstance(self.slope, Estimate) else tuple(self.slope)
        self._sweep.verdicts[self.measure, self.summary, names, self.sizes] = verdict, reading
        self._sweep.record(self)
        if not verdict.holds:
            raise TrainabilityFailure(self._explain(verdict, reading))

    @property
    def reading(self) -> str:
        """The slope in words; of a profile that of the steepest element."""
        if isinstance(self.slope, Estimate):
            return self._read(self.slope.name)
        return self._read(max(self.slope.values(), key=lambda e: math.inf if math.isnan(e.mean) else abs(e.mean)).name)

    def __str__(self) -> str:
        return f"{self.reading} ({self.along}s {', '.join(map(str, self.sizes))})"

    def __repr__(self) -> str:
        return f"<{self.measure} over {self.along}s {', '.join(map(str, self.sizes))}: slope {self.slope!r}>"

    # Its elements

    def _profiles(self) -> tuple[Profile, ...]:
        found = tuple(value for value in self.values if isinstance(value, Profile))
        if not found:
            msg = f"elements must be those of a profile. {self.measure} is one number here."
            raise UsageError(msg)
        return found

    def _of_each(self, compute: Callable[[str], Estimate]) -> Estimate | Profile:
        first = self.values[0]
        return compute("") if isinstance(first, Estimate) else Profile({name: compute(name) for name in first})

    def _at(self, name: str) -> list[Estimate]:
        return [value if isinstance(value, Estimate) else value[name] for value in self.values]

    def _slope_of(self, values: Sequence[Estimate], sizes: Sequence[int]) -> Estimate:
        first = values[0]
        slopes = [fit([math.log(size) for size in sizes], ys) for ys in heights(values)]
        unit = "" if first.scale == "log" else f"{first.unit} per e-fold".strip()
        return estimate(slopes, unit=unit, name=first.name, level=self._sweep.level)

    # In words

    def cautions(self) -> Iterator[str]:
        """Say what a reader of the slope must know."""
        if self.left_out:
            yield f"not at every {self.along} and seed, and not followed: {format_names(self.left_out)}"

    def _read(self, name: str) -> str:
        """Say in words how one element scales."""
        values = self._at(name)
        label = self._label(name)
        broken = [(size, word) for size, e in zip(self.sizes, values) if (word := why_broken(e))]
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

    def _local(self, values: Sequence[Estimate]) -> list[Estimate]:
        return [self._slope_of(values[i : i + 2], self.sizes[i : i + 2]) for i in range(len(values) - 1)]

    def _bend(self, values: Sequence[Estimate]) -> str:
        """Say how the local slope changes, where it is more than noise."""
        local = self._local(values)
        change = estimate([b - a for a, b in zip(local[0].values, local[-1].values)], level=self._sweep.level)
        if abs(change.mean) < _NOTABLE_BEND or change.low <= 0 <= change.high:
            return ""
        return f"the local slope goes from {format_number(local[0].mean)} to {format_number(local[-1].mean)}"

    def _law(self, values: Sequence[Estimate]) -> str:
        """Recognize what is straight over the size itself, and clearly not over its logarithm."""
        if len(values) < 3 or not self._bend(values):
            return ""
        means = [math.fsum(ys) / len(values[0].values) for ys in zip(*heights(values))]
        if misfit(self.sizes, means) > misfit([math.log(size) for size in self.sizes], means) / 4:
            return ""
        rate = fit(self.sizes, means)
        if values[0].scale == "log":
            return f"exponentially with {self.along}: by a factor of {math.exp(rate):.3g} for each unit of it"
        unit = f" {values[0].unit}" if values[0].unit else ""
        return f"in proportion to {self.along}: {format_number(rate)}{unit} for each unit of it"

    def _explain(self, verdict: VerdictRecord, reading: str) -> str:
        record = self._sweep.to_record([verdict], self)
        lines = explain(replace(record, notes=(), cautions=(), reproduce=""), width=_WIDTH).splitlines()
        more = self._table(verdict.where)
        more += labelled("reading", reading, _WIDTH - 2)
        for note in (*record.cautions, *self._sweep.measurements[-1].notes):
            more += labelled("note", note, _WIDTH - 2)
        if record.reproduce:
            more += labelled("reproduce", reproduce_command(record))
        return "\n".join([*lines, *("  " + line for line in more)])

    def _table(self, name: str) -> list[str]:
        """Write the values of one element by size, with the slopes between them."""
        values = self._at(name)
        texts = [str(replace(e, unit="")) for e in values]
        slopes = ["", *(f"slope {format_number(slope.mean)}" for slope in self._local(values))]
        first, second = len(str(self.sizes[-1])), max(map(len, texts))
        rows = [
            f"{n:<{first}}  {text:<{second}}  {slope}".rstrip() for n, text, slope in zip(self.sizes, texts, slopes)
        ]
        rows = [self._label(name), *rows]
        return [line for i, row in enumerate(rows) for line in labelled("" if i else f"by {self.along}", row)]
