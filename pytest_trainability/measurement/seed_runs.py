"""The runs of all seeds: readings by measure and seed, and the values that they average to."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import fmean
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from ..checks.bounds import Bound
from ..checks.judged_elements import judged_elements, selected_elements
from ..checks.statistics import CONFIDENCE, Level
from ..checks.verdicts import Value, is_settled
from ..engine.runs.common_needs import OPERATIONS, SETTINGS
from ..engine.runs.description import Ensemble
from ..engine.runs.ensemble import ensemble
from ..engine.runs.factors import FACTORS
from ..engine.runs.finiteness import faults
from ..engine.runs.forward_pass import fingerprint
from ..engine.runs.recipe import Recipe
from ..engine.runs.run import Need, Run
from ..errors import InapplicableError, TrainabilityError, UsageError
from ..init.description import ModelDescription
from ..measures import MEASURES, Measure, companion_of
from ..measures.depth.lyapunov import AROUND_ZEROS, AroundZeros
from ..measures.gradients.classes import REPEATED_BLOCKS
from ..measures.parameters.initial_values import DESCRIPTION, PROJECTIONS
from ..records.causes import CauseRecord
from ..records.factors import FactorRecord
from ..records.gradient_classes import GradientClasses
from ..records.tensors import Projections
from .readings import assemble, read

__all__ = ["MAY_FAIL", "SeedRuns", "Tolerated", "tolerated_by"]

Tolerated: TypeAlias = "Mapping[str, type[TrainabilityError]]"
"""Measures that may have no value, and the class of error that excuses each of them."""

MAY_FAIL: Tolerated = dict.fromkeys(("gradient_classes", "untrained_fraction"), TrainabilityError)
"""Measures of every run. A model without a second run, or without parameters, has none of them."""

RECORDED: tuple[Need[Any], ...] = (DESCRIPTION, PROJECTIONS, OPERATIONS)
"""Needs that baselines record beyond measures."""

_Found = TypeVar("_Found")

_PER_TIME = {"nats/step": "nats/time", "steps": "time"}
"""Units of measures where steps span time, such as those of an ODE solver."""


class SeedRuns:
    """Readings and values of one recipe. A measure that is not known yet repeats the runs of all seeds.

    Args:
        recipe: Model, inputs, and how to run and cut it.
        seeds_requested: Seeds that may be drawn, in this order.
        confidence: Confidence level of the intervals; None for the default.
        described: Whether the first runs read what baselines record beyond measures, so that a baseline needs no further runs.
    """

    def __init__(
        self,
        recipe: Recipe,
        seeds_requested: tuple[int, ...],
        confidence: float | None,
        *,
        described: bool = False,
    ) -> None:
        self._described = described
        self.recipe, self.seeds_requested = recipe, seeds_requested
        self.level = Level(confidence or CONFIDENCE)
        self.readings: dict[str, list[Any]] = {}
        """One reading per seed, by measure."""
        self.values: dict[str, Value] = {}
        self.seconds = 0.0
        self.caution = ""
        """What a user should know about the seeds; empty for nothing."""
        self._inapplicable: set[str] = set()
        """Measures that were tolerated to have no value, and have none."""
        self._fingerprint = fingerprint(recipe)
        self._ensemble: Ensemble | None = None
        self._of_baselines: dict[str, tuple[Any, ...]] = {}
        """What baselines record beyond measures: the value of each seed, by the name of the need."""
        self.factors: tuple[FactorRecord, ...] | None = None
        """Factors of the steps on one seed, in program order; none if they cannot be found, None before they are asked for."""
        self.causes: dict[str, tuple[CauseRecord, ...]] = {}
        """Why bounds do not hold, by the name of the measure that was asked."""

    @property
    def common(self) -> Ensemble:
        """Description of the runs that all seeds share; known from the first run on."""
        assert self._ensemble is not None
        return self._ensemble

    def run(
        self,
        wanted: Sequence[Measure],
        *,
        until: Mapping[str, Bound] | None = None,
        tolerated: Tolerated = MappingProxyType({}),
    ) -> bool:
        """Run the model once per seed for the measures that are not known yet, and read them.

        Args:
            wanted: Measures to read.
            until: Bounds by measure, in the first run only: drawing stops once all of them are settled.
            tolerated: Measures that may have no value.

        Returns:
            Whether anything was run.

        Raises:
            InapplicableError: A measure does not apply to the model, and that is not tolerated.
            UsageError: The inputs or the parameters have changed since the first run.
        """
        if self._ensemble is None:
            tolerated = {**MAY_FAIL, **tolerated}
        if until:
            companions = [m for name in until if (m := companion_of(MEASURES[name])) is not None]
            tolerated = {
                **tolerated,
                **dict.fromkeys((m.name for m in companions), TrainabilityError),
                **tolerated_by(until),
            }
            wanted = [*wanted, *companions]
        known = {*self.values, *(self._inapplicable & tolerated.keys())}
        wanted = [m for m in dict.fromkeys(wanted) if m.name not in known]
        if not wanted:
            return False
        if self._ensemble is None:
            # Intervals must hold whenever drawing stops, and are wider for it.
            self.level = Level(self.level.confidence, len(self.seeds_requested) if until else None)
            self._ensemble = self._draw(wanted, self.seeds_requested, tolerated, until=until, described=self._described)
            found = self._ensemble
            self._keep_for_baselines(found)
        else:
            name = wanted[0].name
            self._refuse_changed(
                f"{name} was not measured in the first run",
                f"Request it beforehand (by a bound, or by measures=[{name!r}] outside pytest), or measure again.",
            )
            found = self._draw(wanted, self.common.seeds, tolerated)
        missing = {m.name for m in wanted for reading in found.readings if reading[m.name] is None}
        self._inapplicable |= missing
        wanted = [m for m in wanted if m.name not in missing]
        self.readings.update({m.name: [reading[m.name] for reading in found.readings] for m in wanted})
        self._assemble(wanted)
        return True

    def complete(self) -> bool:
        """Run the seeds that were not drawn because all bounds were settled.

        Returns:
            Whether there were any.

        Raises:
            UsageError: The inputs or the parameters have changed since the first run.
        """
        rest = self.seeds_requested[len(self.common.seeds) :]
        if not rest:
            return False
        self._refuse_changed("only some of the seeds were drawn, as they settled the bounds", "Measure again.")
        measures = [MEASURES[name] for name in self.readings]
        found = self._draw(measures, rest, described=self._described)
        self._keep_for_baselines(found)
        for name, readings in self.readings.items():
            readings += [reading[name] for reading in found.readings]
        draws = (*self.common.draws, *found.draws)
        not_finite = (*self.common.not_finite, *found.not_finite)
        self._ensemble = replace(self.common, seeds=self.seeds_requested, draws=draws, not_finite=not_finite)
        self._assemble(measures)
        return True

    def descriptions(self) -> tuple[ModelDescription, ...]:
        """Return the description of each seed's model as it was built. The models are built again unless it is known.

        Raises:
            UsageError: The inputs or the parameters have changed since the first run.
        """
        return self._for_baseline(DESCRIPTION, "the initial values", built_only=True)

    def projections(self) -> tuple[Mapping[str, Projections], ...]:
        """Return the projections of each seed's parameters and buffers. The models are built again unless they are known.

        Raises:
            UsageError: The inputs or the parameters have changed since the first run.
        """
        return self._for_baseline(PROJECTIONS, "the entries of tables", built_only=True)

    def operations(self) -> tuple[Mapping[str, tuple[str, ...]], ...]:
        """Return the operations of each step, for each seed. The models are run again unless they are known.

        Raises:
            UsageError: The inputs or the parameters have changed since the first run.
        """
        return self._for_baseline(OPERATIONS, "the operations of the steps", built_only=False)

    def settings(self) -> tuple[Mapping[str, tuple[str, ...]], ...]:
        """Return the constants in the code of modules, for each of the first two seeds, from one more run of them.

        They explain a change. Where they cannot be found, for whatever reason, there are none.
        """
        if SETTINGS.name not in self._of_baselines:
            self._of_baselines[SETTINGS.name] = ()
            with suppress(Exception):
                self._refuse_changed("the constants in the code are found in another run", "Measure again.")
                found = ensemble(
                    self.recipe,
                    self.common.seeds[:2],
                    {SETTINGS},
                    lambda run: {SETTINGS.name: run[SETTINGS]},
                    known=self._ensemble,
                )
                self._of_baselines[SETTINGS.name] = tuple(reading[SETTINGS.name] for reading in found.readings)
        return self._of_baselines[SETTINGS.name]

    def _for_baseline(self, need: Need[_Found], what: str, *, built_only: bool) -> tuple[_Found, ...]:
        """Return what a baseline records, for each seed.

        Args:
            need: The need that finds it.
            what: Its name, for the message.
            built_only: Whether it is found without a forward pass.
        """
        if len(self._of_baselines.get(need.name, ())) != len(self.common.seeds):
            self._refuse_changed(f"a baseline records {what}", "Measure again.")
            found = ensemble(
                self.recipe,
                self.common.seeds,
                {need},
                lambda run: {need.name: run[need]},
                known=self._ensemble,
                built_only=built_only,
            )
            self._of_baselines[need.name] = tuple(reading[need.name] for reading in found.readings)
        return self._of_baselines[need.name]

    @property
    def known_descriptions(self) -> tuple[ModelDescription, ...]:
        """Descriptions that were read so far; none if nothing has asked for them."""
        return self._of_baselines.get(DESCRIPTION.name, ())

    def take_apart(self) -> tuple[FactorRecord, ...]:
        """Return the factors of the steps, from one more run of the seed whose log gain is typical.

        They explain a failure. Where they cannot be found, for whatever reason, the failure stands without them.
        """
        if self.factors is None:
            self.factors = ()
            with suppress(Exception):
                self._refuse_changed("the steps are taken apart in another run", "Measure again.")
                (reading,) = ensemble(
                    self.recipe,
                    (self.typical_seed(),),
                    {FACTORS},
                    lambda run: {FACTORS.name: run[FACTORS]},
                    known=self._ensemble,
                ).readings
                self.factors = reading[FACTORS.name]
        return self.factors

    def ask_why(self, names: Iterable[str]) -> None:
        """Find out why the bounds of measures do not hold, in one more run of the seed whose log gain is typical.

        Measures that explain nothing are left out. Where a cause cannot be found, for whatever reason, there is none.

        Args:
            names: Names of measures whose bounds do not hold.
        """
        asked = {name: need for name in names if (need := MEASURES[name].explained_by) is not None}
        asked = {name: need for name, need in asked.items() if name not in self.causes}
        self.causes.update(dict.fromkeys(asked, ()))
        if not asked:
            return
        with suppress(Exception):
            self._refuse_changed("the cause is found in another run", "Measure again.")
            (reading,) = ensemble(
                self.recipe,
                (self.typical_seed(),),
                set(asked.values()),
                lambda run: {name: _causes(run, need) for name, need in asked.items()},
                known=self._ensemble,
            ).readings
            self.causes.update(reading)

    def is_not_finite(self) -> bool:
        """Return whether an output, a loss or a rate of growth is NaN or infinite on some seed. Growth of -inf is a rank of 0."""
        rates = (rate for reading in self.readings["growth_rate"] for rate in reading.values())
        return bool(faults(self.common.not_finite)) or not all(rate < math.inf for rate in rates)

    def typical_seed(self) -> int:
        """Return the first seed with an output, a loss or a log gain that is not finite, else the one with the usual log gain.

        This is the one whose log gain is nearest to the mean.
        """
        gains = dict(zip(self.common.seeds, self.readings["log_gain"]))
        infinite = [seed for seed, found in zip(self.common.seeds, self.common.not_finite) if faults([found])]
        infinite += [seed for seed, gain in gains.items() if not math.isfinite(gain)]
        mean = fmean(gains.values())
        return infinite[0] if infinite else min(gains, key=lambda seed: abs(gains[seed] - mean))

    def _keep_for_baselines(self, found: Ensemble) -> None:
        """Keep what runs have read for baselines. What cannot be read is an error only if it is asked for."""
        for need in RECORDED:
            read = (reading[need.name] for reading in found.readings if need.name in reading)
            self._of_baselines[need.name] = (*self._of_baselines.get(need.name, ()), *read)

    @property
    def gradient_classes(self) -> GradientClasses | None:
        """Classes of the parameters' gradients; None if they could not be found, or were not requested."""
        lines, norms = (self.readings.get(name, []) for name in ("gradient_classes", "gradient_norm"))
        if not lines:
            return None
        blocks = self.common.plan.findings.get(REPEATED_BLOCKS, {})
        return GradientClasses.of(lines, (name for norm in norms for name in norm), blocks)

    def gain_around_zeros(self) -> AroundZeros | None:
        """Return the log gain of the steps that zero-initialized weights do not close.

        None if the log gain is finite on a seed, if something else closes a step, or if a weight that closes one, or a parameter
        in front of it, gets no gradient within a few optimizer steps.
        """
        classes, found = self.gradient_classes, self.common.plan.findings.get(AROUND_ZEROS.name)
        if classes is None or found is None or set(self.readings["log_gain"]) != {-math.inf}:
            return None
        closed = all(any(classes.move_by_design([name]) for name in names) for names in found.zeros.values())
        return found if closed and classes.move_by_design(found.before) else None

    def with_unit_of_chain(self, m: Measure) -> Measure:
        """Return the measure with its unit on this chain: per time instead of per step where steps span time."""
        return m if self.common.time is None else replace(m, unit=_PER_TIME.get(m.unit, m.unit))

    def _draw(
        self,
        wanted: Sequence[Measure],
        seeds: Sequence[int],
        tolerated: Tolerated = MappingProxyType({}),
        *,
        until: Mapping[str, Bound] | None = None,
        described: bool = False,
    ) -> Ensemble:
        began = time.perf_counter()
        # A preset asks only models that are meant to satisfy its bound.
        presumed = {m.name: m.presumes for m in wanted if m.presumes is not None and m.name in tolerated}
        needs = frozenset().union(*(m.needs for m in wanted if m.name not in presumed), presumed.values())

        def read_all(run: Run) -> dict[str, Any]:
            found = {m.name: read(m, run, tolerated.get(m.name), presumes=presumed.get(m.name)) for m in wanted}
            for need in RECORDED if described else ():
                with suppress(TrainabilityError):
                    found[need.name] = run[need]
            return found

        found = ensemble(
            self.recipe,
            seeds,
            needs.union(RECORDED) if described else needs,
            read_all,
            known=self._ensemble,
            built_only=all(m.reads_built_model_only for m in wanted),
            enough=lambda readings: bool(until) and self._are_settled(until or {}, readings),
        )
        self.seconds += time.perf_counter() - began
        return found

    def _are_settled(self, bounds: Mapping[str, Bound], readings: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether more seeds would not change the verdict on any bound, given one reading of all measures per seed."""
        lines = [reading.get("gradient_classes") for reading in readings]
        classes = GradientClasses.of([x for x in lines if x is not None], ()) if None not in lines else None

        def is_settled_by(m: Measure, bound: Bound) -> bool:
            value = assemble(m, [reading[m.name] for reading in readings], self.level)
            value = selected_elements(m.name, value, bound)
            return is_settled(judged_elements(m.zero_by_design, value, classes), bound, level=self.level)

        judged = {MEASURES[name]: bound for name, bound in bounds.items() if readings[0][name] is not None}
        return all(is_settled_by(m, bound) for m, bound in judged.items())

    def _refuse_changed(self, reason: str, remedy: str) -> None:
        """Refuse a second run that would not measure the same model on the same inputs.

        Args:
            reason: Why there is a second run, for the message.
            remedy: What to do instead, for the message.

        Raises:
            UsageError: A tensor of the recipe has changed.
        """
        if fingerprint(self.recipe) != self._fingerprint:
            msg = (
                f"{reason}, and the inputs or the module's parameters or buffers (those of BatchNorm change in every forward "
                f"pass) have changed since. {remedy}"
            )
            raise UsageError(msg)

    def _assemble(self, measures: Sequence[Measure]) -> None:
        measures = [self.with_unit_of_chain(m) for m in measures]
        self.values.update({m.name: assemble(m, self.readings[m.name], self.level) for m in measures})


def _causes(run: Run, need: Need[tuple[CauseRecord, ...]]) -> tuple[CauseRecord, ...]:
    with suppress(TrainabilityError):
        return run[need]
    return ()


def tolerated_by(bounds: Mapping[str, Bound]) -> Tolerated:
    """Return the measures that need not apply to the model, because their bounds hold where there is nothing to judge."""
    return {name: InapplicableError for name, bound in bounds.items() if bound.if_any}
