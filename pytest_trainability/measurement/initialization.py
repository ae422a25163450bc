"""The parameters of a model at initialization, read without a forward pass, and checked against a contract."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..checks.statistics import as_seeds
from ..engine.isolation import default_device, derived_seed, preserved_world
from ..engine.runs.allocation import unwritten_tensors
from ..engine.runs.building import drawn
from ..engine.runs.drawing import observed_draws
from ..engine.runs.recipe import ModelSource
from ..errors import TrainabilityError, TrainabilityFailure
from ..init.check import Judgement, check_models
from ..init.description import describe
from ..init.forms import forms_of
from ..init.lint import NEVER_WRITTEN, in_order, seeded_inside, trained_entries, unusual_values
from ..init.rules import RuleLike
from ..init.words import failure_text, first_fault
from ..records.initial_values import InitialValues
from ..records.reports import CheckRecord, VerdictRecord
from ..records.text import visible
from ..report.explain import reproduce_command
from ..report.initial_values import initial_table
from ..report.layout import labelled
from .context import Context
from .options import factory_name, refuse_no_model

__all__ = [
    "Initialization",
    "contract_record",
    "initialization",
    "initialization_in",
    "judge_contract",
    "models_of",
    "verdict_on",
]


class Initialization:
    """The parameters of a model on some seeds; the result of :func:`pytest_trainability.initialization`.

    It prints as a table of what they look like.

    >>> import torch
    >>> from pytest_trainability import init, initialization
    >>> found = initialization(lambda: torch.nn.Linear(30, 20), seeds=2)
    >>> found.check({"weight": init.kaiming_uniform(a=5**0.5), "bias": init.default_bias()})
    >>> found.parameters["weight"].form, round(found.parameters["weight"].rms, 2)
    ('uniform', 0.11)
    """

    def __init__(
        self,
        model: ModelSource,
        seeds: tuple[int, ...],
        name: str,
        judged: Callable[[Judgement, float], CheckRecord | None] = lambda judgement, seconds: None,
    ) -> None:
        self._model = model
        self._name = name
        self._judged = judged
        self.seeds = seeds
        """Seeds of the models; one for a finished module."""

        self._forms: Mapping[str, InitialValues] | None = None

    def __repr__(self) -> str:
        return visible(f"<initialization of {self._name or 'a model'}, seeds {self.seeds}>")

    def __str__(self) -> str:
        """Return a table of all parameters and buffers. Those that differ by numbers, such as layers, share a row."""
        values = {**self.parameters, **self.buffers}
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        counts = f"{len(self.parameters)} parameters, {len(self.buffers)} buffers"
        return "\n".join([visible(f"{self._name}: {counts}, {seeds}"), *initial_table(values.values())])

    @property
    def parameters(self) -> dict[str, InitialValues]:
        """What each parameter looks like, by name, in the model's order: form, rms, mean, outlier.

        The models are built when this is first read. They are not run.

        Raises:
            ModelError: The model cannot be built, or a parameter holds no numbers.
        """
        return {name: values for name, values in self._read().items() if values.kind == "parameter"}

    @property
    def buffers(self) -> dict[str, InitialValues]:
        """What each buffer of floating type looks like, as :attr:`parameters`."""
        return {name: values for name, values in self._read().items() if values.kind == "buffer"}

    @property
    def unusual(self) -> tuple[str, ...]:
        """What no healthy model has: lines ``"NAME: REASON"``, as the measure ``unusual_parameters`` lists them.

        The model of each seed is built; a factory builds two or three more, one after the other. Nothing is run.

        Raises:
            ModelError: The model cannot be built, or a parameter holds no numbers.
        """
        reasons: dict[str, str] = {}
        entries: dict[str, Tensor] = {}
        with preserved_world(), default_device(torch.device("cpu")):
            for seed, model in models_of(self._model, self.seeds):
                entries = trained_entries(model) if seed == self.seeds[0] else entries
                reasons = in_order({**unusual_values(model, describe(model)), **reasons}, model)
            if not isinstance(self._model, nn.Module):
                reasons = self._unusual_builds(reasons, entries)
        return tuple(f"{name}: {reason}" for name, reason in reasons.items())

    def _unusual_builds(self, reasons: Mapping[str, str], entries: Mapping[str, Tensor]) -> dict[str, str]:
        """Return the reasons together with those that further builds of the model show."""
        seed = self.seeds[0]
        unwritten = unwritten_tensors(lambda: nullcontext(drawn(self._model, seed, [])))
        with observed_draws() as draws:
            model = drawn(self._model, derived_seed(seed, "another build"), [])
        seeded = seeded_inside(entries, trained_entries(model), draws.of(model))
        return in_order({**reasons, **seeded, **dict.fromkeys(unwritten, NEVER_WRITTEN)}, model)

    def _read(self) -> Mapping[str, InitialValues]:
        if self._forms is None:
            with preserved_world(), default_device(torch.device("cpu")):
                self._forms = forms_of(self._named(models_of(self._model, self.seeds)))
        return self._forms

    def _named(self, models: Iterator[tuple[int, nn.Module]]) -> Iterator[tuple[int, nn.Module]]:
        """Yield the models, and name those of a nameless factory by their class."""
        for seed, model in models:
            self._name = self._name or type(model).__name__
            yield seed, model

    def check(self, contract: Mapping[str, RuleLike]) -> None:
        """Build the model of each seed, and check its parameters against a contract.

        The first rule whose pattern matches a name counts. Every parameter must match a rule, and every rule a parameter.

        Args:
            contract: Rules of :mod:`pytest_trainability.init` by patterns of names.

        Raises:
            TrainabilityFailure: A parameter breaks its rule or has none, or a rule matches no parameter.
            UsageError: The contract is invalid.
            ModelError: The model cannot be built, or a parameter holds no numbers.
        """
        __tracebackhide__ = True
        began = time.perf_counter()
        try:
            judgement = judge_contract(contract, self._model, self.seeds)
        except TrainabilityError as error:
            raise error.with_traceback(None) from error.__cause__
        record = self._judged(judgement, time.perf_counter() - began)
        if not judgement.holds:
            lines = [failure_text(judgement, self._name)]
            if record is not None and record.reproduce:
                lines += (f"  {line}" for line in labelled("reproduce", reproduce_command(record)))
            raise TrainabilityFailure("\n".join(lines), check=None if record is None else record.name)


def initialization(
    model: ModelSource | type[nn.Module], *, seeds: int | Sequence[int] | None = None, name: str | None = None
) -> Initialization:
    """Return the parameters of a model at initialization, for a check against a contract. The model is never run.

    >>> import torch
    >>> from pytest_trainability import init
    >>> initialization(torch.nn.LayerNorm(8)).check({"weight": init.ones(), "bias": init.zeros()})

    Args:
        model: Module class or factory without arguments, which is built once per seed; or a finished module, which is read as one
            draw of its weights, without a copy.
        seeds: Number of seeds, or the seeds themselves; 4 by default. A finished module has one seed.
        name: Name of the model in messages; by default the name of the factory or of the model's class.

    Returns:
        An object with the method ``check(contract)``.
    """
    refuse_no_model(model)
    wanted = as_seeds(seeds)
    return Initialization(model, wanted[:1] if isinstance(model, nn.Module) else wanted, name or factory_name(model))


def initialization_in(
    context: Callable[[str | None], Context],
    model: ModelSource | type[nn.Module],
    *,
    seeds: int | Sequence[int] | None = None,
    name: str | None = None,
) -> Initialization:
    """Return the parameters of a model as :func:`initialization` does, on behalf of a test.

    Args:
        context: Returns the context of the next check, given the name of the model. Each check is reported to the session.
        model: As in :func:`initialization`.
        seeds: As in :func:`initialization`.
        name: As in :func:`initialization`.
    """
    found = initialization(model, seeds=seeds, name=name)

    def judged(judgement: Judgement, seconds: float) -> CheckRecord:
        where = context(name)
        is_module = isinstance(model, nn.Module)
        record = contract_record(judgement, where, name or factory_name(model), is_module=is_module, seconds=seconds)
        where.report(record)
        return record

    return Initialization(model, found.seeds, name or factory_name(model), judged)


def contract_record(
    judgement: Judgement, context: Context, name: str, *, is_module: bool, seconds: float
) -> CheckRecord:
    """Return the record of a contract that was checked without a measurement: nothing was run, and there is no chain."""
    count = len(judgement.names)
    return CheckRecord(
        test=context.test,
        name=context.name,
        model=name or judgement.model,
        steps=f"{count} parameter{'' if count == 1 else 's'}",
        step_names=(),
        frame="",
        mode="",
        device="cpu",
        dtype="",
        seeds=judgement.seeds,
        seeds_requested=judgement.seeds,
        fixed=is_module,
        seconds=seconds,
        log_gain=math.nan,
        log_gain_low=math.nan,
        log_gain_high=math.nan,
        growth=(),
        verdicts=(verdict_on(judgement),),
        reproduce=context.reproduce,
        along="",
        file=context.file,
        line=context.line,
    )


def judge_contract(contract: Mapping[str, RuleLike], model: ModelSource, seeds: Sequence[int]) -> Judgement:
    """Build the model of each seed, one after the other, and judge a contract.

    Args:
        contract: Rules by patterns of names.
        model: A finished module, or a factory.
        seeds: Seeds to build.

    Returns:
        The result.

    Raises:
        UsageError: The contract is invalid.
        ModelError: The model cannot be built, or a parameter holds no numbers.
    """
    with preserved_world(), default_device(torch.device("cpu")):
        return check_models(contract, models_of(model, seeds))


def verdict_on(judgement: Judgement) -> VerdictRecord:
    """Return the verdict for reports: the number of parameters and rules that are at fault must be zero."""
    assignment = judgement.assignment
    names = {breach.reading.name for breach in judgement.breaches}
    faults = len(names) + len(assignment.unmatched) + len(assignment.unused)
    return VerdictRecord(
        measure="initialization",
        value=faults,
        value_low=faults,
        value_high=faults,
        unit="faults",
        scale="linear",
        low=None,
        high=0,
        holds=judgement.holds,
        marginal=False,
        margin=-faults,
        remark=first_fault(judgement),
    )


def models_of(model: ModelSource, seeds: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
    """Yield each seed and its model. The caller keeps no model, and restores the global generators.

    Yields:
        Seed and model.
    """
    previous: list[weakref.ref[nn.Module]] = []
    for seed in seeds:
        yield seed, drawn(model, seed, previous)
