"""The parameters of a model at initialization, read without a forward pass, and checked against a contract."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from ..checks.statistics import as_seeds
from ..engine.isolation import default_device, preserved_world
from ..engine.runs.building import drawn
from ..engine.runs.recipe import ModelSource
from ..errors import TrainabilityError, TrainabilityFailure
from ..init.check import Judgement, check_models
from ..init.forms import forms_of
from ..init.rules import RuleLike
from ..init.words import failure_text, first_fault
from ..records.initial_values import InitialValues
from ..records.reports import VerdictRecord
from ..records.text import visible
from ..report.initial_values import initial_table
from .options import factory_name, refuse_no_model

__all__ = ["Initialization", "initialization", "judge_contract", "models_of", "verdict_on"]


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

    def __init__(self, model: ModelSource, seeds: tuple[int, ...], name: str) -> None:
        self._model = model
        self._name = name
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
        try:
            judgement = judge_contract(contract, self._model, self.seeds)
        except TrainabilityError as error:
            raise error.with_traceback(None) from error.__cause__
        if not judgement.holds:
            raise TrainabilityFailure(failure_text(judgement, self._name))


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
