"""Measures meet verdicts here: :func:`measure` and the :class:`Measurement` that it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ..checks.bounds import Bound
from ..checks.statistics import CONFIDENCE, as_confidence, as_seeds
from ..engine.runs.recipe import ModelSource, OptimizerFactory, StepChoice
from ..measures import DEFAULT, find_measure
from .context import Context
from .options import Options, as_recipe, factory_name, refuse_unknown
from .registration import add_measure
from .result import Measurement
from .seed_runs import SeedRuns

if TYPE_CHECKING:
    # Part of typing from Python 3.11 on.
    from typing_extensions import Unpack

__all__ = [
    "DEFAULT_OPTIONS",
    "Context",
    "Measurement",
    "Options",
    "add_measure",
    "as_recipe",
    "measure",
    "measure_in",
    "refuse_unknown",
]

_ALWAYS = ("log_gain", "growth_rate", "unused_parameters", "gradient_classes", "untrained_fraction")
"""Measures that every record shows. They need nothing more than the default measures, unless a gradient is zero or may be."""


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

    One forward pass per seed is cut into a chain of steps ``x_0 → x_1 → … → x_L``. The backward pass carries cotangents through
    it, ``u_{l-1} = J_lᵀ u_l`` with the step Jacobians ``J_l = ∂x_l/∂x_{l-1}``; the measures read how they grow.

    >>> import torch
    >>> from torch import nn
    >>> tower = lambda: nn.Sequential(*[layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.Tanh())])
    >>> result = measure(tower, torch.randn(8, 64), seeds=3)
    >>> result.steps.description, result.frame
    ('20 × Linear', 'per sample')
    >>> bool(result.log_gain < -8)  # PyTorch's default weights are too small for tanh
    True

    Args:
        model: Module class or factory without arguments, which is built once per seed; or a finished module, which is measured as
            one draw of its weights. It and the random generators are left as they were, except for what the module holds in
            objects of classes that are neither modules, containers, dataclasses, arrays nor generators.
        inputs: Tensor, tuple (positional arguments), mapping (keyword arguments), or a function of a ``torch.Generator`` that
            returns one of these. The first dimension of a tensor counts the samples.
        target: Second argument of ``loss``; a tree of tensors, or a function of a ``torch.Generator`` that returns one. None by
            default.
        loss: ``loss(output)``, or ``loss(output, target)`` where a target is given; returns a scalar tensor. By default the
            model's own loss (``output.loss``, ``output["loss"]`` or a Lightning module's ``training_step``) where there is one,
            else a random linear functional of the output.
        seeds: Number of seeds, or the seeds themselves; 4 by default. A finished module has one seed.
        steps: ``"auto"`` (default), ``"blocks"``, ``"layers"``, a module class, a glob over module names, or a list of module
            names; ``"time"`` for the time steps of a recurrence, ``"time:NAME"`` for those of one of several recurrences.
        exponents: Number of Lyapunov exponents; 1 by default.
        warmup: Number of first steps that the exponents exclude while the state approaches the attractor; 0 by default.
        alignment: Number of final steps that the exponents exclude while the random frame aligns with the Lyapunov directions;
            0 by default. The frame starts at the last state.
        device: ``"auto"`` (CUDA where available), ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``. By default ``"auto"`` for a
            factory, and the module's own device for a finished module. A finished module is copied to another device.
        dtype: Floating type that parameters and float inputs are cast to, or its name; unchanged by default.
        train: True (default) for train mode, False for eval mode.
        name: Name of the model in reports; by default the name of the factory or of the model's class.
        optimizer: Function of the parameters that returns an optimizer, for measures that take optimizer steps, such as
            ``lambda parameters: torch.optim.SGD(parameters, lr=0.1)``. By default AdamW with a learning rate of 1e-3.
        classes: Number of classes that the loss chooses from, for ``excess_loss``; by default it is found from the loss where
            that is possible.
        measures: Names of measures to compute in the first run, in addition to the default ones (``lyapunov_max``,
            ``gradient_norm``, ``activation_rms``). Every other measure repeats the seeded run when it is first read.
        confidence: Confidence level of the intervals, in (0, 1); 0.99 by default.

    Returns:
        The measurement, with one attribute per measure: an :class:`~pytest_trainability.Estimate` for a scalar, a ``Spectrum``
        (largest first), a ``Profile`` (by name, in program order) or ``Names``.

    Raises:
        UsageError: An argument has an invalid value.
        ModelError: The model cannot be built or run, its output carries no gradient, or a part of it cannot be restored.
        CutError: The autograd graph cannot be cut into the chosen steps.

    Source: Benettin et al., Meccanica 15, 9 (1980), for the exponents of a product of Jacobians; here the product is the
    backward pass of one model, read from its autograd graph, and the average runs over seeds.
    """
    return measure_in(
        Context(confidence=as_confidence(confidence)),
        model,
        inputs,
        measures=measures,
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
    )


DEFAULT_OPTIONS = cast(
    "Options",
    {p.name: p.default for p in signature(measure).parameters.values() if p.name in Options.__optional_keys__},
)
"""Defaults of the options, as the signature of :func:`measure` states them."""


def measure_in(
    context: Context,
    model: ModelSource | type[nn.Module],
    inputs: Any,
    *,
    measures: Sequence[str] = (),
    until: Mapping[str, Bound] | None = None,
    **options: Unpack[Options],
) -> Measurement:
    """Measure as :func:`measure` does, on behalf of a test.

    Args:
        context: The test.
        model: As in :func:`measure`.
        inputs: As in :func:`measure`.
        measures: As in :func:`measure`.
        until: Bounds by measure. They make ``seeds`` a maximum: drawing stops once every bound is settled.
        options: Further arguments of :func:`measure`.

    Returns:
        The measurement.

    Raises:
        UsageError: An argument is unknown or has an invalid value.
        ModelError: The model cannot be built or run, or its output carries no gradient.
        CutError: The autograd graph cannot be cut into the chosen steps.
    """
    refuse_unknown(options, where="trainability()")
    given: Options = {**DEFAULT_OPTIONS, **options}
    recipe = as_recipe(context, model, inputs, given)
    until = until or {}
    seeds = as_seeds(given["seeds"])
    seed_runs = SeedRuns(
        recipe,
        seeds[:1] if recipe.fixed else seeds,
        context.confidence,
        described=context.expects_baseline or context.detailed,
    )
    if recipe.fixed and len(seeds) > 1 and given["seeds"] is not None and not context.seeds_by_default:
        seed_runs.caution = (
            f"{len(seeds)} seeds were asked for, and one was drawn: a finished module is one draw of its weights. Pass a "
            "factory, such as lambda: Net(), to draw more"
        )
    measurement = Measurement(seed_runs, given["name"] or factory_name(model), context)
    wanted = (find_measure(name, where="measures=") for name in (*DEFAULT, *measures, *until, *_ALWAYS))
    measurement.run(list(wanted), until=until)
    return measurement
