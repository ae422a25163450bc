"""How a measure scales: :func:`width_sweep`, :func:`depth_sweep` and the :class:`Scaling` that they return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..checks.statistics import CONFIDENCE, as_confidence
from ..measurement import Context
from .arguments import Patterns, Summary
from .result import Scaling
from .sweep import sweep_in

__all__ = ["Scaling", "depth_sweep", "sweep_in", "width_sweep"]


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
