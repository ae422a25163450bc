"""The result of a measurement: its values, its verdicts and the comparison with its baseline."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from torch import nn

from ..checks.baseline_entries import Entry
from ..checks.bounds import Bound, BoundLike, as_bound
from ..checks.factor_groups import vanishing
from ..checks.initial_values import IN_ROWS
from ..checks.presets import find_preset
from ..checks.tolerances import as_tolerance
from ..checks.verdicts import Value
from ..engine.runs.finiteness import remarks
from ..errors import BoundError, TrainabilityError, TrainabilityFailure, UsageError
from ..init.check import Judgement
from ..init.rules import RuleLike
from ..measures import MEASURES, Measure, companion_of, find_measure, recorded_along
from ..measures.attributes import Attributes
from ..records.estimates import Profile, Steps
from ..records.reports import BaselineRecord, CheckRecord, CureRecord, VerdictRecord
from ..records.suggestions import Suggestion
from ..records.text import visible
from ..report.explain import explain, explain_baseline
from .context import Context
from .cures import Cure, find_cures
from .initialization import Initialization, verdict_on
from .judging import applicable_bounds, verdict_of
from .presentation import Presentation
from .seed_runs import MAY_FAIL, SeedRuns, Tolerated, tolerated_by
from .suggesting import suggestions_of
from .values import details
from .writing import DEAD_UNITS, NOT_FINITE, check_record, entry, explained_by_measures, is_caused_by_growth
from .writing import with_settings as entry_with_settings

__all__ = ["Measurement"]

NOT_STORED = frozenset(("gradient_classes", "nonfinite", "untrained_fraction"))
"""Measures that explain other ones, and are neither shown nor compared by themselves."""
SMALL, SHORT = 10**7, 200
"""Largest numbers of parameters and of steps for which the report of a failure looks for cures, in several more runs."""


class Measurement(Presentation, Attributes):
    """Result of :func:`pytest_trainability.measure`, with one attribute per measure.

    The type of an attribute follows from the kind of its measure: ``Estimate``, ``Spectrum``, ``Profile`` or ``Names``. A measure
    that was not requested repeats the seeded run when it is first read, with the same weights, inputs and dropout masks.

    >>> import torch
    >>> from pytest_trainability import measure
    >>> result = measure(lambda: torch.nn.Linear(3, 3), torch.eye(3), seeds=2)
    >>> result.seeds, result.mode, result.device, result.dtype
    ((0, 1), 'train', 'cpu', 'float32')
    >>> sorted(result.gradient_norm)
    ['bias', 'weight']
    >>> len(result.forward_log_gain.values)  # runs both seeds again
    2
    """

    def __init__(self, seed_runs: SeedRuns, name: str, context: Context) -> None:
        self._seed_runs = seed_runs
        self._name = name
        self._context = context
        self._verdicts: dict[str, VerdictRecord] = {}
        self._bounds: dict[str, Bound] = {}
        """Bounds that were judged, by measure."""
        self._baseline: BaselineRecord | None = None
        self._asserted = False
        """Whether a value was read: the test may assert on it."""
        self._cures: tuple[Cure, ...] | None = None
        """Cures of the verdicts that do not hold; None before they are looked for."""

    def __getattr__(self, name: str) -> Value:
        __tracebackhide__ = True
        if name.startswith("_") or name not in MEASURES:
            near = difflib.get_close_matches(name, dir(self), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "dir() of it lists all measures."
            msg = f"a measurement has no attribute {name!r}. {hint}"
            raise AttributeError(msg)
        was_asserted, is_known = self._asserted, name in self._seed_runs.values
        self._asserted = True
        try:
            value = self._value(name)
        except TrainabilityError as error:
            # The message describes the error; frames of this package do not help.
            raise error.with_traceback(None) from error.__cause__
        if is_known and not was_asserted:
            self._report()
        return value

    def _value(self, name: str) -> Value:
        """Return the value of a measure, on behalf of this package: the test does not assert on it."""
        if name not in self._seed_runs.values:
            self.run([MEASURES[name]])
        return self._seed_runs.values[name]

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *MEASURES})

    def __repr__(self) -> str:
        log_gain = self._seed_runs.values["log_gain"]
        where = f"{self.frame}, {self.mode} mode, {self.device}, gradient of {self.gradient_of}"
        return f"<{visible(f'{self.name}: {self.steps}, {where}, log gain {log_gain!r}')}>"

    @property
    def name(self) -> str:
        """Name of the model in reports: the argument ``name``, else the name of the factory, else the model's class."""
        return self._name or self._seed_runs.common.model_name

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that were drawn, in order: all that were requested, or fewer if those settled the bounds of the test's marker."""
        return self._seed_runs.common.seeds

    @property
    def steps(self) -> Steps:
        """Steps of the chain, in program order; prints as ``12 × GPT2Block``."""
        return self._seed_runs.common.steps

    @property
    def frame(self) -> str:
        """``"per sample"`` (one trajectory per sample) or ``"joint"`` (one trajectory, because samples interact)."""
        return self._seed_runs.common.plan.division.name

    @property
    def mode(self) -> str:
        """``"train"`` or ``"eval"``: the mode of the model."""
        return self._seed_runs.common.mode

    @property
    def device(self) -> str:
        """Device of the measurement, such as ``"cuda:0"``."""
        return self._seed_runs.common.device

    @property
    def dtype(self) -> str:
        """Floating type of the parameters, such as ``"float32"``."""
        return self._seed_runs.common.dtype

    @property
    def gradient_of(self) -> str:
        """What was differentiated: ``"the loss"``, or ``"a random functional of the output"`` where there is no loss."""
        return self._seed_runs.common.gradient_of

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on what the numbers cover, such as layers before the chain, first those on outputs that are not finite."""
        common = self._seed_runs.common
        of_seeds = (self._seed_runs.caution,) if self._seed_runs.caution else ()
        return (*remarks(common.not_finite), *of_seeds, *common.cautions, *common.notes)

    @property
    def seconds(self) -> float:
        """Duration of all runs together, in seconds."""
        return self._seed_runs.seconds

    def run(
        self,
        wanted: Sequence[Measure],
        *,
        until: Mapping[str, Bound] | None = None,
        tolerated: Tolerated = MappingProxyType({}),
    ) -> None:
        """Read measures that are not known yet, as :meth:`SeedRuns.run` does, and report the measurement to the session.

        Raises:
            InapplicableError: A measure does not apply to the model, and that is not tolerated.
            KeyboardInterrupt: Ctrl-C. The seeds that were drawn before are reported to the session, and in the message.
        """
        if self._seed_runs.run(wanted, until=until, tolerated=tolerated):
            if self._seed_runs.common.interrupted:
                self._report()
                drawn = f"{len(self.seeds)} of {len(self._seed_runs.seeds_requested)} seeds were drawn"
                msg = f"{drawn}: {self!r}"
                raise KeyboardInterrupt(msg)
            self._locate_nonfinite()
            self._report()

    def complete(self) -> None:
        """Draw the requested seeds that settled bounds have made unnecessary, and judge the bounds on all seeds.

        Raises:
            TrainabilityFailure: A bound that was settled before does not hold on all seeds. The probability of that is at most
                one minus the confidence level.
        """
        __tracebackhide__ = True
        if self._seed_runs.complete():
            self._locate_nonfinite()
            self._judge({MEASURES[name]: bound for name, bound in self._bounds.items()})

    def check(self, *, preset: str | None = None, **bounds: BoundLike) -> None:
        """Judge all bounds, and raise one failure that lists every violation.

        A bound holds if ``low <= value <= high`` for the average over seeds; NaN violates every bound.

        >>> result.check(log_gain=within(3), gradient_norm=at_least(1e-7))  # doctest: +SKIP

        Args:
            preset: Name of a set of default bounds for a family of models: ``"mlp"``, ``"cnn"``, ``"transformer"`` or ``"rnn"``.
                ``bounds`` are added and take precedence. None by default.
            bounds: Bounds by measure, in its unit: ``within(eps)``, ``within(low, high)``, ``at_least(x)``, ``at_most(x)`` or
                ``(low, high)``. A bound on a profile or spectrum holds for every element, a bound on names for their number.

        Raises:
            TrainabilityFailure: A bound does not hold.
            BoundError: A name is not a measure, or a value is not a bound.
            InapplicableError: A measure does not apply to the model.
        """
        __tracebackhide__ = True
        if not bounds and preset is None:
            msg = "check() needs a bound, such as log_gain=within(3), or preset=."
            raise BoundError(msg)
        where = f"check() in {self._context.test}" if self._context.test else "check()"
        try:
            given = {n: as_bound(b, measure=n, where=where) for n, b in bounds.items()}
            default = find_preset(preset, where=f"{where}: preset") if preset is not None else {}
            judged = {find_measure(n, where=where): bound for n, bound in {**default, **given}.items()}
            self.run(list(judged), tolerated=tolerated_by({m.name: bound for m, bound in judged.items()}))
            companions = [companion for m in judged if (companion := companion_of(m)) is not None]
            self.run(companions, tolerated={m.name: TrainabilityError for m in companions})
        except TrainabilityError as error:
            raise error.with_traceback(None) from error.__cause__
        self._judge(judged)

    def _judge(self, bounds: Mapping[Measure, Bound]) -> None:
        __tracebackhide__ = True
        bounds = applicable_bounds(bounds, self._seed_runs.values)
        self._bounds.update({m.name: bound for m, bound in bounds.items()})
        found = (verdict_of(self._seed_runs, m, bound) for m, bound in bounds.items())
        verdicts = [verdict for verdict in found if verdict is not None]
        self._verdicts.update({verdict.measure: verdict for verdict in verdicts})
        failed = not all(verdict.holds for verdict in verdicts)
        self._cures = None
        if failed:
            self._find_causes(verdicts)
            if self._shows_cures():
                self.cures()
        self._report()
        if failed:
            raise self._failure(explain(self._to_record(verdicts), full=self._context.full))

    def check_baseline(self, *measures: str, **tolerances: float) -> None:
        """Compare with the baseline that is committed next to the test, in ``__trainability__/<test module>.json``.

        A change in either direction is reported if it is larger than the tolerance of its measure and statistically significant.
        Measures, parameters and steps that have vanished or are new are changes, too. All requested seeds are drawn, even if
        fewer have settled the bounds. ``--trainability-baseline=new`` records entries that have no baseline yet, ``update``
        records changes.

        >>> result.check_baseline(log_gain=0.5)  # doctest: +SKIP

        Args:
            measures: Names of measures to record, in addition to ``log_gain``, ``growth_rate``, ``activation_rms``,
                ``gradient_norm`` and ``unused_parameters`` (along time ``lyapunov_max`` instead of the profiles by step) and to
                the measures that the test bounds. Initial values and modules are always recorded.
            tolerances: Tolerances by measure, in its unit; for a measure that is averaged by logarithms, such as
                ``gradient_norm``, in nats of the ratio (0.1 is about ten percent). That of ``parameter_rms`` applies to initial
                values. They take precedence over the tolerances of
                the marker, the command line, the ini file and the measure.

        Raises:
            TrainabilityFailure: The measurement has changed, or it has no baseline.
            BaselineError: The baseline cannot be read.
            UsageError: A tolerance is not a number, a name is not a measure, or the measurement was not made by the fixture.
        """
        __tracebackhide__ = True
        if self._context.baseline is None:
            msg = (
                "check_baseline() needs a measurement of the trainability fixture, as the baseline is stored next to the test. "
                "This one comes from measure()."
            )
            raise UsageError(msg)
        where = f"check_baseline() in {self._context.test}"
        try:
            wanted = self._recorded_measures(*measures, *tolerances, where=where)
            given = {n: as_tolerance(value, measure=n, where=where) for n, value in tolerances.items()}
            self.complete()
            self.run(wanted)
            allowed = {m.name: m.tolerance for m in MEASURES.values()} | {**self._context.tolerances, **given}
            self._baseline = self._context.baseline(
                self._context.name or self.name, self._entry(wanted), allowed, self.with_settings
            )
        except TrainabilityError as error:
            raise error.with_traceback(None) from error.__cause__
        if not self._baseline.holds:
            self._find_causes(list(self._verdicts.values()))
            self._seed_runs.ask_why(explained_by_measures(self._baseline))
        self._report()
        if not self._baseline.holds:
            record = self._to_record(list(self._verdicts.values()))
            raise self._failure(explain_baseline(record, full=self._context.full))

    def _failure(self, message: str) -> TrainabilityFailure:
        return TrainabilityFailure(message, check=self._context.name)

    @property
    def initialization(self) -> Initialization:
        """The parameters and buffers as the factory builds them: what each looks like, and checks against a contract.

        It prints as a table. The models are built again, and not run.

        >>> print(result.initialization)  # doctest: +SKIP
        """
        model = self._seed_runs.recipe.model
        seeds = self.seeds[:1] if isinstance(model, nn.Module) else self.seeds
        return Initialization(model, seeds, self.name, self._note_contract)

    def _note_contract(self, judgement: Judgement, seconds: float) -> CheckRecord:
        self._seed_runs.seconds += seconds
        verdict = verdict_on(judgement)
        self._verdicts[verdict.measure] = verdict
        self._report()
        return self._to_record([verdict])

    def check_initialization(self, contract: Mapping[str, RuleLike]) -> None:
        """Build the model of each seed again, and check its parameters against a contract.

        See :meth:`pytest_trainability.Initialization.check`. The model is checked as the factory builds it, on its device and in
        its data type.

        >>> result.check_initialization({"*.bias": init.zeros(), "**": init.normal(std=0.02)})  # doctest: +SKIP

        Args:
            contract: Rules of :mod:`pytest_trainability.init` by patterns of names.

        Raises:
            TrainabilityFailure: A parameter breaks its rule or has none, or a rule matches no parameter.
            UsageError: The contract is invalid.
            ModelError: A parameter holds no numbers.
        """
        __tracebackhide__ = True
        self.initialization.check(contract)

    def _recorded_measures(self, *names: str, where: str) -> list[Measure]:
        """Return the measures that a baseline records: those of the chain, those with bounds, and the named ones."""
        only_now = self._context.bounded_on_command_line_only
        bounded = [name for name, bound in self._bounds.items() if not bound.if_any and name not in only_now]
        named = [m for name in (*bounded, *names) if (m := find_measure(name, where=where)).name not in IN_ROWS]
        always = recorded_along(self._seed_runs.common.along)
        return [*(m for m in always if m.name not in MAY_FAIL or m.name in self._seed_runs.values), *named]

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the measures that were read so far."""
        return tuple(self._seed_runs.values)

    def with_settings(self, found: Entry) -> Entry:
        """Return an entry with the constants in the code of modules, which explain its changes."""
        return entry_with_settings(found, self._seed_runs)

    def entry_with(self, names: Sequence[str], others: Sequence[str]) -> Entry:
        """Return the entry of a baseline with the measures of every run, with some more, and with those that others have, too.

        Args:
            names: Measures to read if they are not known.
            others: Measures to store if they are known.

        Raises:
            InapplicableError: A measure does not apply to the model.
            UsageError: The inputs or the parameters have changed since the first run.
        """
        known = [name for name in self.measured if name in others and name not in NOT_STORED]
        chosen = [MEASURES[name] for name in dict.fromkeys([*known, *names]) if name not in IN_ROWS]
        self.run(chosen)
        return entry(self._seed_runs, chosen, {})

    @property
    def is_fixed(self) -> bool:
        """Whether a finished module was measured, which is one draw of its weights."""
        return self._seed_runs.recipe.fixed

    def suggestions(self, defaults: Sequence[str] = ()) -> tuple[Suggestion, ...]:
        """Return for each measure that was read the bound that its values over seeds support.

        Args:
            defaults: Measures whose present bound comes from a preset, the command line or the ini file.
        """
        failing = [name for name, verdict in self._verdicts.items() if not verdict.holds]
        return suggestions_of(self._seed_runs, self._bounds, failing, defaults)

    def in_context(self, context: Context) -> Measurement:
        """Return the same runs as a measurement of another test, with its own verdicts."""
        return Measurement(self._seed_runs, self._name, context)

    @property
    def runs_identity(self) -> int:
        """A number that measurements of the same runs share, and no others while they live."""
        return id(self._seed_runs)

    def _shown_record(self) -> CheckRecord:
        return self._to_record(list(self._verdicts.values()))

    def _shown_details(self) -> dict[str, Any]:
        return details(self._seed_runs)

    def _shown_values(self) -> Mapping[str, Value]:
        return {name: value for name, value in self._seed_runs.values.items() if name not in NOT_STORED}

    def _shown_bounds(self) -> Mapping[str, Bound]:
        return self._bounds

    def baseline_entry(self) -> Entry:
        """Return the entry that :meth:`check_baseline` records."""
        wanted = self._recorded_measures(where="check_baseline()")
        self.complete()
        self.run(wanted)
        return self.with_settings(self._entry(wanted))

    def _entry(self, measures: Sequence[Measure]) -> Entry:
        """Return the entry that a baseline stores for this measurement."""
        return entry(self._seed_runs, measures, self._context.environment())

    def _locate_nonfinite(self) -> None:
        """Measure which tensors hold NaN or infinity if the growth rate is not finite, so that a record can name the first one.

        Without an answer the record names the step at which the gradient stops being finite.
        """
        growth = self._seed_runs.values["growth_rate"]
        assert isinstance(growth, Profile)
        if not all(element.mean < math.inf for element in growth.values()):
            with suppress(TrainabilityError):
                self._seed_runs.run([MEASURES["nonfinite"]])

    def cures(self) -> tuple[Cure, ...]:
        """Return changes of the model that bring what has failed inside its bounds.

        Each was tried on copies of the model, on the same seeds and on as many others. They change weights, gains, biases, an ε
        or a factor, add a normalization, or leave out an activation. A failure without a known cause has none.

        Returns:
            At most two, the most specific one first; none if no check has failed.

        Raises:
            UsageError: The inputs or the parameters have changed since the first run.
        """
        failed = [verdict for verdict in self._verdicts.values() if not verdict.holds and verdict.measure in MEASURES]
        if self._cures is None:
            self._find_causes(failed)
            self._cures = find_cures(self._seed_runs, failed, self._judge_again) if failed else ()
        return self._cures

    def _shows_cures(self) -> bool:
        """Return whether the report of a failure looks for cures."""
        mode = self._context.cure
        common = self._seed_runs.common
        return mode != "off" and (mode != "auto" or (common.parameters <= SMALL and len(common.steps) <= SHORT))

    def _judge_again(self, seed_runs: SeedRuns) -> list[VerdictRecord]:
        """Return the verdicts on what has failed, measured on the runs of a changed model."""
        failed = [name for name, verdict in self._verdicts.items() if not verdict.holds and name in MEASURES]
        seed_runs.run([MEASURES[name] for name in (*failed, "log_gain", "gradient_norm", "gradient_classes")])
        found = (verdict_of(seed_runs, MEASURES[name], self._bounds[name]) for name in failed)
        return [verdict for verdict in found if verdict is not None]

    def explain_failure(self) -> None:
        """Report again with the likely cause, after the test has failed by an assertion of its own."""
        verdicts = list(self._verdicts.values())
        if self._seed_runs.factors is None:
            self._find_causes(verdicts)
            self._report()

    def _find_causes(self, verdicts: Sequence[VerdictRecord]) -> None:
        """Find the factors of the steps if growth along the chain can have caused the failure, and other causes."""
        self._seed_runs.ask_why(v.measure for v in verdicts if not v.holds and v.measure in MEASURES)
        if self._seed_runs.is_not_finite():
            self._seed_runs.ask_why([NOT_FINITE])
        if is_caused_by_growth(verdicts, self._seed_runs, self._baseline):
            blocked = vanishing(self._seed_runs.take_apart())
            if blocked is not None and blocked.kind in {"entrywise", "other"}:
                self._seed_runs.ask_why([DEAD_UNITS])

    def _report(self) -> None:
        """Report the values and verdicts so far to the session."""
        self._context.report(self._to_record(list(self._verdicts.values())))

    def _to_record(self, verdicts: Sequence[VerdictRecord]) -> CheckRecord:
        bounded = {name: self._seed_runs.values[name] for name in self._bounds}
        cures = [CureRecord(cure.text, cure.measure, cure.before, cure.after) for cure in self._cures or ()]
        return check_record(
            self._seed_runs,
            self.name,
            self._context,
            verdicts,
            bounded=bounded,
            baseline=self._baseline,
            cures=cures,
            asserted=self._asserted,
        )
