"""Where measures meet verdicts: :func:`measure` and the :class:`Measurement` that it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from keyword import iskeyword
from typing import Any

import torch
from torch import nn

from ..checks.bounds import Bound
from ..checks.dtypes import as_dtype_name
from ..checks.statistics import CONFIDENCE, as_confidence, as_seeds
from ..engine.capture.steps import StepChoice
from ..engine.runs.arguments import as_count, as_loss, as_optimizer, refuse_type
from ..engine.runs.building import choose_device
from ..engine.runs.recipe import ModelSource, OptimizerFactory, Recipe, is_fixed
from ..errors import UsageError
from ..measures import DEFAULT, MEASURES, Measure, find_measure
from .context import Context
from .result import Measurement
from .seed_runs import SeedRuns

__all__ = ["Context", "Measurement", "add_measure", "as_dtype", "measure", "measure_in"]

_ALWAYS = ("log_gain", "growth_rate", "unused_parameters")
"""Read with what the default measures need, at no cost: reports show them."""


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
    refuse_type("train", train, bool, "True or False: the mode that it is measured in")
    refuse_type("name", name, (str, type(None)), "a text")
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
        choose_steps=context.steps,
        optimizer=as_optimizer(optimizer),
        classes=None if classes is None else as_count("classes", classes, least=2),
    )
    until = until or {}
    asked = as_seeds(seeds)
    seed_runs = SeedRuns(recipe, asked[:1] if fixed else asked, context.confidence)
    measurement = Measurement(seed_runs, name or _given_name(model), context)
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


def _given_name(model: Any) -> str:
    name = "" if isinstance(model, nn.Module) else str(getattr(model, "__name__", ""))
    return "" if name == "<lambda>" else name


_RESERVED = ("preset", "tolerances")
"""Keywords of the marker that are neither arguments nor measures."""


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a floating type, given itself or its name; None leaves models as they are.

    Raises:
        UsageError: It is none.
    """
    if dtype in {None, ""}:
        return None
    found: torch.dtype = getattr(torch, as_dtype_name(dtype))
    return found
