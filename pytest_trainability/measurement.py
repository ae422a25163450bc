"""Where measures meet verdicts: :func:`measure` and the :class:`Measurement` that it returns."""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from keyword import iskeyword
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from .checks.baselines import Entry
from .checks.bounds import Bound, BoundLike, as_bound
from .checks.diagnosis import diagnose, is_about_growth
from .checks.dtypes import as_dtype_name
from .checks.profiles import find_profile
from .checks.statistics import CONFIDENCE, Level, as_confidence, as_seeds
from .checks.tolerances import as_tolerance
from .checks.verdicts import Value, first_outside, is_settled, judge
from .checks.waking import BY_GRADIENT, judged_of, may_sleep, waking, waking_texts
from .engine.ensemble import Ensemble, ensemble
from .engine.given import as_count, as_loss, as_optimizer
from .engine.recipe import ModelSource, OptimizerFactory, Recipe, choose_device, fingerprint, is_fixed
from .engine.steps import StepChoice
from .errors import BoundError, InapplicableError, TrainabilityError, UsageError
from .measures import DEFAULT, MEASURES, RECORDED, RECORDED_ALONG_TIME, Measure, find_measure
from .readings import assemble, read, recorded
from .records import BaselineRecord, CheckRecord, Estimate, Names, Profile, Spectrum, Steps, VerdictRecord
from .report.explain import explain, explain_baseline

__all__ = ["Context", "Measurement", "TrainabilityFailure", "add_measure", "measure", "measure_in"]

_ALWAYS = ("log_gain", "growth_rate", "unused_parameters")
"""Read with what the default measures need, at no cost: reports show them."""
NOTEWORTHY = 3.0
"""Nats of log gain from which a failed plain assert is given a likely cause."""


_BESIDE = {**dict.fromkeys(BY_GRADIENT, "waking_step"), "initial_loss": "excess_loss"}
"""What is measured, where it can be, beside a measure that has a bound: to judge it, or to say what it ought to be."""

_Tolerated: TypeAlias = "Mapping[str, type[TrainabilityError]]"
"""By measure that need not have an answer, for which reasons."""

_UNITS_OF_TIME = {"nats/step": "nats/time", "steps": "time"}


class TrainabilityFailure(AssertionError):
    """A bound does not hold; the message lists every violation."""

    __module__ = "pytest_trainability"


@dataclass(frozen=True, slots=True)
class Context:
    """What the plugin knows beyond the call: where the measurement stands, and who wants to hear of it."""

    test: str = ""
    name: str = ""
    record: Callable[[CheckRecord], None] = lambda record: None
    worker: int = 0
    """Number of this process among those that share the machine's GPUs."""
    threads: int | None = None
    """How many threads at most; None leaves torch's setting."""
    reproduce: str = ""
    """Command that repeats the test, but for seeds and device."""
    confidence: float | None = None
    tolerances: Mapping[str, float] = field(default_factory=dict)
    """By measure, of a comparison with the baseline."""
    steps: Callable[[nn.Module], StepChoice | None] = lambda model: None
    """Told a model that nobody has said how to cut, says how, or None."""
    environment: Callable[[], Mapping[str, str]] = dict
    """What else tells environments apart whose numbers differ."""
    baseline: Callable[[str, Entry, Mapping[str, float]], BaselineRecord] | None = None
    """Compares the entry of a model with its baseline; None outside pytest."""
    of_this_session: frozenset[str] = frozenset()
    """Measures that are bounded on the command line only: no baseline holds them."""


def measure(
    model: ModelSource | type[nn.Module],
    inputs: Any,
    *,
    target: Any = None,
    loss: Callable[..., Any] | None = None,
    seeds: int | Sequence[int] | None = None,
    steps: StepChoice = "auto",
    exponents: int = 1,
    warmup: int = 0,
    alignment: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    train: bool = True,
    name: str | None = None,
    optimizer: OptimizerFactory | None = None,
    classes: int | None = None,
    measures: Sequence[str] = (),
    confidence: float = CONFIDENCE,
) -> Measurement:
    """Measure how trainable a model is at initialization.

    >>> import torch
    >>> from torch import nn
    >>> tower = lambda: nn.Sequential(*[layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.Tanh())])
    >>> result = measure(tower, torch.randn(8, 64), seeds=3)
    >>> result.steps.description, result.frame
    ('20 × Linear', 'per sample')
    >>> bool(result.log_gain < -8)  # PyTorch's default weights are too small for tanh
    True

    Args:
        model: A class or a factory without arguments, built once per seed; or a finished module, one draw.
        inputs: Tensor, tuple (positional arguments), mapping (keyword arguments), or a function of a
            ``torch.Generator`` that makes one.
        target: Handed to ``loss`` after the output; may be a function of a generator, too.
        loss: ``loss(output)``, or ``loss(output, target)`` where a target is given. Left out: ``output.loss`` or a Lightning
            module's ``training_step`` where there is one, else a random functional of the output.
        seeds: How many, or which. A finished module has one.
        steps: ``"auto"``, ``"blocks"``, ``"layers"``, a module class, a glob over module names or a list of names; ``"time"``
            for the time steps of a recurrence, ``"time:NAME"`` for those of one of several.
        exponents: How many Lyapunov exponents.
        warmup: First steps that the exponents leave out, in which the state finds its attractor.
        alignment: Last steps that they leave out, in which the frame, which comes from there, turns to its directions.
        device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"mps"``. A finished module stays
            where it is unless a device is named; it is then copied.
        dtype: Floating type that parameters and float inputs are cast to.
        train: Train or eval mode.
        name: Of the model in reports; its class by default.
        optimizer: Of the measures that take optimizer steps: a function of the parameters, such as
            ``lambda parameters: torch.optim.SGD(parameters, lr=0.1)``; without one AdamW with a learning rate of 1e-3.
        classes: How many the loss chooses from, for ``excess_loss``; without it as many as the output has where that is clear.
        measures: Which to compute at once beside the default ones (``lyapunov_max``, ``gradient_norm``,
            ``activation_rms``). Any other, when first read, repeats the seeded run.
        confidence: Of the intervals.

    Returns:
        The measurement, with one attribute per measure.

    Raises:
        UsageError: An argument cannot be used as given.
        ModelError: The model cannot be built or run, or gives nothing to measure.
        CutError: Its graph cannot be cut into steps.
    """
    return measure_in(
        Context(confidence=as_confidence(confidence)),
        model,
        inputs,
        target=target,
        loss=loss,
        seeds=seeds,
        steps=steps,
        exponents=exponents,
        warmup=warmup,
        alignment=alignment,
        device=device,
        dtype=dtype,
        train=train,
        name=name,
        optimizer=optimizer,
        classes=classes,
        measures=measures,
    )


def measure_in(
    context: Context,
    model: Any,
    inputs: Any,
    *,
    target: Any,
    loss: Any,
    seeds: Any,
    steps: StepChoice,
    exponents: int,
    device: str | torch.device | None,
    dtype: torch.dtype | str | None,
    train: bool,
    name: str | None,
    warmup: int = 0,
    alignment: int = 0,
    optimizer: OptimizerFactory | None = None,
    classes: int | None = None,
    measures: Sequence[str] = (),
    until: Mapping[str, Bound] | None = None,
) -> Measurement:
    """Measure as :func:`measure` does, on behalf of a test.

    With bounds in ``until``, ``seeds`` is a ceiling: no more are drawn once every bound is settled.
    """
    if not isinstance(model, nn.Module) and not callable(model):
        msg = (
            f"the model must be a torch.nn.Module, a class or a factory without arguments. Got {type(model).__name__}."
        )
        raise UsageError(msg)
    fixed = is_fixed(model, inputs)
    recipe = Recipe(
        model=model,
        inputs=inputs,
        target=target,
        loss=as_loss(loss, target),
        steps=steps,
        exponents=as_count("exponents", exponents),
        warmup=as_count("warmup", warmup, least=0),
        alignment=as_count("alignment", alignment, least=0),
        device=choose_device(device, fixed=fixed, worker=context.worker),
        dtype=as_dtype(dtype),
        train=train,
        threads=context.threads,
        cut_by=context.steps,
        optimizer=as_optimizer(optimizer),
        classes=None if classes is None else as_count("classes", classes, least=2),
    )
    until = until or {}
    asked = as_seeds(seeds)
    measurement = Measurement(recipe, asked[:1] if fixed else asked, name, context)
    wanted = (find_measure(name, where="measures=") for name in (*DEFAULT, *measures, *until, *_ALWAYS))
    measurement.run(list(wanted), until=until)
    return measurement


def add_measure(added: Any) -> None:
    """Let a measure of your own be an attribute of every measurement and a name for bounds, in this process.

    A pytest plugin returns its measures from the hook ``pytest_trainability_measures`` instead.

    Raises:
        UsageError: It is no measure, or its name is taken.
    """
    if not isinstance(added, Measure):
        msg = f"a measure must be a pytest_trainability.Measure. Got {type(added).__name__}."
        raise UsageError(msg)
    name = added.name
    taken = {*_RESERVED, *dir(Measurement), *signature(measure).parameters} - set(MEASURES)
    unfit = not name.isidentifier() or iskeyword(name) or name.startswith("_")
    if unfit or name in taken or MEASURES.get(name, added) is not added:
        msg = (
            "a measure must have a name of its own, which can be an attribute: a noun such as gradient_kurtosis. "
            f"{name!r} is taken or cannot be one."
        )
        raise UsageError(msg)
    MEASURES[name] = added


_RESERVED = ("profile", "tolerances")
"""Keywords of the marker that are neither arguments nor measures."""


class Measurement:
    """What was measured: one attribute per measure, and what it was measured on.

    A measure that was not asked for repeats the seeded run when it is first read.
    """

    if TYPE_CHECKING:
        lyapunov_max: Estimate
        lyapunov_spectrum: Spectrum
        lyapunov_history: Profile
        log_gain: Estimate
        growth_rate: Profile
        loss_log_gain: Estimate
        gradient_norm: Profile
        relative_gradient_norm: Profile
        activation_rms: Profile
        forward_log_gain: Estimate
        saturated_fraction: Profile
        dead_fraction: Profile
        sample_similarity: Profile
        memory_horizon: Estimate
        precision_horizon: Estimate
        jacobian_singular_values: Spectrum
        max_ftle: Estimate
        condition_number: Estimate
        numerical_rank: Estimate
        isometry_gap: Estimate
        spectral_radius: Profile
        recurrence_lyapunov_max: Profile
        attention_entropy: Profile
        branch_gradient_share: Profile
        branch_ratio: Profile
        expert_usage: Profile
        interacting_samples: Names
        nonfinite: Names
        unused_parameters: Names
        initial_loss: Estimate
        excess_loss: Estimate
        underflow_fraction: Profile
        overflow_fraction: Profile
        smallest_loss_scale: Estimate
        gradient_snr: Profile
        gradient_confusion: Estimate
        gradient_noise_scale: Estimate
        ntk_condition_number: Estimate
        sharpness: Estimate
        stable_learning_rate: Estimate
        update_ratio: Profile
        loss_drop: Estimate
        waking_step: Profile
        asleep_parameters: Names
        duplicate_parameters: Names
        uninitialized_parameters: Names
        meta_device_differences: Names
        linear_steps: Names

    def __init__(self, recipe: Recipe, asked: tuple[int, ...], name: str | None, context: Context) -> None:
        self._recipe = recipe
        self._asked = asked
        self._context = context
        self._level = Level(context.confidence or CONFIDENCE)
        self._readings: dict[str, list[Any]] = {}
        self._values: dict[str, Value] = {}
        self._verdicts: dict[str, VerdictRecord] = {}
        self._bounds: dict[str, Bound] = {}
        """Those that were judged."""
        self._inapplicable: set[str] = set()
        """Measures that were allowed to have no answer, and have none."""
        self._baseline: BaselineRecord | None = None
        self._fingerprint = fingerprint(recipe)
        self._ensemble: Ensemble | None = None
        self._name = name or _given_name(recipe.model)
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Value:
        if name.startswith("_") or name not in MEASURES:
            msg = f"a measurement has no attribute {name!r}; it has the measures {', '.join(sorted(MEASURES))}"
            raise AttributeError(msg)
        if name not in self._values:
            self.run([MEASURES[name]])
        return self._values[name]

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *MEASURES})

    def __repr__(self) -> str:
        return f"<{self.name}: {self.steps}, {self.frame}, {self.mode} mode, {self.device}, log gain {self.log_gain!r}>"

    @property
    def _common(self) -> Ensemble:
        assert self._ensemble is not None
        return self._ensemble

    @property
    def name(self) -> str:
        """Name of the model in reports: as given, that of the factory, or its class."""
        return self._name or self._common.model_name

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that were drawn: all that were asked for, or as many as settled the bounds of the test's marker."""
        return self._common.seeds

    @property
    def steps(self) -> Steps:
        """The steps of the chain, in program order; prints as ``12 × GPT2Block``."""
        return self._common.steps

    @property
    def frame(self) -> str:
        """``"per sample"`` (one trajectory per sample) or ``"joint"`` (samples interact)."""
        return self._common.plan.frame.name

    @property
    def mode(self) -> str:
        """``"train"`` or ``"eval"``."""
        return self._common.mode

    @property
    def device(self) -> str:
        """Where it was measured, as in ``"cuda:0"``."""
        return self._common.device

    @property
    def dtype(self) -> str:
        """Type of the parameters, as in ``"float32"``."""
        return self._common.dtype

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers ought to know."""
        return self._common.notes

    def run(
        self,
        wanted: Sequence[Measure],
        *,
        until: Mapping[str, Bound] | None = None,
        tolerated: _Tolerated = MappingProxyType({}),
    ) -> None:
        """Make the seeded run, again if need be, for what is wanted and not known yet.

        Args:
            wanted: Measures.
            until: At the first run, bounds which, once all are settled, make further seeds needless.
            tolerated: Measures that may have no answer here, and why.

        Raises:
            InapplicableError: One has no answer here and needs to.
        """
        if until:
            beside = {_BESIDE[name]: TrainabilityError for name in until if name in _BESIDE}
            tolerated = {**tolerated, **beside, **_without_answer(until)}
            wanted = [*wanted, *(MEASURES[name] for name in beside)]
        known = {*self._values, *(self._inapplicable & tolerated.keys())}
        wanted = [m for m in dict.fromkeys(wanted) if m.name not in known]
        if not wanted:
            return
        if self._ensemble is None:
            # Looking after every seed has its price: intervals that hold whenever one stops.
            self._level = Level(self._level.confidence, len(self._asked) if until else None)
            self._ensemble = self._sample(wanted, self._asked, tolerated, until=until)
            found = self._ensemble
        else:
            self._refuse_changed(wanted[0].name)
            found = self._sample(wanted, self.seeds, tolerated)
        missing = {m.name for m in wanted for reading in found.readings if reading[m.name] is None}
        self._inapplicable |= missing
        wanted = [m for m in wanted if m.name not in missing]
        self._readings.update({m.name: [reading[m.name] for reading in found.readings] for m in wanted})
        self._assemble(wanted)

    def complete(self) -> None:
        """Draw the seeds that settled bounds have made needless, for whoever wants all that were asked for.

        Raises:
            TrainabilityFailure: On all of them a bound does not hold that was settled before: at most as often as the
                confidence lets intervals be wrong.
        """
        __tracebackhide__ = True
        rest = self._asked[len(self.seeds) :]
        if not rest:
            return
        self._refuse_changed("the rest of the seeds")
        measures = [MEASURES[name] for name in self._readings]
        found = self._sample(measures, rest)
        for name, readings in self._readings.items():
            readings += [reading[name] for reading in found.readings]
        self._ensemble = replace(self._common, seeds=self._asked, draws=(*self._common.draws, *found.draws))
        self._assemble(measures)
        self._judge({MEASURES[name]: bound for name, bound in self._bounds.items()})

    def _sample(
        self,
        wanted: Sequence[Measure],
        seeds: Sequence[int],
        tolerated: _Tolerated = MappingProxyType({}),
        *,
        until: Mapping[str, Bound] | None = None,
    ) -> Ensemble:
        bounds = [(MEASURES[name], bound) for name, bound in (until or {}).items()]

        def settled(readings: Sequence[Mapping[str, Any]]) -> bool:
            woken = self._woken([reading.get("waking_step") for reading in readings])
            return bool(bounds) and all(
                is_settled(
                    judged_of(m.name, assemble(m, [reading[m.name] for reading in readings], self._level), woken),
                    bound,
                    level=self._level,
                )
                for m, bound in bounds
                if readings[0][m.name] is not None
            )

        needs = frozenset().union(*(m.needs for m in wanted))
        began = time.perf_counter()
        found = ensemble(
            self._recipe,
            seeds,
            needs,
            lambda run: {m.name: read(m, run, tolerated.get(m.name)) for m in wanted},
            known=self._ensemble,
            enough=settled,
        )
        self.seconds += time.perf_counter() - began
        return found

    def _woken(self, readings: Sequence[Mapping[str, float] | None]) -> dict[str, int]:
        """Return what :func:`waking` does of ``waking_step``, as read from each seed; nothing where it was not."""
        if not readings or any(reading is None for reading in readings):
            return {}
        steps = assemble(MEASURES["waking_step"], readings, self._level)
        return waking(steps) if isinstance(steps, Profile) else {}

    def _refuse_changed(self, what: str) -> None:
        """See that a second run would measure the same.

        Raises:
            UsageError: The recipe's tensors have changed.
        """
        if fingerprint(self._recipe) != self._fingerprint:
            msg = (
                f"{what} was not measured at first, and the module's parameters or the inputs have changed since. Ask for "
                f"it beforehand (a bound, or measures=[{what!r}] outside pytest), or measure again."
            )
            raise UsageError(msg)

    def _assemble(self, measures: Sequence[Measure]) -> None:
        measures = [self._in_its_unit(m) for m in measures]
        self._values.update({m.name: assemble(m, self._readings[m.name], self._level) for m in measures})
        self._context.record(self._to_record(tuple(self._verdicts.values())))

    def _in_its_unit(self, m: Measure) -> Measure:
        """Return the measure with the unit that it has here: what is per step, or in steps, may be in time."""
        return m if self._common.time is None else replace(m, unit=_UNITS_OF_TIME.get(m.unit, m.unit))

    def check(self, *, profile: str | None = None, **bounds: BoundLike) -> None:
        """Judge bounds, all of them, and raise one failure that lists every violation.

        >>> result.check(log_gain=within(3), gradient_norm=at_least(1e-7))  # doctest: +SKIP

        Args:
            profile: Default bounds of a family of models, ``"mlp"``, ``"cnn"``, ``"transformer"``, ``"rnn"``, beside those given.
            bounds: By measure: ``within(eps)``, ``within(low, high)``, ``at_least(x)``, ``at_most(x)`` or ``(low, high)``. A
                bound on a profile holds for every element, one on names for their number.

        Raises:
            TrainabilityFailure: A bound does not hold.
            BoundError: A name is no measure, or a value no bound.
        """
        __tracebackhide__ = True
        if not bounds and profile is None:
            msg = "check() must be given a bound, such as log_gain=within(3), or profile=."
            raise BoundError(msg)
        where = f"check() in {self._context.test}" if self._context.test else "check()"
        try:
            given = {n: as_bound(b, measure=n, where=where) for n, b in bounds.items()}
            default = find_profile(profile, where=f"{where}: profile") if profile is not None else {}
            judged = {find_measure(n, where=where): bound for n, bound in {**default, **given}.items()}
            self.run(list(judged), tolerated=_without_answer({m.name: bound for m, bound in judged.items()}))
            beside = [
                _BESIDE[m.name]
                for m in judged
                if m.name == "initial_loss" or may_sleep(m.name, self._values.get(m.name))
            ]
            self.run([MEASURES[name] for name in beside], tolerated=dict.fromkeys(beside, TrainabilityError))
        except TrainabilityError as error:
            raise error.with_traceback(None) from error.__cause__
        self._judge(judged)

    def _judge(self, bounds: Mapping[Measure, Bound]) -> None:
        __tracebackhide__ = True
        values = self._values
        bounds = {m: b for m, b in bounds.items() if not (b.if_any and self._is_empty(m))}
        self._bounds.update({m.name: bound for m, bound in bounds.items()})
        woken = self._woken(self._readings.get("waking_step", []))
        verdicts = [
            replace(
                judge(m.name, judged_of(m.name, values[m.name], woken), b, scale=m.scale, level=self._level),
                remark=self._guess() if m.name == "initial_loss" else "",
            )
            for m, b in bounds.items()
        ]
        self._verdicts.update({verdict.measure: verdict for verdict in verdicts})
        self._context.record(self._to_record(tuple(self._verdicts.values())))
        if not all(verdict.holds for verdict in verdicts):
            raise TrainabilityFailure(explain(self._to_record(tuple(verdicts))))

    def _guess(self) -> str:
        """Say what a guess would cost, which the initial loss of a classifier ought to be."""
        if "excess_loss" not in self._values:
            return ""
        guess = self.initial_loss.mean - self.excess_loss.mean
        return f"a guess among {math.exp(guess):.0f} classes costs {guess:.4g}"

    def _is_empty(self, m: Measure) -> bool:
        """Whether there is nothing to judge."""
        value = self._values.get(m.name)
        return value is None or (isinstance(value, (Profile, Spectrum)) and not len(value))

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
            bounded = [n for n, b in self._bounds.items() if not b.if_any and n not in self._context.of_this_session]
            always = RECORDED_ALONG_TIME if self._common.along == "time" else RECORDED
            wanted = [find_measure(n, where=where) for n in (*always, *bounded, *measures, *tolerances)]
            given = {n: as_tolerance(value, measure=n, where=where) for n, value in tolerances.items()}
            self.complete()
            self.run(wanted)
            entry = self._entry(wanted)
            allowed = {m.name: m.tolerance for m in MEASURES.values()} | {**self._context.tolerances, **given}
            self._baseline = self._context.baseline(self._context.name or self.name, entry, allowed)
        except TrainabilityError as error:
            raise error.with_traceback(None) from error.__cause__
        record = self._to_record(tuple(self._verdicts.values()))
        self._context.record(record)
        if not self._baseline.holds:
            raise TrainabilityFailure(explain_baseline(record))

    def _entry(self, measures: Sequence[Measure]) -> Entry:
        """Return what a baseline records of this measurement."""
        environment = {
            "device": torch.device(self.device).type,
            "dtype": self.dtype,
            "platform": f"{sys.platform} {platform.machine()}",
            "torch": torch.__version__.partition("+")[0],
            # As torch is set up in this process: a worker of xdist takes its share of the cores while it measures.
            "threads": str(torch.get_num_threads()),
        }
        added = self._context.environment()
        if taken := sorted(environment.keys() & added.keys()):
            msg = f"what plugins add to the environment must have names of its own. {taken[0]!r} is the project's."
            raise UsageError(msg)
        return Entry(
            environment={**environment, **added},
            conditions={"chain": self._chain_text(), "frame": self.frame, "mode": self.mode},
            seeds=self.seeds,
            draws=self._common.draws,
            measures={m.name: recorded(self._in_its_unit(m), self._readings[m.name]) for m in measures},
        )

    def _chain_text(self) -> str:
        """Describe the chain; of a solver without how many steps it takes, which may differ between machines."""
        description = self.steps.description
        return description if self._common.time is None else description.partition(" × ")[2]

    def _to_record(self, verdicts: tuple[VerdictRecord, ...]) -> CheckRecord:
        growth = tuple(e.mean for e in self.growth_rate.values())
        failed = [verdict for verdict in verdicts if not verdict.holds]
        return CheckRecord(
            test=self._context.test,
            name=self._context.name,
            model=self.name,
            steps=self.steps.description,
            step_names=tuple(self.growth_rate),
            frame=self.frame,
            mode=self.mode,
            device=self.device,
            dtype=self.dtype,
            seeds=self.seeds,
            asked=self._asked,
            fixed=self._recipe.fixed,
            seconds=self.seconds,
            log_gain=self.log_gain.mean,
            log_gain_low=self.log_gain.low,
            log_gain_high=self.log_gain.high,
            growth=growth,
            verdicts=verdicts,
            leaves_band=self._leaves_band(failed, growth),
            cause=tuple(diagnose(growth, self._common.facts)) if self._is_about_growth(verdicts) else (),
            notes=self.notes,
            cautions=tuple(self._cautions()),
            reproduce=self._context.reproduce,
            baseline=self._baseline,
            along=self._common.along,
        )

    def _is_about_growth(self, verdicts: Sequence[VerdictRecord]) -> bool:
        if self._baseline is not None and all(verdict.holds for verdict in verdicts):
            # What has changed, or is not recorded, is no fault of the growth.
            return False
        if verdicts:
            return any(is_about_growth(verdict, self.log_gain.mean) for verdict in verdicts if not verdict.holds)
        return not abs(self.log_gain.mean) < NOTEWORTHY

    def _cautions(self) -> Iterator[str]:
        unused = self.unused_parameters
        if unused:
            named = ", ".join(unused[:2]) + (", …" if len(unused) > 2 else "")
            count = f"{len(unused)} parameters get" if len(unused) > 1 else "1 parameter gets"
            yield f"{count} no gradient at all: {named}"
        woken = self._woken(self._readings.get("waking_step", [])) if self._bounds.keys() & set(BY_GRADIENT) else {}
        yield from waking_texts(woken)
        if self.steps.left_out:
            yield f"not on the chain: {self.steps.left_out}"

    def _leaves_band(self, failed: Sequence[VerdictRecord], growth: Sequence[float]) -> str:
        """Say at which step the accumulated log gain leaves the band that a failed bound gives it."""
        factors = {"log_gain": 1.0}
        if self._recipe.warmup == self._recipe.alignment == 0:
            factors["lyapunov_max"] = self._common.time or len(growth)
        for verdict in failed:
            if verdict.measure in factors:
                ends = (None if end is None else factors[verdict.measure] * end for end in (verdict.low, verdict.high))
                index = first_outside(growth, Bound(*ends))
                if index is not None:
                    return f"at {tuple(self.growth_rate)[index]}, {len(growth) - index} of {len(growth)} steps from the output"
        return ""


def _without_answer(bounds: Mapping[str, Bound]) -> _Tolerated:
    """Return the measures whose bounds hold where there is nothing to judge."""
    return {name: InapplicableError for name, bound in bounds.items() if bound.if_any}


def _given_name(model: Any) -> str:
    name = "" if isinstance(model, nn.Module) else str(getattr(model, "__name__", ""))
    return "" if name == "<lambda>" else name


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a floating type, given itself or its name; None leaves models as they are.

    Raises:
        UsageError: It is none.
    """
    if dtype in {None, ""}:
        return None
    found: torch.dtype = getattr(torch, as_dtype_name(dtype))
    return found
