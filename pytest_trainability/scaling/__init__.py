"""How a measure scales: :func:`width_sweep`, :func:`depth_sweep` and the :class:`Scaling` that they return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..checks.statistics import CONFIDENCE, as_confidence, as_seeds
from ..errors import UsageError
from ..measurement import Context
from .arguments import (
    CHANGE,
    DEFAULT_MEASURE,
    Along,
    Patterns,
    Summary,
    as_options,
    as_sizes,
    as_summaries,
    inputs_at,
    refuse_inputs,
    refuse_measure,
)
from .family import Member, as_training
from .result import Scaling, scaling_of
from .sweep import SizeSweep

__all__ = ["Scaling", "depth_sweep", "size_sweep_in", "width_sweep"]


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
    """Measure models of several widths, and fit the exponent with which a measure scales.

    ``value ≈ c · width^slope``: for each seed, the least-squares slope of ``ln value`` over ``ln width``. Measures that are
    already logarithms (nats) or fractions are fitted as they are: ``value ≈ slope · ln width + c``.

    >>> import torch
    >>> from torch import nn
    >>> from pytest_trainability import within
    >>> def mlp(width):
    ...     return nn.Sequential(
    ...         nn.Linear(16, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4)
    ...     )
    >>> vectors = lambda generator: torch.randn(8, 16, generator=generator)
    >>> scaling = width_sweep(mlp, [32, 64, 128, 256], vectors)
    >>> scaling.check(within(0.2))  # activations do not depend on the width
    >>> bool(abs(scaling.of("gradient_norm").slope["2.weight"] - 0.5) < 0.2)  # norms of gradients grow like its root
    True

    Args:
        build: Function of a width that returns a new model; it is called once per seed.
        widths: Two or more increasing whole numbers. With three or more, a power law can be distinguished from other laws.
        inputs: Inputs as in :func:`pytest_trainability.measure`, the same for every width.
        inputs_of: Function of the width that returns the inputs, where these depend on the width; it replaces ``inputs``. The
            seed of each run determines what it draws.
        measure: Name of the measure, ``"activation_rms"`` by default. With ``after_steps`` it may also be
            ``"activation_change"``, the RMS of ``x_t - x_0`` for the output x of each module before and after t steps.
        summary: What to follow of a profile: ``"each"`` element by its name, or one or several of ``"max"``, ``"min"``,
            ``"mean"`` (geometric for a log-scale measure), ``"first"`` and ``"last"`` over the elements of each seed. By default
            ``"each"`` over widths, and ``("max", "min")`` over depths.
        matching: Shell pattern, or several, of the elements to follow or summarize; all by default.
        excluding: Shell pattern, or several, of elements to exclude, such as biases whose gradient is zero by design; none by
            default.
        after_steps: Number of optimizer steps before the measurement, on the loss and the batch that are measured; 0 by default.
        confidence: Confidence level of the intervals, in (0, 1); 0.99 by default.
        settings: Further arguments of :func:`pytest_trainability.measure`: ``target``, ``loss``, ``optimizer``, ``seeds``,
            ``steps``, ``device``, ….

    Returns:
        The scaling. Its slope is a pure number for a log-scale measure, else in the measure's unit per factor of e in width.

    Raises:
        UsageError: An argument has an invalid value, or the models do not depend on the width.
        BoundError: The measure is unknown.
        ModelError: A model cannot be built, trained or run.
        CutError: The autograd graph of a model cannot be cut into steps.

    Source: Yang et al., Tensor Programs V, arXiv:2203.03466 (2022), Fig. 5, for coordinate checks. They plot the standard
    deviation of ``x_t - x_0``; this function measures its RMS.
    """
    return size_sweep_in(
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
    """Measure models of several depths, and fit how a measure scales.

    ``value ≈ slope · ln depth + c`` for each seed, and ``value ≈ c · depth^slope`` for a log-scale measure. A log gain that stays
    O(1) has slope 0. That of pre-norm residual networks grows like ``½ ln(depth)``, with slope ½. That of plain towers grows like
    the depth, which is not a line over ``ln(depth)``: each of ``local_slopes`` is larger than the one before.

    >>> import torch
    >>> from torch import nn
    >>> def tower(depth):
    ...     return nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(64, 64), nn.Tanh())])
    >>> scaling = depth_sweep(tower, [4, 8, 16], lambda generator: torch.randn(8, 64, generator=generator))
    >>> scaling.reading.partition(":")[0]  # the rest of it has the rate
    'log_gain shrinks in proportion to depth'

    Args:
        build: Function of a depth that returns a new model; it is called once per seed.
        depths: Two or more increasing whole numbers.
        inputs: Inputs as in :func:`pytest_trainability.measure`, the same for every depth.
        inputs_of: Function of the depth that returns the inputs; it replaces ``inputs``.
        measure: Name of the measure, ``"log_gain"`` by default.
        summary: What to follow of a profile, as in :func:`width_sweep`. By default the largest and the smallest element, as the
            elements change their names with the depth.
        matching: Shell pattern, or several, of the elements to follow or summarize; all by default.
        excluding: Shell pattern, or several, of elements to exclude; none by default.
        after_steps: Number of optimizer steps before the measurement; 0 by default.
        confidence: Confidence level of the intervals, in (0, 1); 0.99 by default.
        settings: Further arguments of :func:`pytest_trainability.measure`.

    Returns:
        The scaling. Its slope is a pure number for a log-scale measure, else in the measure's unit per factor of e in depth.

    Raises:
        UsageError: An argument has an invalid value, or the models do not depend on the depth.
        BoundError: The measure is unknown.
        ModelError: A model cannot be built, trained or run.
        CutError: The autograd graph of a model cannot be cut into steps.
    """
    return size_sweep_in(
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


def size_sweep_in(
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
    """Measure as :func:`width_sweep` and :func:`depth_sweep` do, on behalf of a test.

    Args:
        context: The test.
        along: ``"width"`` or ``"depth"``.
        build: As in :func:`width_sweep`.
        sizes: Widths or depths.
        inputs: As in :func:`width_sweep`.
        inputs_of: As in :func:`width_sweep`.
        measure: As in :func:`width_sweep`; None for the default.
        summary: As in :func:`width_sweep`.
        matching: As in :func:`width_sweep`.
        excluding: As in :func:`width_sweep`.
        after_steps: As in :func:`width_sweep`.
        settings: Further arguments of :func:`pytest_trainability.measure`.

    Returns:
        The scaling.

    Raises:
        UsageError: An argument has an invalid value, or the models do not depend on the size.
        BoundError: The measure is unknown.
        ModelError: A model cannot be built, trained or run.
        CutError: The autograd graph of a model cannot be cut into steps.
    """
    where = f"{along}_sweep()"
    measure = measure or DEFAULT_MEASURE[along]
    if isinstance(build, nn.Module) or not callable(build):
        msg = (
            f"{where} needs a function that builds the model of a {along}. Got {type(build).__name__}. For instance "
            f"{along}_sweep(lambda {along}: Net({along}={along}), ...)."
        )
        raise UsageError(msg)
    refuse_inputs(where, inputs, inputs_of)
    found = as_sizes(along, sizes)
    options = as_options(where, settings)
    training = as_training(context, after_steps, options)
    refuse_measure(where, measure, trained=training is not None)
    as_summaries(summary)
    sweep = SizeSweep(along, found, context, as_seeds(options["seeds"]))
    for size in found:
        drawn = inputs_at(size, inputs, inputs_of)
        sweep.measure(Member(build, along, size, drawn, training, compare=measure == CHANGE), measure, options)
    sweep.refuse_equal(measure)
    scaling = scaling_of(sweep, measure, summary, matching, excluding)
    sweep.reading = scaling.reading
    sweep.report(scaling.cautions())
    return scaling
