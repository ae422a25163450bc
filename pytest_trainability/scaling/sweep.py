"""Measurements of every size, and what is followed of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from ..checks.statistics import CONFIDENCE, Level, as_seeds, estimate
from ..errors import TrainabilityError, UsageError
from ..measurement import Context, Measurement, measure_in
from ..measures import MEASURES
from ..records.estimates import Estimate, Profile, Spectrum
from ..records.reports import CheckRecord, VerdictRecord
from .arguments import (
    CHANGE,
    DEFAULT,
    EACH,
    EXTREMES,
    Along,
    Patterns,
    Summary,
    as_settings,
    as_sizes,
    as_summaries,
    inputs_at,
    refuse_inputs,
    refuse_measure,
)
from .family import Member, as_training
from .result import Scaling

__all__ = ["Sweep", "sweep_in"]


def sweep_in(
    context: Context,
    along: Along,
    build: Callable[[int], nn.Module],
    sizes: Sequence[int],
    inputs: Any,
    *,
    inputs_of: Callable[[int], Any] | None = None,
    measure: str | None = None,
    summary: Summary = None,
    matching: Patterns = "*",
    excluding: Patterns = (),
    after_steps: int = 0,
    **settings: Any,
) -> Scaling:
    """Measure as :func:`width_sweep` and :func:`depth_sweep` do, on behalf of a test."""
    where = f"{along}_sweep()"
    measure = measure or DEFAULT[along]
    if isinstance(build, nn.Module) or not callable(build):
        msg = (
            f"{where} must be given a function that builds the model of a {along}. Got {type(build).__name__}. For instance "
            f"{along}_sweep(lambda {along}: Net({along}={along}), ...)."
        )
        raise UsageError(msg)
    refuse_inputs(where, inputs, inputs_of)
    found = as_sizes(along, sizes)
    given = as_settings(where, settings)
    training = as_training(context, after_steps, given)
    refuse_measure(where, measure, trained=training is not None)
    as_summaries(summary)
    sweep = Sweep(along, found, context, as_seeds(given["seeds"]))
    for size in found:
        drawn = inputs_at(size, inputs, inputs_of)
        sweep.measure(Member(build, along, size, drawn, training, compare=measure == CHANGE), measure, given)
    sweep.refuse_alike(measure)
    scaling = sweep.scaling(measure, summary, matching, excluding)
    sweep.reading = scaling.reading
    sweep.record(scaling)
    return scaling


class Sweep:
    """The measurements of all sizes, and what was judged of them."""

    def __init__(self, along: Along, sizes: tuple[int, ...], context: Context, asked: tuple[int, ...]) -> None:
        self.along, self.sizes, self.context, self.asked = along, sizes, context, asked
        self.measurements: list[Measurement] = []
        self.members: list[Member] = []
        self.verdicts: dict[Any, tuple[VerdictRecord, str]] = {}
        """With what a failed one means, in words."""
        self.reading = ""
        """What was asked for in the first place, in words."""

    @property
    def trained(self) -> bool:
        """Whether the models were trained before the measurement."""
        return any(member.training for member in self.members)

    @property
    def level(self) -> Level:
        """At which intervals are stated."""
        return Level(self.context.confidence or CONFIDENCE)

    def measure(self, member: Member, measure: str, settings: Mapping[str, Any]) -> None:
        """Measure the models of the next size."""
        measures = () if measure == CHANGE else (measure,)
        # The sweep is one check of the session, not one for each size.
        quiet = replace(self.context, record=_ignore, baseline=None)
        try:
            found = measure_in(quiet, member, member.inputs, measures=measures, **{**settings, "seeds": self.asked})
        except TrainabilityError as error:
            told = error.__cause__ if isinstance(error.__cause__, TrainabilityError) else error
            msg = f"at {member.at}: {told}"
            raise type(told)(msg) from told.__cause__
        self.measurements.append(found)
        self.members.append(member)

    def refuse_alike(self, measure: str) -> None:
        """Refuse models that do not depend on their size.

        Weights of the same shapes are no proof of that: a layer may be applied several times. Nor are the same numbers: zeros
        are, at every size. Both together are.
        """
        if len({member.shapes for member in self.members}) > 1:
            return
        found = [
            ({name: repr(e.values) for name, e in elements.items()}, repr(measurement.log_gain.values))
            for elements, measurement in zip(self.elements(measure), self.measurements)
        ]
        if all(one == found[0] for one in found):
            msg = (
                f"build must use the {self.along}: models of {self.sizes[0]} and {self.sizes[-1]} are alike. At every "
                f"{self.along} `{self.members[0].__name__}` built one with the same parameters, and {measure} is the same to "
                f"the last digit. For instance lambda {self.along}: Net({self.along}={self.along})."
            )
            raise UsageError(msg)

    def elements(self, measure: str) -> list[dict[str, Estimate]]:
        """Return the elements of a measure by name, for each size; a scalar is one without a name."""
        if measure == CHANGE:
            return [self._changes(member) for member in self.members]
        found = []
        for measurement in self.measurements:
            value = getattr(measurement, measure)
            found.append({"": value} if isinstance(value, Estimate) else _by_name(value))
        return found

    def _changes(self, member: Member) -> dict[str, Estimate]:
        draws = [member.changes[seed] for seed in self.asked]
        if not member.compare:
            msg = (
                f"{CHANGE} must be asked for when the models are trained: {self.along}_sweep(..., measure={CHANGE!r})."
            )
            raise UsageError(msg)
        names = dict.fromkeys(name for draw in draws for name in draw)
        return {n: estimate([d[n] for d in draws if n in d], name=n, scale="log", level=self.level) for n in names}

    def scaling(self, measure: str, summary: Summary, matching: Patterns, excluding: Patterns) -> Scaling:
        """Match the elements of one measure between sizes, or summarize them at each."""
        elements, chosen = self.elements(measure), as_summaries(summary)
        if all(list(found) == [""] for found in elements):
            return self._result(measure, tuple(found[""] for found in elements))
        kept = (Profile(found).matching(*_listed(matching)).excluding(*_listed(excluding)) for found in elements)
        elements = [dict(profile) for profile in kept]
        if not all(elements):
            sizes = [str(size) for size, found in zip(self.sizes, elements) if not found]
            msg = f"{measure} must have an element to follow at every {self.along}. It has none at {', '.join(sizes)}."
            raise UsageError(msg)
        if not chosen:
            by_name = self.along == "width" or (measure != CHANGE and MEASURES[measure].kind == "spectrum")
            chosen = (EACH,) if by_name else EXTREMES
        if chosen == (EACH,):
            return self._matched(measure, elements)
        self._refuse_gaps(measure, elements)
        profiles = [{how: _summarized(found, how, self.level) for how in chosen} for found in elements]
        if isinstance(summary, str):
            return self._result(measure, tuple(profile[summary] for profile in profiles), chosen)
        return self._result(measure, tuple(map(Profile, profiles)), chosen)

    def _matched(self, measure: str, elements: Sequence[Mapping[str, Estimate]]) -> Scaling:
        names = dict.fromkeys(name for found in elements for name in found)
        common = [n for n in names if all(n in found and self._is_complete(found[n]) for found in elements)]
        if not common:
            msg = (
                f"summary='each' follows elements that exist at every {self.along}. {measure} has none. Follow what does not "
                f"change its name: summary='max', 'min', 'mean', 'first' or 'last'."
            )
            raise UsageError(msg)
        values = tuple(Profile({name: found[name] for name in common}) for found in elements)
        return self._result(measure, values, left_out=tuple(name for name in names if name not in common))

    def _is_complete(self, value: Estimate) -> bool:
        return len(value.values) == len(self.asked)

    def _refuse_gaps(self, measure: str, elements: Iterable[Mapping[str, Estimate]]) -> None:
        gaps = [name for found in elements for name, value in found.items() if not self._is_complete(value)]
        if gaps:
            msg = (
                f"a summary must be of elements that every seed has. {gaps[0]!r} of {measure} has no value for some (stochastic "
                f"depth?). Measure in eval mode (train=False), or take summary='each'."
            )
            raise UsageError(msg)

    def _result(
        self,
        measure: str,
        values: tuple[Estimate, ...] | tuple[Profile, ...],
        summary: tuple[str, ...] = (),
        left_out: tuple[str, ...] = (),
    ) -> Scaling:
        return Scaling(measure, self.along, self.sizes, values, self.asked, summary, left_out, _sweep=self)

    def record(self, scaling: Scaling) -> None:
        """Tell the session what has been measured and judged."""
        self.context.record(self.to_record([verdict for verdict, _ in self.verdicts.values()], scaling))

    def to_record(self, verdicts: Sequence[VerdictRecord], scaling: Scaling) -> CheckRecord:
        """Write the sweep as one check of the session."""
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
            seeds=self.asked,
            seeds_requested=self.asked,
            fixed=False,
            seconds=math.fsum(m.seconds for m in self.measurements),
            # Of the largest, which a reader of the column would ask for.
            log_gain=last.log_gain.mean,
            log_gain_low=last.log_gain.low,
            log_gain_high=last.log_gain.high,
            growth=(),
            verdicts=tuple(verdicts),
            notes=(*(failed or [self.reading]), f"the log gain is that of {self.along} {self.sizes[-1]}", *last.notes),
            cautions=tuple(scaling.cautions()),
            reproduce=self.context.reproduce,
        )


def _listed(patterns: Patterns) -> Sequence[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def _ignore(record: CheckRecord) -> None:
    pass


def _by_name(value: Profile | Spectrum) -> dict[str, Estimate]:
    return dict(value) if isinstance(value, Profile) else {e.name: e for e in value}


def _summarized(elements: Mapping[str, Estimate], how: str, level: Level) -> Estimate:
    """Return one number per seed of all elements of a profile."""
    first = next(iter(elements.values()))
    draws = [_summary_of(draw, how, first.scale) for draw in zip(*(e.values for e in elements.values()))]
    return estimate(draws, unit=first.unit, name=how, scale=first.scale, level=level)


def _summary_of(values: Sequence[float], how: str, scale: Literal["linear", "log"]) -> float:
    if how in {"first", "last"}:
        return values[0 if how == "first" else -1]
    if any(map(math.isnan, values)):
        return math.nan
    return estimate(values, scale=scale).mean if how == "mean" else max(values) if how == "max" else min(values)
