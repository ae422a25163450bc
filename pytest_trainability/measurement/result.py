"""What was measured, judged and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from ..checks.baselines import Entry
from ..checks.bounds import Bound, BoundLike, as_bound
from ..checks.presets import find_preset
from ..checks.tolerances import as_tolerance
from ..checks.verdicts import Value, judge
from ..checks.waking import may_be_zero_by_design, without_zero_initialized
from ..errors import BoundError, TrainabilityError, TrainabilityFailure, UsageError
from ..measures import MEASURES, Measure, find_measure, recorded_along
from ..measures.attributes import Attributes
from ..records.estimates import Profile, Spectrum, Steps
from ..records.reports import BaselineRecord, CheckRecord, VerdictRecord
from ..report.explain import explain, explain_baseline
from .context import Context
from .seed_runs import SeedRuns, Tolerated, without_answer
from .writing import check_record, entry

__all__ = ["Measurement"]


class Measurement(Attributes):
    """What was measured: one attribute per measure, and what it was measured on.

    A measure that was not asked for repeats the seeded run when it is first read.
    """

    def __init__(self, seed_runs: SeedRuns, name: str, context: Context) -> None:
        self._seed_runs = seed_runs
        self._name = name
        self._context = context
        self._verdicts: dict[str, VerdictRecord] = {}
        self._bounds: dict[str, Bound] = {}
        """Those that were judged."""
        self._baseline: BaselineRecord | None = None

    def __getattr__(self, name: str) -> Value:
        if name.startswith("_") or name not in MEASURES:
            msg = f"a measurement has no attribute {name!r}; it has the measures {', '.join(sorted(MEASURES))}"
            raise AttributeError(msg)
        if name not in self._seed_runs.values:
            self.run([MEASURES[name]])
        return self._seed_runs.values[name]

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *MEASURES})

    def __repr__(self) -> str:
        return f"<{self.name}: {self.steps}, {self.frame}, {self.mode} mode, {self.device}, log gain {self.log_gain!r}>"

    @property
    def name(self) -> str:
        """Name of the model in reports: as given, that of the factory, or its class."""
        return self._name or self._seed_runs.common.model_name

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that were drawn: all that were asked for, or as many as settled the bounds of the test's marker."""
        return self._seed_runs.common.seeds

    @property
    def steps(self) -> Steps:
        """The steps of the chain, in program order; prints as ``12 × GPT2Block``."""
        return self._seed_runs.common.steps

    @property
    def frame(self) -> str:
        """``"per sample"`` (one trajectory per sample) or ``"joint"`` (samples interact)."""
        return self._seed_runs.common.plan.division.name

    @property
    def mode(self) -> str:
        """``"train"`` or ``"eval"``."""
        return self._seed_runs.common.mode

    @property
    def device(self) -> str:
        """Where it was measured, as in ``"cuda:0"``."""
        return self._seed_runs.common.device

    @property
    def dtype(self) -> str:
        """Type of the parameters, as in ``"float32"``."""
        return self._seed_runs.common.dtype

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers ought to know."""
        return self._seed_runs.common.notes

    @property
    def seconds(self) -> float:
        """How long all runs took together."""
        return self._seed_runs.seconds

    def run(
        self,
        wanted: Sequence[Measure],
        *,
        until: Mapping[str, Bound] | None = None,
        tolerated: Tolerated = MappingProxyType({}),
    ) -> None:
        """Make the seeded run as :meth:`SeedRuns.run` does, and tell the session.

        Raises:
            InapplicableError: A measure has no answer here and needs to.
        """
        if self._seed_runs.run(wanted, until=until, tolerated=tolerated):
            self._tell()

    def complete(self) -> None:
        """Draw the seeds that settled bounds have made needless, for whoever wants all that were asked for.

        Raises:
            TrainabilityFailure: On all of them a bound does not hold that was settled before: at most as often as the
                confidence lets intervals be wrong.
        """
        __tracebackhide__ = True
        if self._seed_runs.complete():
            self._judge({MEASURES[name]: bound for name, bound in self._bounds.items()})

    def check(self, *, preset: str | None = None, **bounds: BoundLike) -> None:
        """Judge bounds, all of them, and raise one failure that lists every violation.

        >>> result.check(log_gain=within(3), gradient_norm=at_least(1e-7))  # doctest: +SKIP

        Args:
            preset: Default bounds of a family of models, ``"mlp"``, ``"cnn"``, ``"transformer"``, ``"rnn"``, beside those given.
            bounds: By measure: ``within(eps)``, ``within(low, high)``, ``at_least(x)``, ``at_most(x)`` or ``(low, high)``. A
                bound on a profile holds for every element, one on names for their number.

        Raises:
            TrainabilityFailure: A bound does not hold.
            BoundError: A name is no measure, or a value no bound.
        """
        __tracebackhide__ = True
        if not bounds and preset is None:
            msg = "check() must be given a bound, such as log_gain=within(3), or preset=."
            raise BoundError(msg)
        where = f"check() in {self._context.test}" if self._context.test else "check()"
        try:
            given = {n: as_bound(b, measure=n, where=where) for n, b in bounds.items()}
            default = find_preset(preset, where=f"{where}: preset") if preset is not None else {}
            judged = {find_measure(n, where=where): bound for n, bound in {**default, **given}.items()}
            self.run(list(judged), tolerated=without_answer({m.name: bound for m, bound in judged.items()}))
            companions = [m.measured_with for m in judged if self._asks_for_companion(m)]
            self.run([MEASURES[name] for name in companions], tolerated=dict.fromkeys(companions, TrainabilityError))
        except TrainabilityError as error:
            raise error.with_traceback(None) from error.__cause__
        self._judge(judged)

    def _judge(self, bounds: Mapping[Measure, Bound]) -> None:
        __tracebackhide__ = True
        values = self._seed_runs.values
        bounds = {m: b for m, b in bounds.items() if not (b.if_any and _is_empty(values.get(m.name)))}
        self._bounds.update({m.name: bound for m, bound in bounds.items()})
        judged = {
            m: without_zero_initialized(m.zero_by_design, values[m.name], self._seed_runs.waking_step) for m in bounds
        }
        verdicts = [
            replace(
                judge(m.name, value, bounds[m], scale=m.scale, level=self._seed_runs.level),
                remark=self._chance_loss() if m.name == "initial_loss" else "",
            )
            for m, value in judged.items()
            # Where all of it was set aside there is nothing left to judge; where it was empty, that is a failure.
            if _is_empty(values[m.name]) or not _is_empty(value)
        ]
        self._verdicts.update({verdict.measure: verdict for verdict in verdicts})
        self._tell()
        if not all(verdict.holds for verdict in verdicts):
            raise TrainabilityFailure(explain(self._to_record(verdicts)))

    def _asks_for_companion(self, m: Measure) -> bool:
        """Whether a measure that is judged needs another one to be judged, or to be explained."""
        if not m.measured_with:
            return False
        return not m.zero_by_design or may_be_zero_by_design(m.zero_by_design, self._seed_runs.values.get(m.name))

    def _chance_loss(self) -> str:
        """Say what a guess would cost, which the initial loss of a classifier ought to be."""
        if "excess_loss" not in self._seed_runs.values:
            return ""
        guess = self.initial_loss.mean - self.excess_loss.mean
        return f"a guess among {math.exp(guess):.0f} classes costs {guess:.4g}"

    def check_baseline(self, *measures: str, **tolerances: float) -> None:
        """Compare with the baseline that is committed beside the test, in ``__trainability__/<test module>.json``.

        A change is reported when it is larger than the tolerance of its measure and no accident, in either direction;
        measures, parameters and steps that have vanished or are new are changes, too. All seeds that were asked for are
        drawn, even if fewer have settled the bounds. ``--trainability-baseline=new`` records what has no baseline yet,
        ``update`` what has changed.

        >>> result.check_baseline(log_gain=0.5)  # doctest: +SKIP

        Args:
            measures: Which to record beside ``log_gain``, ``growth_rate``, ``activation_rms``, ``gradient_norm``,
                ``unused_parameters`` (along time ``lyapunov_max`` in the place of the profiles by step) and those that the test
                has bounds for.
            tolerances: By measure, in its unit; of a scale such as ``gradient_norm`` in nats of ratio (0.1 is about ten
                percent). Over those of the marker, the command line, the ini file and the measure.

        Raises:
            TrainabilityFailure: It has changed, or there is no baseline.
            BaselineError: The baseline cannot be read.
            UsageError: A tolerance is no number, a name no measure, or this is no test.
        """
        __tracebackhide__ = True
        if self._context.baseline is None:
            msg = (
                "check_baseline() must be called in a test, on what the trainability fixture has measured: the baseline is "
                "kept beside the test. Got a measurement of measure()."
            )
            raise UsageError(msg)
        where = f"check_baseline() in {self._context.test}"
        try:
            bounded = [n for n, b in self._bounds.items() if not b.if_any and n not in self._context.bounded_on_command_line_only]
            named = [find_measure(n, where=where) for n in (*bounded, *measures, *tolerances)]
            wanted = [*recorded_along(self._seed_runs.common.along), *named]
            given = {n: as_tolerance(value, measure=n, where=where) for n, value in tolerances.items()}
            self.complete()
            self.run(wanted)
            found = self._entry(wanted)
            allowed = {m.name: m.tolerance for m in MEASURES.values()} | {**self._context.tolerances, **given}
            self._baseline = self._context.baseline(self._context.name or self.name, found, allowed)
        except TrainabilityError as error:
            raise error.with_traceback(None) from error.__cause__
        self._tell()
        if not self._baseline.holds:
            raise TrainabilityFailure(explain_baseline(self._to_record(list(self._verdicts.values()))))

    def _entry(self, measures: Sequence[Measure]) -> Entry:
        """Return what a baseline records of this measurement."""
        return entry(self._seed_runs, measures, self._context.environment())

    def _tell(self) -> None:
        """Tell the session what has been measured and judged so far."""
        self._context.record(self._to_record(list(self._verdicts.values())))

    def _to_record(self, verdicts: Sequence[VerdictRecord]) -> CheckRecord:
        bounded = {name: self._seed_runs.values[name] for name in self._bounds}
        return check_record(self, self._seed_runs, self._context, verdicts, bounded=bounded, baseline=self._baseline)


def _is_empty(value: Value | None) -> bool:
    """Whether there is nothing to judge."""
    return value is None or (isinstance(value, (Profile, Spectrum)) and not len(value))
