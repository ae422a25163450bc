"""The runs of every seed, and what measures read of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeAlias

from ..checks.bounds import Bound
from ..checks.statistics import CONFIDENCE, Level
from ..checks.verdicts import Value, is_settled
from ..checks.waking import without_zero_initialized
from ..engine.runs.description import Ensemble
from ..engine.runs.ensemble import ensemble
from ..engine.runs.forward_pass import fingerprint
from ..engine.runs.recipe import Recipe
from ..errors import InapplicableError, TrainabilityError, UsageError
from ..measures import MEASURES, Measure
from ..records.estimates import Profile
from .readings import assemble, read

__all__ = ["SeedRuns", "Tolerated", "without_answer"]

Tolerated: TypeAlias = "Mapping[str, type[TrainabilityError]]"
"""By measure that need not have an answer, for which reasons."""

_UNITS_OF_TIME = {"nats/step": "nats/time", "steps": "time"}


class SeedRuns:
    """What is known of a recipe's models: readings by measure and seed, and the values that they make."""

    def __init__(self, recipe: Recipe, asked: tuple[int, ...], confidence: float | None) -> None:
        self.recipe, self.asked = recipe, asked
        self.level = Level(confidence or CONFIDENCE)
        self.readings: dict[str, list[Any]] = {}
        self.values: dict[str, Value] = {}
        self.seconds = 0.0
        self._inapplicable: set[str] = set()
        """Measures that were allowed to have no answer, and have none."""
        self._fingerprint = fingerprint(recipe)
        self._ensemble: Ensemble | None = None

    @property
    def common(self) -> Ensemble:
        """What all seeds share, from the first run on."""
        assert self._ensemble is not None
        return self._ensemble

    def run(
        self,
        wanted: Sequence[Measure],
        *,
        until: Mapping[str, Bound] | None = None,
        tolerated: Tolerated = MappingProxyType({}),
    ) -> bool:
        """Make the seeded run, again if need be, for what is wanted and not known yet; return whether there was any.

        Args:
            wanted: Measures.
            until: At the first run, bounds which, once all are settled, make further seeds needless.
            tolerated: Measures that may have no answer here, and why.

        Raises:
            InapplicableError: One has no answer here and needs to.
        """
        if until:
            companions = {MEASURES[n].measured_with: TrainabilityError for n in until if MEASURES[n].measured_with}
            tolerated = {**tolerated, **companions, **without_answer(until)}
            wanted = [*wanted, *(MEASURES[name] for name in companions)]
        known = {*self.values, *(self._inapplicable & tolerated.keys())}
        wanted = [m for m in dict.fromkeys(wanted) if m.name not in known]
        if not wanted:
            return False
        if self._ensemble is None:
            # Looking after every seed has its price: intervals that hold whenever one stops.
            self.level = Level(self.level.confidence, len(self.asked) if until else None)
            self._ensemble = self._draw(wanted, self.asked, tolerated, until=until)
            found = self._ensemble
        else:
            self._refuse_changed(wanted[0].name)
            found = self._draw(wanted, self.common.seeds, tolerated)
        missing = {m.name for m in wanted for reading in found.readings if reading[m.name] is None}
        self._inapplicable |= missing
        wanted = [m for m in wanted if m.name not in missing]
        self.readings.update({m.name: [reading[m.name] for reading in found.readings] for m in wanted})
        self._assemble(wanted)
        return True

    def complete(self) -> bool:
        """Draw the seeds that settled bounds have made needless; return whether there were any."""
        rest = self.asked[len(self.common.seeds) :]
        if not rest:
            return False
        self._refuse_changed("the rest of the seeds")
        measures = [MEASURES[name] for name in self.readings]
        found = self._draw(measures, rest)
        for name, readings in self.readings.items():
            readings += [reading[name] for reading in found.readings]
        self._ensemble = replace(self.common, seeds=self.asked, draws=(*self.common.draws, *found.draws))
        self._assemble(measures)
        return True

    @property
    def waking_step(self) -> Profile | None:
        """After how many optimizer steps each parameter gets a gradient, where that was measured."""
        found = self.values.get("waking_step")
        return found if isinstance(found, Profile) else None

    def in_its_unit(self, m: Measure) -> Measure:
        """Return the measure with the unit that it has here: what is per step, or in steps, may be in time."""
        return m if self.common.time is None else replace(m, unit=_UNITS_OF_TIME.get(m.unit, m.unit))

    def _draw(
        self,
        wanted: Sequence[Measure],
        seeds: Sequence[int],
        tolerated: Tolerated = MappingProxyType({}),
        *,
        until: Mapping[str, Bound] | None = None,
    ) -> Ensemble:
        bounds = [(MEASURES[name], bound) for name, bound in (until or {}).items()]

        def settled(readings: Sequence[Mapping[str, Any]]) -> bool:
            steps = self._assembled_steps([reading.get("waking_step") for reading in readings])
            return bool(bounds) and all(
                is_settled(
                    without_zero_initialized(
                        m.zero_by_design, assemble(m, [reading[m.name] for reading in readings], self.level), steps
                    ),
                    bound,
                    level=self.level,
                )
                for m, bound in bounds
                if readings[0][m.name] is not None
            )

        needs = frozenset().union(*(m.needs for m in wanted))
        began = time.perf_counter()
        found = ensemble(
            self.recipe,
            seeds,
            needs,
            lambda run: {m.name: read(m, run, tolerated.get(m.name)) for m in wanted},
            known=self._ensemble,
            enough=settled,
        )
        self.seconds += time.perf_counter() - began
        return found

    def _assembled_steps(self, readings: Sequence[Mapping[str, float] | None]) -> Profile | None:
        if not readings or any(reading is None for reading in readings):
            return None
        found = assemble(MEASURES["waking_step"], readings, self.level)
        return found if isinstance(found, Profile) else None

    def _refuse_changed(self, what: str) -> None:
        """See that a second run would measure the same.

        Raises:
            UsageError: The recipe's tensors have changed.
        """
        if fingerprint(self.recipe) != self._fingerprint:
            msg = (
                f"{what} was not measured at first, and the module's parameters, its buffers (those of BatchNorm, in a forward "
                f"pass) or the inputs have changed since. Ask for it beforehand (a bound, or measures=[{what!r}] outside "
                "pytest), or measure again."
            )
            raise UsageError(msg)

    def _assemble(self, measures: Sequence[Measure]) -> None:
        measures = [self.in_its_unit(m) for m in measures]
        self.values.update({m.name: assemble(m, self.readings[m.name], self.level) for m in measures})


def without_answer(bounds: Mapping[str, Bound]) -> Tolerated:
    """Return the measures whose bounds hold where there is nothing to judge."""
    return {name: InapplicableError for name, bound in bounds.items() if bound.if_any}
