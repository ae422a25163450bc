"""The class of every parameter's gradient: a signal, or the reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ...engine.runs.common_needs import GRADIENT_TERMS, PARAMETER_GRADIENTS
from ...engine.runs.run import Need, Run, Stage
from ...engine.torch_internals import is_leaf_node, leaf_of, output_metadata
from ...errors import InapplicableError, TrainabilityError
from ...records.causes import CauseRecord
from ...records.gradient_classes import (
    BALANCED,
    CANCELLED,
    CANCELLED_WEIGHT,
    DEAD,
    FROZEN,
    SIGNAL,
    UNKNOWN,
    UNUSED,
    ShareWithoutGradient,
    kind_of,
    listed,
)
from ...records.text import format_names
from ..measure import declare
from .few_units import are_few_units
from .unreached import UNREACHED_CAUSES
from .zero_backwards import ZERO_BACKWARDS, zero_backward_causes
from .zero_gradients import SMALL_GRADIENTS, ZERO_GRADIENTS, classes_of_zeros, first_parameters
from .zeros import FIRST_READINGS, zero_gains, zero_twice

__all__ = ["GRADIENT_CLASSES", "REPEATED_BLOCKS", "Classes", "cancelled_parameters"]

REPEATED_BLOCKS = "repeated blocks"
"""Name of the finding of the first seed that holds the blocks of :class:`Classes`."""
REPEATED_AT_LEAST = 3
"""Smallest number of modules of one class that are a repeated block."""


# Classes ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Classes:
    """The class of every parameter's gradient in one run."""

    labels: Mapping[str, str]
    """Class by parameter name, in the model's order; see :mod:`pytest_trainability.records.gradient_classes`."""
    blocks: Mapping[str, Sequence[str]]
    """Trainable parameters of each repeated block, by number and class of its modules, such as ``12 × Block``."""


def _classes(run: Run) -> Classes:
    labels: dict[str, str] = {n: SIGNAL if p.requires_grad else FROZEN for n, p in run.capture.model.named_parameters()}
    labels |= {name: UNUSED for name, g in run[PARAMETER_GRADIENTS].items() if g is None}
    return Classes(labels | classes_of_zeros(run), _blocks(run))


def _blocks(run: Run) -> Mapping[str, Sequence[str]]:
    return run.of_first_seed(REPEATED_BLOCKS, lambda: _repeated_blocks(run.capture.model))


def _repeated_blocks(model: nn.Module) -> Mapping[str, Sequence[str]]:
    """Return the trainable parameters of module classes that occur several times and hold most of the trainable weights."""
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    sizes = {
        id(p): p.numel()
        for m in model.modules()
        if not isinstance(m, nn.Embedding)
        for p in m.parameters(recurse=False)
    }
    members: dict[type, list[nn.Module]] = {}
    for module in model.modules():
        if any(True for _ in module.children()) and not isinstance(
            module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        ):
            members.setdefault(type(module), []).append(module)
    found = {}
    for kind, modules in members.items():
        held = {id(p) for module in modules for p in module.parameters() if p.requires_grad}
        most = sum(size for key, size in sizes.items() if key in names) / 2
        if len(modules) >= REPEATED_AT_LEAST and sum(sizes.get(key, 0) for key in held) > most:
            found[f"{len(modules)} × {kind.__name__}"] = [name for key, name in names.items() if key in held]
    return found


GRADIENT_CLASSES: Need[Classes] = Need(
    "gradient classes",
    _classes,
    Stage.BACKWARD,
    requires=(PARAMETER_GRADIENTS, GRADIENT_TERMS, SMALL_GRADIENTS, ZERO_GRADIENTS),
)
"""The :class:`Classes` of the run's gradients."""


def cancelled_parameters(run: Run) -> set[str]:
    """Return the parameters whose gradient is a sum that cancels; none if the classes cannot be found."""
    try:
        labels = run[GRADIENT_CLASSES].labels
    except TrainabilityError:
        return set()
    return {name for name, label in labels.items() if kind_of(label) in {CANCELLED, BALANCED}}


@declare("names", needs=[GRADIENT_CLASSES], recorded=["depth", "time"])
def gradient_classes(run: Run) -> list[str]:
    """Return the parameters whose gradient is no signal at initialization, each with its class, as ``"NAME: CLASS"``.

    The classes:

    - ``waking at step K``: exactly zero at initialization, and not after K optimizer steps (at most three). It is a design if
      gradients reach the inputs or the first step of the chain, or if a weight layer or a gate is entirely zero and has a
      gradient itself.
      Otherwise, and where the gradient has underflowed, the class ends in ``, not by design``.
    - ``zero by algebra``: a sum that cancels, up to round-off or exactly, such as that of attention's key bias, of a bias before
      a normalization, or of a bias in a difference of two scores. Of weights (two or more dimensions), it is listed as
      ``zero by algebra, a weight`` if it is still round-off after three optimizer steps.
    - ``zero on this draw``: the terms of a bias cancel, up to round-off or, also after three optimizer steps, exactly; but unlike
      for one that is zero by algebra, the loss changes if the bias is moved. So it is while all samples are within the margin of
      a hinge loss.
    - ``dead``: exactly zero, and still after three optimizer steps, without such terms.
    - ``unused``: the loss has no path to the parameter.
    - ``frozen``: the parameter does not require a gradient.

    A gradient is round-off if it changes with the precision of its computation, which is repeated in float64 (in float32 for a
    float64 model) if a gradient is smaller than that of another parameter by more than half of the digits. It is not repeated if
    the terms that the first seed's gradients are sums of decide: a gradient that is not smaller than its terms by half of the
    digits is none, and a bias is zero by algebra if the cotangents of the loss and of a random functional sum to their rounding.

    It misleads where one batch does not use all of the model: an expert without tokens is unused.

    Returns:
        Lines in the model's order; empty if all gradients are signals.

    Raises:
        UsageError: ``optimizer=`` does not create an optimizer of the parameters, or its step raises an exception.
        ModelError: The model raises an exception after a step.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, SIAM 2002, section 1.12, for cancellation and the comparison
    of precisions.
    """
    return listed(run[GRADIENT_CLASSES].labels)


@declare("profile", unit="optimizer steps", needs=[GRADIENT_CLASSES])
def waking_step(run: Run) -> dict[str, float]:
    """Return the number of optimizer steps after which each parameter's gradient is first nonzero.

    It is 0 for a gradient that is nonzero at initialization. Where a branch, gate or head starts at zero by design (Fixup,
    ReZero, adaLN-zero, LoRA), the parameters behind it have no gradient until an optimizer step has moved it: one step for each
    zero on the way. Up to three steps are taken on the run's batch, each with its own dropout masks. The optimizer is the one
    that ``optimizer=`` creates; the default is AdamW with a learning rate of 1e-3.

    It misleads if the batch does not use all of the model: a gradient may come with another batch.

    Returns:
        Optimizer steps by parameter name in the model's order; ``inf`` if the gradient is zero after three steps, or zero by
        algebra (``gradient_classes``); NaN if a step has made any parameter infinite or NaN. Frozen and unused parameters are
        omitted.

    Raises:
        UsageError: ``optimizer=`` does not create an optimizer of the parameters, or its step raises an exception.
        ModelError: The model raises an exception after a step.

    Source: Zhang, Dauphin & Ma, ICLR 2019 (Fixup); Bachlechner et al., UAI 2021 (ReZero); Peebles & Xie, ICCV 2023 (adaLN-zero).
    """
    labels = run[GRADIENT_CLASSES].labels
    return {name: steps_of(label) for name, label in labels.items() if label not in {UNUSED, FROZEN}}


def _asleep_causes(run: Run) -> tuple[CauseRecord, ...]:
    labels = run[GRADIENT_CLASSES].labels
    cancelled = [name for name, label in labels.items() if label == CANCELLED_WEIGHT]
    zeros, dead = _zeros_without_gradient(run), [name for name, label in labels.items() if label == DEAD]
    nodes = run[ZERO_BACKWARDS]
    stopped = zero_backward_causes(nodes, dead, custom_only=bool(zeros))
    if zeros:
        return (*stopped, zero_twice(zeros, run.capture.model, run[FIRST_READINGS]))
    if not cancelled:
        return tuple(stopped)
    text = (
        f"{format_names(cancelled)}: the gradient is zero by algebra, as what the weight computes cancels: a softmax over a "
        "single entry, or a share that is divided by itself"
    )
    return (*stopped, CauseRecord(text))


def _zeros_without_gradient(run: Run) -> list[str]:
    """Return the parameters that are zero, no biases, and get no gradient either: those behind them get none because of them."""
    labels, parameters = run[GRADIENT_CLASSES].labels, dict(run.capture.model.named_parameters())
    factors = [name for name, label in labels.items() if label == DEAD and "bias" not in name.rpartition(".")[2]]
    return [name for name in factors if not bool(parameters[name].detach().any())]


ASLEEP_CAUSES: Need[tuple[CauseRecord, ...]] = Need(
    "causes of gradients that stay zero",
    _asleep_causes,
    Stage.RERUN,
    requires=(GRADIENT_CLASSES, FIRST_READINGS, ZERO_BACKWARDS),
)
"""Which backward passes return zeros, and which weights are zero or cancel."""


def _untrained_causes(run: Run) -> tuple[CauseRecord, ...]:
    labels = run[GRADIENT_CLASSES].labels
    if all(label in {SIGNAL, CANCELLED, BALANCED, FROZEN, UNUSED} for label in labels.values()):
        return run[UNREACHED_CAUSES]
    zeros, gains = _zeros_without_gradient(run), zero_gains(run.capture.model, run[FIRST_READINGS])
    if zeros and all({*cause.ones} <= {*zeros} for cause in gains):
        return (*run[UNREACHED_CAUSES], zero_twice(zeros, run.capture.model, run[FIRST_READINGS]))
    return (*run[UNREACHED_CAUSES], *gains)


UNTRAINED_CAUSES: Need[tuple[CauseRecord, ...]] = Need(
    "causes of gradients that are missing or zero",
    _untrained_causes,
    Stage.RERUN,
    requires=(GRADIENT_CLASSES, UNREACHED_CAUSES, FIRST_READINGS),
)
"""Why parameters have no path from the loss, and which zeros nothing passes."""


def _without_rows(run: Run) -> frozenset[str]:
    """Return the parameters from which every way to the loss leads through a tensor without entries."""
    reads = run.graph.reads
    read = {edge[0] for edges in reads.values() for edge in edges}
    visited = {node for node in reads if node not in read}
    pending, skipped = list(visited), False
    while pending:
        for producer, number in reads[pending.pop()]:
            is_empty = not is_leaf_node(producer) and 0 in output_metadata(producer)[number].shape
            skipped |= is_empty
            if not is_empty and producer not in visited:
                visited.add(producer)
                pending.append(producer)
    if not skipped:
        return frozenset()
    names = {id(p): name for name, p in run.capture.model.named_parameters()}
    leaves = {id(leaf): node for node in reads if (leaf := leaf_of(node)) is not None}
    return frozenset(names[key] for key, node in leaves.items() if key in names and node not in visited)


WITHOUT_ROWS: Need[frozenset[str]] = Need("parameters without rows", _without_rows)
"""Names of the parameters whose layer got no row of the batch, such as those of an expert that no token has chosen."""


@declare("names", needs=[GRADIENT_CLASSES, WITHOUT_ROWS], explained_by=ASLEEP_CAUSES)
def asleep_parameters(run: Run) -> list[str]:
    """Return the trainable parameters that get no gradient within three optimizer steps.

    Their gradient is exactly zero at initialization and after each step; or it is zero by algebra, for a weight of two or more
    dimensions, such as a router whose scores are divided by their own sum. Parameters behind a zero-initialized branch, gate or
    head get a gradient within these steps, and are not listed; ``waking_step`` reports when. The listed parameters are behind
    dead units, or behind a zero whose own gradient is zero, such as a zero before a ReLU. Biases that a softmax, a normalization
    or a difference cancels are not listed, and neither are ``unused_parameters``, which have no path from the loss. The list is
    empty if all of them belong to layers of fewer than ten units that the gradient passes by, such as the excitation of a small
    network: a draw leaves so few units dead by chance.

    It misleads where one batch does not use all of the model: an embedding of tokens that do not occur, or an expert without
    tokens whose result is computed and multiplied by zero. Layers that get no row of the batch are not listed, such as an expert
    that gets the tokens that have chosen it, if there are none.

    Returns:
        Parameter names: first the weights and gains that are zero themselves, then the others, both in the model's order.

    Raises:
        UsageError: ``optimizer=`` does not create an optimizer of the parameters, or its step raises an exception.
        ModelError: The model raises an exception after a step.

    Source: Lu, Shin, Su & Karniadakis, Commun. Comput. Phys. 28, 1671 (2020), for ReLU networks that are born dead.
    """
    labels = run[GRADIENT_CLASSES].labels
    asleep = [name for name, label in labels.items() if label in {DEAD, CANCELLED_WEIGHT}]
    found = [name for name in asleep if labels[name] != DEAD or name not in run[WITHOUT_ROWS]]
    if not found or _are_dead_by_chance(run):
        return []
    return list(dict.fromkeys([*(name for name in _zeros_without_gradient(run) if name in found), *found]))


def _are_dead_by_chance(run: Run) -> bool:
    """Return whether all parameters without a gradient belong to a few dead units, which the gradient passes by."""
    labels = run[GRADIENT_CLASSES].labels
    if CANCELLED_WEIGHT in labels.values():
        return False
    parameters = dict(run.capture.model.named_parameters())
    asleep = {name: parameters[name] for name, label in labels.items() if label == DEAD}
    awake = {id(parameters[name]) for name, label in labels.items() if label == SIGNAL}
    return are_few_units(asleep) and any(id(p) in awake for p in first_parameters(run))


@declare("scalar", needs=[GRADIENT_CLASSES], tolerance=0.1, explained_by=UNTRAINED_CAUSES)
def untrained_fraction(run: Run) -> float:
    """Return the share of trainable parameters that get no gradient, and not by design.

    These are the unused and the dead ones, weights whose gradient is zero by algebra, and those that wake although no
    zero-initialized branch, gate or layer explains the zero (``gradient_classes``). Biases whose gradient is a sum that cancels
    count on neither side. The value is the larger one of two shares, by number of parameters: of the whole model, and of its
    repeated block, which are the modules of a class that occurs three times or more and holds most of the trainable weights
    outside of embeddings.

    It misleads where one batch does not use all of the model: most experts may be without tokens.

    Returns:
        A pure number from 0 to 1; 1 if all parameters are frozen.

    Raises:
        InapplicableError: The model has no parameters.

    Source: our definition.
    """
    classes = run[GRADIENT_CLASSES]
    trainable = [name for name, label in classes.labels.items() if label != FROZEN]
    if not classes.labels:
        msg = f"untrained_fraction needs parameters. {type(run.capture.model).__name__} has none."
        raise InapplicableError(msg)
    if not trainable:
        return 1.0
    groups = ({name: classes.labels[name] for name in names} for names in (trainable, *classes.blocks.values()))
    return max(ShareWithoutGradient.of(labels).share for labels in groups)


def steps_of(label: str) -> float:
    """Return the number of optimizer steps until a gradient of this class is nonzero; ``inf`` for never, NaN if not known."""
    if label == SIGNAL:
        return 0.0
    if label == UNKNOWN:
        return math.nan
    return float(label.removeprefix("waking at step ").partition(",")[0]) if kind_of(label) == "waking" else math.inf
