"""How a measure scales: :func:`width_sweep`, :func:`depth_sweep` and the :class:`Scaling` that they return."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import Parameter, signature
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .checks.bounds import BoundLike, as_bound
from .checks.statistics import CONFIDENCE, Level, as_confidence, as_seeds, estimate
from .checks.verdicts import judge
from .engine.given import as_count, as_optimizer
from .engine.isolation import preserved_generators, preserved_model
from .engine.recipe import OptimizerFactory, Recipe, choose_device, recorded
from .engine.replay import Objective
from .engine.training import Training, changes, outputs_of_modules
from .errors import BoundError, ModelError, TrainabilityError, UsageError
from .measurement import Context, Measurement, TrainabilityFailure, as_dtype, measure_in
from .measurement import measure as measure_once
from .measures import MEASURES, find_measure
from .records import CheckRecord, Estimate, Profile, Spectrum, VerdictRecord, format_number
from .report.explain import explain, labelled, reproduce_command

__all__ = ["Scaling", "depth_sweep", "sweep_in", "width_sweep"]

CHANGE = "activation_change"
"""By how much training changes what each module returns: known to sweeps of trained models only."""

Along: TypeAlias = Literal["width", "depth"]
Summary: TypeAlias = "str | Sequence[str] | None"
Patterns: TypeAlias = "str | Sequence[str]"

DEFAULT: dict[str, str] = {"width": "activation_rms", "depth": "log_gain"}
EACH = "each"
EXTREMES = ("max", "min")
"""What is followed of a profile whose elements change their names with the size."""
SUMMARIES: dict[str, str] = {"max": "largest", "min": "smallest", "mean": "mean", "first": "first", "last": "last"}

_OWN = {"measures", "confidence"}
_SETTINGS = {
    name: parameter.default
    for name, parameter in signature(measure_once).parameters.items()
    if parameter.kind is Parameter.KEYWORD_ONLY and name not in _OWN
}
"""Arguments of :func:`pytest_trainability.measure` that are handed on, with their defaults."""
_NOTABLE_BEND = 0.05
"""Difference between the first and the last local slope below which a curve is called straight, whatever its noise."""
_WIDTH = 80


def width_sweep(
    build: Callable[[int], nn.Module],
    widths: Sequence[int],
    inputs: Any = None,
    *,
    inputs_of: Callable[[int], Any] | None = None,
    measure: str = "activation_rms",
    summary: Summary = None,
    matching: Patterns = "*",
    excluding: Patterns = (),
    after_steps: int = 0,
    confidence: float = CONFIDENCE,
    **settings: Any,
) -> Scaling:
    """Measure models of several widths, and the exponent with which a measure scales.

    ``value ≈ c · width^slope``: the least-squares slope of ``ln value`` over ``ln width``, fitted for each seed. Of
    measures that are logarithms already (nats), or shares, it is that of the value itself.

    >>> import torch
    >>> from torch import nn
    >>> from pytest_trainability import within
    >>> def mlp(width):
    ...     return nn.Sequential(
    ...         nn.Linear(16, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4)
    ...     )
    >>> vectors = lambda generator: torch.randn(8, 16, generator=generator)
    >>> sweep = width_sweep(mlp, [32, 64, 128, 256], vectors)
    >>> sweep.check(within(0.2))  # activations do not depend on the width
    >>> bool(abs(sweep.of("gradient_norm").slope["2.weight"] - 0.5) < 0.2)  # and the norms of gradients?
    True

    Args:
        build: Builds a new model of the width that it is given, once per seed.
        widths: Two or more, increasing; three or more tell a power law from another.
        inputs: As of :func:`pytest_trainability.measure`, the same for every width: a tensor, tuple, mapping, or a function of a
            ``torch.Generator``.
        inputs_of: In place of ``inputs``, where they depend on the width: a function of it that returns what ``inputs``
            may be. What it draws is seeded.
        measure: Which, by its name; with ``after_steps`` also ``"activation_change"``, the RMS of ``x_t - x_0`` of what
            each module returns.
        summary: What is followed of a profile: ``"each"`` element by its name, or the ``"max"``, ``"min"``, ``"mean"``
            (geometric for a scale), ``"first"`` or ``"last"`` of each seed, or several of these. ``"each"`` by default over
            widths, ``("max", "min")`` over depths.
        matching: Shell patterns of the elements that are followed, or summarized.
        excluding: Of those that are not, such as biases whose gradient is zero by design.
        after_steps: Steps of training before, of ``optimizer``, on the loss and the batch that are measured.
        confidence: Of the intervals.
        settings: Further arguments of :func:`pytest_trainability.measure`: ``target``, ``loss``, ``optimizer`` (AdamW with
            a learning rate of 1e-3 unless given), ``seeds``, ``steps``, ``device``, ….

    Returns:
        The scaling. The slope is dimensionless for a scale, else the measure's unit per factor of e in width.

    Raises:
        UsageError: An argument cannot be used as given.
        BoundError: ``measure`` names none.
        ModelError: A model cannot be built, trained or run.
        CutError: Its graph cannot be cut into steps.

    Source: Yang et al., Tensor Programs V, arXiv:2203.03466 (2022), Fig. 5, for coordinate checks: there the standard
    deviation of ``x_t - x_0``, here its RMS.
    """
    return sweep_in(
        Context(confidence=as_confidence(confidence)),
        "width",
        build,
        widths,
        inputs,
        inputs_of=inputs_of,
        measure=measure,
        summary=summary,
        matching=matching,
        excluding=excluding,
        after_steps=after_steps,
        **settings,
    )


def depth_sweep(
    build: Callable[[int], nn.Module],
    depths: Sequence[int],
    inputs: Any = None,
    *,
    inputs_of: Callable[[int], Any] | None = None,
    measure: str = "log_gain",
    summary: Summary = None,
    matching: Patterns = "*",
    excluding: Patterns = (),
    after_steps: int = 0,
    confidence: float = CONFIDENCE,
    **settings: Any,
) -> Scaling:
    """Measure models of several depths, and how a measure scales; the arguments are those of :func:`width_sweep`.

    A gain that stays O(1) has slope 0. That of pre-norm residual networks grows like ``½ ln(depth)``, slope ½; that of plain
    towers like the depth, which is no line over ``ln(depth)``: each of ``local_slopes`` is larger than the one before.

    >>> import torch
    >>> from torch import nn
    >>> def tower(depth):
    ...     return nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(64, 64), nn.Tanh())])
    >>> sweep = depth_sweep(tower, [4, 8, 16], lambda generator: torch.randn(8, 64, generator=generator))
    >>> sweep.reading.partition(":")[0]  # which says how much, too
    'log_gain shrinks in proportion to depth'

    Args:
        build: Builds a new model of the depth that it is given.
        depths: Two or more, increasing.
        inputs: The same for every depth.
        inputs_of: In place of ``inputs``, a function of the depth.
        measure: Which.
        summary: What is followed of a profile, whose elements change their names with depth: by default the largest and
            the smallest.
        matching: Shell patterns of the elements that are followed, or summarized.
        excluding: Of those that are not.
        after_steps: Steps of training before.
        confidence: Of the intervals.
        settings: Further arguments of :func:`pytest_trainability.measure`.

    Returns:
        The scaling.

    Raises:
        UsageError: An argument cannot be used as given.
        BoundError: ``measure`` names none.
        ModelError: A model cannot be built, trained or run.
        CutError: Its graph cannot be cut into steps.
    """
    return sweep_in(
        Context(confidence=as_confidence(confidence)),
        "depth",
        build,
        depths,
        inputs,
        inputs_of=inputs_of,
        measure=measure,
        summary=summary,
        matching=matching,
        excluding=excluding,
        after_steps=after_steps,
        **settings,
    )


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
    _refuse_inputs(where, inputs, inputs_of)
    found = _as_sizes(along, sizes)
    given = {**_SETTINGS, **_known_settings(where, settings)}
    training = _as_training(context, after_steps, given)
    _refuse_measure(where, measure, training)
    _as_summaries(summary)
    sweep = _Sweep(along, found, context, as_seeds(given["seeds"]))
    for size in found:
        sweep.measure(_Factory(build, along, size, training), _inputs_at(size, inputs, inputs_of), measure, given)
    sweep.refuse_alike(measure)
    scaling = sweep.scaling(measure, summary, matching, excluding)
    sweep.reading = scaling.reading
    sweep.record(scaling)
    return scaling


# What was asked for -------------------------------------------------------------------------------------------------


def _refuse_inputs(where: str, inputs: Any, inputs_of: Any) -> None:
    if (inputs is None) == (inputs_of is None):
        came = "neither" if inputs is None else "both"
        msg = f"{where} must be given inputs, or inputs_of=, a function that makes those of a size. Got {came}."
        raise UsageError(msg)
    if inputs_of is not None and not callable(inputs_of):
        msg = f"inputs_of must be a function of the size. Got {type(inputs_of).__name__}. What is the same for all is inputs=."
        raise UsageError(msg)


def _as_sizes(along: str, sizes: Any) -> tuple[int, ...]:
    msg = (
        f"{along}s must be two or more whole numbers of at least 1, increasing, such as [64, 128, 256]. Got {sizes!r}."
    )
    try:
        given = list(sizes)
        found = tuple(operator.index(size) for size in given)
    except TypeError:
        raise UsageError(msg) from None
    increasing = all(a < b for a, b in pairwise(found))
    if any(isinstance(size, bool) for size in given) or len(found) < 2 or found[0] < 1 or not increasing:
        raise UsageError(msg)
    return found


def _known_settings(where: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in settings:
        if name not in _SETTINGS:
            near = difflib.get_close_matches(name, _SETTINGS, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            msg = f"{where} must be given arguments of its own or of measure(). {name!r} is none.{hint}"
            raise UsageError(msg)
    return settings


def _refuse_measure(where: str, name: str, training: _Training | None) -> None:
    if name == CHANGE:
        if training is None:
            msg = f"{CHANGE} must come with after_steps=, a number of at least 1: it is what training changes."
            raise UsageError(msg)
        return
    known = MEASURES if training is None else (*MEASURES, CHANGE)
    if find_measure(name, where=f"measure= of {where}", known=known).kind == "names":
        msg = (
            f"{where} must be given a measure that is a number. {name!r} is a list of names. Check it at every size: "
            f"for result in sweep.measurements: result.check({name}=at_most(0))."
        )
        raise UsageError(msg)


def _as_summaries(summary: Summary) -> tuple[str, ...]:
    """Read a summary, or several, of a profile; none is empty.

    Raises:
        UsageError: It is none.
    """
    given = (summary,) if isinstance(summary, str) else tuple(summary or ())
    if not set(given) <= {*SUMMARIES, EACH} or (EACH in given and len(given) > 1):
        msg = f"summary must be 'each', or one or several of {', '.join(map(repr, SUMMARIES))}. Got {summary!r}."
        raise UsageError(msg)
    return given


def _inputs_at(size: int, inputs: Any, inputs_of: Callable[[int], Any] | None) -> Any:
    if inputs_of is None:
        return inputs

    # Called where the engine draws inputs, so that one seed means one draw.
    def drawn(generator: torch.Generator) -> Any:
        try:
            given = inputs_of(size)
            return given(generator) if callable(given) and not isinstance(given, (Tensor, Mapping)) else given
        except Exception as error:
            msg = f"inputs_of must make the inputs of every size. inputs_of({size}) raised {type(error).__name__}: {error}"
            raise UsageError(msg) from error

    return drawn


# Training before the measurement ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Training:
    """Steps of an optimizer on the batch that is measured, with its loss."""

    steps: int
    optimizer: OptimizerFactory | None
    settings: Mapping[str, Any]
    worker: int

    def recipe(self, model: nn.Module, inputs: Any) -> Recipe:
        given = self.settings
        return Recipe(
            model=model,
            inputs=inputs,
            target=given["target"],
            loss=given["loss"],
            steps="auto",
            exponents=1,
            device=choose_device(given["device"], fixed=False, worker=self.worker),
            dtype=as_dtype(given["dtype"]),
            train=given["train"],
        )

    def run(self, model: nn.Module, inputs: Any, seed: int, *, compare: bool) -> dict[str, float]:
        """Train the model; return by how much what its modules return has changed, if asked to compare."""
        recipe = self.recipe(model, inputs)
        model.to(device=recipe.device, dtype=recipe.dtype)
        model.train(recipe.train)
        lazy = any(is_lazy(p) for p in model.parameters())
        # A first run draws the batch that will be measured, and gives lazy modules their weights.
        with nullcontext() if lazy else preserved_model(model):
            batch = recorded(recipe, model, seed)
        if batch.loss is None:
            msg = "after_steps= must come with a loss to train on. Hand in loss=, or a model that computes its own."
            raise UsageError(msg)
        objective = Objective(batch, recipe.loss, seed)
        del batch
        before = outputs_of_modules(objective) if compare else {}
        model.train()
        Training(objective, self.optimizer).take(self.steps)
        model.train(recipe.train)
        objective.seed = seed
        return changes(before, outputs_of_modules(objective)) if compare else {}


def _as_training(context: Context, after_steps: Any, settings: Mapping[str, Any]) -> _Training | None:
    as_count("after_steps", after_steps, least=0)
    optimizer = as_optimizer(settings["optimizer"])
    return _Training(after_steps, optimizer, settings, context.worker) if after_steps else None


class _Factory:
    """Builds the model of one size, and trains it where asked to."""

    def __init__(self, build: Callable[[int], Any], along: str, size: int, training: _Training | None) -> None:
        self.build, self.size, self.training = build, size, training
        self.at = f"{along} {size}"
        # The name of the model in reports.
        self.__name__ = getattr(build, "__name__", "<lambda>")
        self.inputs: Any = None
        self.compare = False
        self.changes: dict[int, dict[str, float]] = {}
        """Of every seed, by module."""
        self.shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
        """Of the parameters of the model that was built last."""

    def __call__(self) -> nn.Module:
        # Whoever builds has seeded the generator with the number of the draw.
        seed = torch.initial_seed()
        model = self._built()
        self.shapes = tuple((name, () if is_lazy(p) else tuple(p.shape)) for name, p in model.named_parameters())
        if self.training is None:
            return model
        if not self.changes:
            self._refuse_kept(model)
        try:
            self.changes[seed] = self.training.run(model, self.inputs, seed, compare=self.compare)
        except TrainabilityError:
            raise
        except Exception as error:
            msg = f"the model must train. {type(error).__name__}: {error}"
            raise ModelError(msg) from error
        return model

    def _built(self) -> nn.Module:
        try:
            model = self.build(self.size)
        except Exception as error:
            msg = f"the function must build a model. It raised {type(error).__name__}: {error}"
            raise ModelError(msg) from error
        if not isinstance(model, nn.Module):
            msg = f"the function must return a torch.nn.Module. It returned {type(model).__name__}."
            raise ModelError(msg)
        return model

    def _refuse_kept(self, model: nn.Module) -> None:
        """Training changes the model: it must be nobody else's."""
        with preserved_generators():
            if self._built() is model:
                msg = (
                    "the function must build a new model each time it is called, which is then trained. It returned the same "
                    "object twice."
                )
                raise UsageError(msg)


# All sizes ----------------------------------------------------------------------------------------------------------


class _Sweep:
    """The measurements of all sizes, and what was judged of them."""

    def __init__(self, along: Along, sizes: tuple[int, ...], context: Context, asked: tuple[int, ...]) -> None:
        self.along, self.sizes, self.context, self.asked = along, sizes, context, asked
        self.measurements: list[Measurement] = []
        self.factories: list[_Factory] = []
        self.verdicts: dict[Any, tuple[VerdictRecord, str]] = {}
        """With what a failed one means, in words."""
        self.reading = ""
        """What was asked for in the first place, in words."""

    @property
    def level(self) -> Level:
        return Level(self.context.confidence or CONFIDENCE)

    def measure(self, factory: _Factory, inputs: Any, measure: str, settings: Mapping[str, Any]) -> None:
        factory.inputs, factory.compare = inputs, measure == CHANGE
        measures = () if measure == CHANGE else (measure,)
        # The sweep is one check of the session, not one for each size.
        quiet = replace(self.context, record=_ignore, baseline=None)
        try:
            found = measure_in(quiet, factory, inputs, measures=measures, **{**settings, "seeds": self.asked})
        except TrainabilityError as error:
            told = error.__cause__ if isinstance(error.__cause__, TrainabilityError) else error
            msg = f"at {factory.at}: {told}"
            raise type(told)(msg) from told.__cause__
        self.measurements.append(found)
        self.factories.append(factory)

    def refuse_alike(self, measure: str) -> None:
        """Refuse models that do not depend on their size.

        Weights of the same shapes are no proof of that: a layer may be applied several times. Nor are the same numbers: zeros
        are, at every size. Both together are.
        """
        if len({factory.shapes for factory in self.factories}) > 1:
            return
        found = [
            ({name: repr(e.values) for name, e in elements.items()}, repr(measurement.log_gain.values))
            for elements, measurement in zip(self.elements(measure), self.measurements)
        ]
        if all(one == found[0] for one in found):
            factory = self.factories[0]
            msg = (
                f"build must use the {self.along}: models of {self.sizes[0]} and {self.sizes[-1]} are alike. At every "
                f"{self.along} `{factory.__name__}` built one with the same parameters, and {measure} is the same to the last "
                f"digit. For instance lambda {self.along}: Net({self.along}={self.along})."
            )
            raise UsageError(msg)

    def elements(self, measure: str) -> list[dict[str, Estimate]]:
        """Return the elements of a measure by name, for each size; a scalar is one without a name."""
        if measure == CHANGE:
            return [self._changes(factory) for factory in self.factories]
        found = []
        for measurement in self.measurements:
            value = getattr(measurement, measure)
            found.append({"": value} if isinstance(value, Estimate) else _by_name(value))
        return found

    def _changes(self, factory: _Factory) -> dict[str, Estimate]:
        draws = [factory.changes[seed] for seed in self.asked]
        if not factory.compare:
            msg = (
                f"{CHANGE} must be asked for when the models are trained: {self.along}_sweep(..., measure={CHANGE!r})."
            )
            raise UsageError(msg)
        names = dict.fromkeys(name for draw in draws for name in draw)
        return {n: estimate([d[n] for d in draws if n in d], name=n, scale="log", level=self.level) for n in names}

    def scaling(self, measure: str, summary: Summary, matching: Patterns, excluding: Patterns) -> Scaling:
        """Match the elements of one measure between sizes, or summarize them at each."""
        elements, chosen = self.elements(measure), _as_summaries(summary)
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
        return Scaling(measure, self.along, self.sizes, values, self.asked, summary, left_out, self)

    def record(self, scaling: Scaling) -> None:
        """Tell the session what has been measured and judged."""
        self.context.record(self.to_record([verdict for verdict, _ in self.verdicts.values()], scaling))

    def to_record(self, verdicts: Sequence[VerdictRecord], scaling: Scaling) -> CheckRecord:
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
            asked=self.asked,
            fixed=False,
            seconds=math.fsum(m.seconds for m in self.measurements),
            # Of the largest, which a reader of the column would ask for.
            log_gain=last.log_gain.mean,
            log_gain_low=last.log_gain.low,
            log_gain_high=last.log_gain.high,
            growth=(),
            verdicts=tuple(verdicts),
            notes=(*(failed or [self.reading]), f"the log gain is that of {self.along} {self.sizes[-1]}", *last.notes),
            cautions=tuple(scaling._cautions()),
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


# The result ---------------------------------------------------------------------------------------------------------


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
    _sweep: Any = field(default=None, compare=False)

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
        if measure != CHANGE or not any(factory.training for factory in self._sweep.factories):
            _refuse_measure("of()", measure, None)
        found: Scaling = self._sweep.scaling(measure, summary, matching, excluding)
        kept = [self._sweep.sizes.index(size) for size in self.sizes]
        return replace(found, sizes=self.sizes, values=tuple(found.values[i] for i in kept))

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
        context: Context = self._sweep.context
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
        slopes = [_fit([math.log(size) for size in sizes], ys) for ys in _heights(values)]
        unit = "" if first.scale == "log" else f"{first.unit} per e-fold".strip()
        return estimate(slopes, unit=unit, name=first.name, level=self._sweep.level)

    # In words

    def _cautions(self) -> Iterator[str]:
        if self.left_out:
            named = ", ".join(self.left_out[:2]) + (", …" if len(self.left_out) > 2 else "")
            yield f"not at every {self.along} and seed, and not followed: {named}"

    def _read(self, name: str) -> str:
        """Say in words how one element scales."""
        values = self._at(name)
        label = self._label(name)
        broken = [(size, word) for size, e in zip(self.sizes, values) if (word := _broken(e))]
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
        heights = [math.fsum(ys) / len(values[0].values) for ys in zip(*_heights(values))]
        if _misfit(self.sizes, heights) > _misfit([math.log(size) for size in self.sizes], heights) / 4:
            return ""
        rate = _fit(self.sizes, heights)
        if values[0].scale == "log":
            return f"exponentially with {self.along}: by a factor of {math.exp(rate):.3g} for each unit of it"
        unit = f" {values[0].unit}" if values[0].unit else ""
        return f"in proportion to {self.along}: {format_number(rate)}{unit} for each unit of it"

    def _explain(self, verdict: VerdictRecord, reading: str) -> str:
        record: CheckRecord = self._sweep.to_record([verdict], self)
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


def _heights(values: Sequence[Estimate]) -> list[tuple[float, ...]]:
    """Return what a line is fitted to, for each seed: logarithms of a scale."""
    return [
        tuple(_height(value, e.scale) for value, e in zip(draw, values)) for draw in zip(*(e.values for e in values))
    ]


def _height(value: float, scale: str) -> float:
    if scale != "log":
        return value
    return math.log(value) if value > 0 else -math.inf if value == 0 else math.nan


def _fit(x: Sequence[float], y: Sequence[float]) -> float:
    """Return ``Σ (x - x̄) y / Σ (x - x̄)²``; NaN where a value is not finite, which no other may make up for."""
    if not all(map(math.isfinite, y)):
        return math.nan
    middle, mean = math.fsum(x) / len(x), math.fsum(y) / len(y)
    return math.fsum((a - middle) * (b - mean) for a, b in zip(x, y)) / math.fsum((a - middle) ** 2 for a in x)


def _misfit(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the sum of squares that a straight line leaves."""
    slope, middle, mean = _fit(x, y), math.fsum(x) / len(x), math.fsum(y) / len(y)
    return math.fsum((b - mean - slope * (a - middle)) ** 2 for a, b in zip(x, y))


def _broken(value: Estimate) -> str:
    """Say why an estimate has no height."""
    if any(map(math.isnan, value.values)):
        return "not a number"
    if not all(map(math.isfinite, value.values)):
        return "infinite"
    return "zero" if value.scale == "log" and 0 in value.values else ""
