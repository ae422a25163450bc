"""The measurements of all sizes, and the values of one measure that are followed from size to size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..checks.statistics import CONFIDENCE, Level, estimate
from ..errors import TrainabilityError, UsageError
from ..measurement import Context, Measurement, Options, measure_in
from ..measures import MEASURES
from ..records.estimates import Estimate, Profile, Spectrum, selected
from ..records.names import unmatched
from ..records.reports import CheckRecord, VerdictRecord
from ..records.text import format_finite
from .arguments import CHANGE, EACH, EXTREMES, Along, Patterns, Summary, as_summaries
from .family import Member

__all__ = ["Followed", "SizeSweep"]


@dataclass(frozen=True, slots=True)
class Followed:
    """Values of one measure at every size."""

    values: tuple[Estimate, ...] | tuple[Profile, ...]
    """One per size: an estimate, or a profile with the same elements at every size."""
    summary: tuple[str, ...] = ()
    """Summaries of a profile that are followed; empty where each element is."""
    left_out: tuple[str, ...] = ()
    """Elements that some size or seed does not have."""


class SizeSweep:
    """Measurements of every size, and the verdicts on them.

    Args:
        along: ``"width"`` or ``"depth"``.
        sizes: Widths or depths, increasing.
        context: The test.
        seeds: Seeds of every measurement.
    """

    def __init__(self, along: Along, sizes: tuple[int, ...], context: Context, seeds: tuple[int, ...]) -> None:
        self.along, self.sizes, self.context, self.seeds = along, sizes, context, seeds
        self.measurements: list[Measurement] = []
        self.members: list[Member] = []
        self.verdicts: dict[Any, tuple[VerdictRecord, str]] = {}
        """Verdicts on the slopes so far, each with the slope in words."""
        self.asserted = False
        """Whether a slope was read: the test may assert on it."""
        self.reading = ""
        """The slope of the requested measure in words."""

    @property
    def trained(self) -> bool:
        """Whether the models were trained before the measurement."""
        return any(member.training for member in self.members)

    @property
    def level(self) -> Level:
        """Confidence level of the intervals."""
        return Level(self.context.confidence or CONFIDENCE)

    def measure(self, member: Member, measure: str, options: Options) -> None:
        """Measure the models of the next size.

        Raises:
            TrainabilityError: The measurement failed. The message begins with the size.
        """
        measures = () if measure == CHANGE else (measure,)
        # The session lists the size sweep as one check, not one check per size.
        quiet = replace(self.context, report=lambda record: None, baseline=None)
        given: Options = {**options, "seeds": self.seeds}
        try:
            found = measure_in(quiet, member, member.inputs, measures=measures, **given)
        except TrainabilityError as error:
            cause = error.__cause__ if isinstance(error.__cause__, TrainabilityError) else error
            msg = f"at {member.at}: {cause}"
            raise type(cause)(msg) from cause.__cause__
        self.measurements.append(found)
        self.members.append(member)

    def refuse_equal(self, measure: str) -> None:
        """Refuse models that do not depend on their size.

        Parameters of the same shapes do not prove that, as a layer may be applied several times. Equal values do not either, as
        zeros are equal at every size. Both together do.

        Raises:
            UsageError: Shapes and values are the same at every size.
        """
        if len({member.shapes for member in self.members}) > 1:
            return
        found = [
            ({name: repr(e.values) for name, e in elements.items()}, repr(measurement.log_gain.values))
            for elements, measurement in zip(self.elements(measure), self.measurements)
        ]
        if all(one == found[0] for one in found):
            msg = (
                f"build must use the {self.along}: models of {self.along} {self.sizes[0]} and {self.sizes[-1]} are equal. "
                f"At every {self.along} `{self.members[0].__name__}` built one with the same parameters, and {measure} is the "
                f"same to the last digit. For instance lambda {self.along}: Net({self.along}={self.along})."
            )
            raise UsageError(msg)

    def elements(self, measure: str) -> list[dict[str, Estimate]]:
        """Return the elements of a measure by name, for each size; the element of a scalar has the empty name."""
        if measure == CHANGE:
            return [self._changes(member) for member in self.members]
        found = []
        for measurement in self.measurements:
            value = getattr(measurement, measure)
            found.append({"": value} if isinstance(value, Estimate) else _by_name(value))
        return found

    def _changes(self, member: Member) -> dict[str, Estimate]:
        draws = [member.changes[seed] for seed in self.seeds]
        if not member.compare:
            msg = (
                f"{CHANGE} must be requested when the models are trained: {self.along}_sweep(..., measure={CHANGE!r})."
            )
            raise UsageError(msg)
        names = dict.fromkeys(name for draw in draws for name in draw)
        return {n: estimate([d[n] for d in draws if n in d], name=n, scale="log", level=self.level) for n in names}

    def follow(self, measure: str, summary: Summary, matching: Patterns, excluding: Patterns) -> Followed:
        """Return the elements of one measure, matched between sizes or summarized at each size.

        Raises:
            UsageError: There is no element to follow.
        """
        elements, chosen = self.elements(measure), as_summaries(summary)
        if all(list(found) == [""] for found in elements):
            return Followed(tuple(found[""] for found in elements))
        only, without = _listed(matching), _listed(excluding)
        names = dict.fromkeys(name for found in elements for name in found)
        if names and (message := unmatched((*only, *without), names)):
            raise UsageError(message)
        matched = (selected(Profile(found), only, keep=True, every=False) for found in elements)
        kept = (selected(found, without, keep=False, every=False) for found in matched)
        elements = [dict(profile) for profile in kept]
        if not all(elements):
            sizes = [str(size) for size, found in zip(self.sizes, elements) if not found]
            msg = f"{measure} must have an element to follow at every {self.along}. It has none at {', '.join(sizes)}."
            raise UsageError(msg)
        chosen = chosen or self._default_summaries(measure)
        if chosen == (EACH,):
            return self._matched(measure, elements)
        self._refuse_gaps(measure, elements)
        profiles = [{how: _summarized(found, how, self.level) for how in chosen} for found in elements]
        if isinstance(summary, str):
            return Followed(tuple(profile[summary] for profile in profiles), chosen)
        return Followed(tuple(map(Profile, profiles)), chosen)

    def _default_summaries(self, measure: str) -> tuple[str, ...]:
        by_name = self.along == "width" or (measure != CHANGE and MEASURES[measure].kind == "spectrum")
        return (EACH,) if by_name else EXTREMES

    def _matched(self, measure: str, elements: Sequence[Mapping[str, Estimate]]) -> Followed:
        names = dict.fromkeys(name for found in elements for name in found)
        common = [n for n in names if all(n in found and self._is_complete(found[n]) for found in elements)]
        if not common:
            msg = (
                f"summary='each' follows elements that exist at every {self.along}. {measure} has none. Follow a summary, which "
                f"does not depend on names: summary='max', 'min', 'mean', 'first' or 'last'."
            )
            raise UsageError(msg)
        values = tuple(Profile({name: found[name] for name in common}) for found in elements)
        return Followed(values, left_out=tuple(name for name in names if name not in common))

    def _is_complete(self, value: Estimate) -> bool:
        """Return whether every seed has the element; with stochastic depth a seed may skip a step."""
        return len(value.values) == len(self.seeds)

    def _refuse_gaps(self, measure: str, elements: Iterable[Mapping[str, Estimate]]) -> None:
        gaps = [name for found in elements for name, value in found.items() if not self._is_complete(value)]
        if gaps:
            msg = (
                f"a summary needs elements that every seed has. {gaps[0]!r} of {measure} has no value for some seeds (stochastic "
                f"depth?). Measure in eval mode (train=False), or use summary='each'."
            )
            raise UsageError(msg)

    def report(self, cautions: Iterable[str]) -> None:
        """Report the size sweep and its verdicts to the session.

        Args:
            cautions: Remarks on what the verdicts do not cover.
        """
        self.context.report(self.to_record([verdict for verdict, _ in self.verdicts.values()], cautions))

    def note_read(self, cautions: Iterable[str]) -> None:
        """Report that the test has read a slope, and may assert on it.

        Args:
            cautions: Remarks on what the slope does not cover.
        """
        if not self.asserted:
            self.asserted = True
            self.report(cautions)

    def to_record(self, verdicts: Sequence[VerdictRecord], cautions: Iterable[str]) -> CheckRecord:
        """Return the record of the size sweep, as one check of the session."""
        last = self.measurements[-1]
        failed = [reading for verdict, reading in self.verdicts.values() if not verdict.holds]
        return CheckRecord(
            test=self.context.test,
            name=self.context.name,
            model=last.name,
            steps=f"{self.along}s {', '.join(map(str, self.sizes))}",
            step_names=(),
            frame=last.frame,
            mode=last.mode,
            device=last.device,
            dtype=last.dtype,
            seeds=self.seeds,
            seeds_requested=self.seeds,
            fixed=False,
            seconds=math.fsum(m.seconds for m in self.measurements),
            # The log gain of the largest size, as a note says.
            log_gain=last.log_gain.mean,
            log_gain_low=last.log_gain.low,
            log_gain_high=last.log_gain.high,
            log_gain_finite=format_finite(last.log_gain.values),
            log_gain_spread=last.log_gain.spread,
            gradient_of=last.gradient_of,
            asserted=self.asserted,
            growth=(),
            verdicts=tuple(verdicts),
            notes=(*(failed or [self.reading]), f"the log gain is that of {self.along} {self.sizes[-1]}", *last.notes),
            cautions=tuple(cautions),
            reproduce=self.context.reproduce,
        )


def _listed(patterns: Patterns) -> Sequence[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def _by_name(value: Profile | Spectrum) -> dict[str, Estimate]:
    return dict(value) if isinstance(value, Profile) else {e.name: e for e in value}


def _summarized(elements: Mapping[str, Estimate], how: str, level: Level) -> Estimate:
    """Return a summary of all elements of a profile, with one value per seed."""
    first = next(iter(elements.values()))
    draws = [_summary_of(draw, how, first.scale) for draw in zip(*(e.values for e in elements.values()))]
    return estimate(draws, unit=first.unit, name=how, scale=first.scale, level=level)


def _summary_of(values: Sequence[float], how: str, scale: Literal["linear", "log"]) -> float:
    """Return one summary of the elements of one seed; NaN for ``"max"``, ``"min"`` and ``"mean"`` if an element is NaN."""
    if how in {"first", "last"}:
        return values[0 if how == "first" else -1]
    if any(map(math.isnan, values)):
        return math.nan
    return estimate(values, scale=scale).mean if how == "mean" else max(values) if how == "max" else min(values)
