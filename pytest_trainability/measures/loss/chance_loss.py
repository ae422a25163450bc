"""The loss at initialization, and the chance loss: the loss of a model that gives every class the same score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...engine.capture.recorder import Loss, called_loss, with_gradient
from ...engine.runs.objective import Objective
from ...engine.runs.requirements import require_loss
from ...engine.runs.run import Need, Run, Stage
from ...engine.trees import carries_gradient, is_float, map_tensors, tensors_in
from ...errors import InapplicableError
from ..measure import declare
from .scores import SCORE_CAUSES

__all__ = ["CHANCE_LOSS", "ChanceLoss", "loss_of_run"]


@dataclass(frozen=True, slots=True)
class ChanceLoss:
    """The loss, in nats, of a model that gives each of a number of classes the same score."""

    classes: int
    loss: float


def loss_of_run(run: Run) -> Tensor:
    """Return the loss of a run, a detached scalar.

    Raises:
        InapplicableError: The run has no loss.
    """
    return require_loss(run, "initial_loss", "excess_loss").detach()


# Equal scores for all classes -------------------------------------------------------------------------------------
def _classes_in_second_dimension(scores: Tensor, *_: Any, **__: Any) -> int:
    return int(scores.shape[min(scores.dim(), 2) - 1])


def _classes_in_dimension(scores: Tensor, dim: int | None = None, *_: Any, **__: Any) -> int:
    return int(scores.shape[-1 if dim is None else dim])


def _two_classes(*_: Any, **__: Any) -> int:
    return 2


def _zero_logit(_: int) -> float:
    return 0.0


def _log_probability(classes: int) -> float:
    return -math.log(classes)


def _probability(classes: int) -> float:
    return 1 / classes


_CROSS_ENTROPIES: Mapping[Any, tuple[Callable[..., int], Callable[[int], float]]] = {
    F.cross_entropy: (_classes_in_second_dimension, _zero_logit),
    F.nll_loss: (_classes_in_second_dimension, _log_probability),
    F.log_softmax: (_classes_in_dimension, _log_probability),
    torch.log_softmax: (_classes_in_dimension, _log_probability),
    Tensor.log_softmax: (_classes_in_dimension, _log_probability),
    F.binary_cross_entropy_with_logits: (_two_classes, _zero_logit),
    F.binary_cross_entropy: (_two_classes, _probability),
}
"""Functions that compute a cross-entropy or a part of it. For each, a function that counts the classes in its first argument, and
one that returns the entry of that argument at which all classes have the same probability."""
_LOG_SOFTMAXES = {F.log_softmax, torch.log_softmax, Tensor.log_softmax}


class _EqualScores(TorchFunctionMode):
    """Replaces the scores in every cross-entropy by equal ones, and collects the numbers of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.classes: dict[int, None] = {}

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _CROSS_ENTROPIES:
            return func(*args, **kwargs)
        count, score = _CROSS_ENTROPIES[func]
        scores, *others = (kwargs.pop("input"), *args) if "input" in kwargs else args
        classes = count(scores, *others, **kwargs)
        self.classes[classes] = None
        # The scores require a gradient, also for a frozen model: a loss is recognized by its gradient.
        equal = torch.full_like(scores, score(classes), requires_grad=True)
        return equal if func in _LOG_SOFTMAXES else func(equal, *others, **kwargs)


# The chance loss --------------------------------------------------------------------------------------------------
def _chance_loss(run: Run) -> ChanceLoss:
    actual = loss_of_run(run)
    if run.recipe.classes is not None:
        return ChanceLoss(run.recipe.classes, math.log(run.recipe.classes))
    found = _chance_loss_of_outputs(run) or _chance_loss_of_model(run)
    # Without an auxiliary loss, which depends on the weights, the number of classes decides.
    if _is_logarithm(found, actual):
        run.findings[CHANCE_LOSS.name] = found
    return found


def _chance_loss_of_outputs(run: Run) -> ChanceLoss | None:
    """Return the chance loss if the loss alone, computed again from the outputs of the run, is one cross-entropy."""
    if run.recipe.loss is None:
        return None
    equal = _EqualScores()
    output = map_tensors(run.capture.output, lambda t: with_gradient(t) if is_float(t) else t.clone())
    function = _with_gradient(run.recipe.loss)
    with equal:
        loss = _unless_it_raises(lambda: called_loss(function, output, run.capture.target))
    matches = [] if loss is None else _matching_classes(loss, list(equal.classes), _AUXILIARY)
    return matches[0] if len(matches) == 1 else None


def _chance_loss_of_model(run: Run) -> ChanceLoss:
    """Return the chance loss after running the model again: it may compute cross-entropies, or parts of one, itself."""
    equal, objective = _EqualScores(), Objective.of(run)
    objective.loss = None if objective.loss is None else _with_gradient(objective.loss)
    with equal:
        loss = _unless_it_raises(lambda: objective.outputs()[1])
    matches = [] if loss is None else _matching_classes(loss, list(equal.classes), _AUXILIARY)
    if not matches and not equal.classes:
        matches = _classes_of_equal_outputs(run)
    if len(matches) != 1:
        raise InapplicableError(_reason(run, list(equal.classes), loss))
    return matches[0]


CHANCE_LOSS: Need[ChanceLoss] = Need("chance loss", _chance_loss, Stage.RERUN, once=True)
"""The :class:`ChanceLoss` for the number of classes that the user has given. By default, it is found from the loss: with equal
scores for all classes, the loss must be the logarithm of their number."""


def _unless_it_raises(evaluate: Callable[[], Tensor | None]) -> Tensor | None:
    """Return a loss of scores that the model has not computed; None if it cannot be evaluated there.

    A loss may reject such scores: probabilities that do not sum to one, or a covariance that is not positive definite. It has
    been evaluated at the model's own scores before, so that this says nothing about the model.

    Raises:
        OutOfMemoryError: There is not enough memory.
    """
    try:
        return evaluate()
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None


def _with_gradient(loss: Loss) -> Loss:
    """Return a loss that carries a gradient even if nothing that it is computed from is trained: only its value is used here."""

    def evaluated(*arguments: Any) -> Any:
        value = loss(*arguments)
        return with_gradient(value) if isinstance(value, Tensor) and not carries_gradient(value) else value

    return evaluated


def _is_logarithm(chance: ChanceLoss, loss: Tensor) -> bool:
    """Return whether a chance loss is the logarithm of the number of classes, up to the round-off of the loss."""
    return abs(chance.loss / math.log(chance.classes) - 1) <= _ROUND_OFF * torch.finfo(loss.dtype).eps


_ROUND_OFF = 8
"""Relative error of a loss, in units of its precision."""
_AUXILIARY = 0.01
"""Largest relative difference of the chance loss and ``ln(classes)``. A difference this small is an auxiliary term, such as a
router's loss. It is part of the chance loss, and not of the excess."""
_EXACT = 1e-4
"""Largest relative difference for a loss without auxiliary terms."""


def _matching_classes(loss: Tensor, classes: Sequence[int], tolerance: float) -> list[ChanceLoss]:
    """Return the chance losses of the numbers of classes whose logarithm is the loss: none for sums and several terms."""
    value = float(loss.detach())
    tolerance = max(tolerance, _ROUND_OFF * torch.finfo(loss.dtype).eps)
    return [ChanceLoss(n, value) for n in classes if n > 1 and abs(value / math.log(n) - 1) < tolerance]


def _classes_of_equal_outputs(run: Run) -> list[ChanceLoss]:
    """Return the chance losses that match a loss written by hand: its value if all outputs are zero."""
    if run.recipe.loss is None:
        return []
    output = map_tensors(
        run.capture.output, lambda t: with_gradient(torch.zeros_like(t)) if t.is_floating_point() else t
    )
    function = _with_gradient(run.recipe.loss)
    loss = _unless_it_raises(lambda: called_loss(function, output, run.capture.target))
    sizes = [size for tensor in tensors_in(output) for size in tensor.shape[1:]]
    return [] if loss is None else _matching_classes(loss, list(dict.fromkeys([2, *sizes])), _EXACT)


def _reason(run: Run, classes: Sequence[int], loss: Tensor | None) -> str:
    """Return the message that says why the chance loss is unknown."""
    expected = "excess_loss needs a loss that is a mean cross-entropy, and its number of classes."
    advice = "To compare the loss with chance anyway, pass the number of classes: classes=10."
    name = getattr(run.recipe.loss, "__name__", type(run.capture.model).__name__)
    if classes and loss is None:
        return f"{expected} {name!r} computes one, but cannot be evaluated at equal scores for all classes. {advice}"
    if not classes or loss is None:
        return f"{expected} No cross-entropy was found in the loss of {name!r}. {advice}"
    value, chance = float(loss.detach()), math.log(max(classes[0], 2))
    counts = " and ".join(map(str, classes))
    found = f"This loss computes one over {counts} classes, but with equal scores for all classes it is"
    if math.isnan(value):
        return f"{expected} {found} NaN. Look for a batch without a label, such as one whose targets are all ignored."
    found += f" {value:.4g} instead of {chance:.4g}, the logarithm"
    if _is_multiple(value / chance, loss.dtype):
        return f"{expected} {found}. That is {value / chance:.0f} times as much: the loss is a sum. Reduce it by mean."
    return f"{expected} {found}: the loss is a sum, or has further terms. {advice}"


def _is_multiple(ratio: float, dtype: torch.dtype) -> bool:
    """Whether a ratio is a whole number of at least two, up to the round-off of a sum in this type."""
    round_off = 8 * torch.finfo(dtype).eps * ratio
    return ratio > 1.5 and round_off < 0.1 and abs(ratio - round(ratio)) <= max(round_off, _EXACT)


@declare("scalar", tolerance=0.05, measured_with="excess_loss")
def initial_loss(run: Run) -> float:
    """Return the loss of the run's batch before any optimizer step.

    A classifier that gives every class the same score has a cross-entropy of ``ln(classes)``; ``excess_loss`` is the difference.

    It misleads if the loss is not a mean over samples: a sum grows with the batch.

    Returns:
        The loss in its own units and with its own reduction.

    Raises:
        InapplicableError: The model has no loss.

    Source: Karpathy, A Recipe for Training Neural Networks (2019), "verify loss @ init".
    """
    return float(loss_of_run(run))


@declare("scalar", unit="nats", needs=[CHANCE_LOSS], tolerance=0.05, explained_by=SCORE_CAUSES)
def excess_loss(run: Run) -> float:
    """Return ``loss − ln(classes)``: the difference to the loss of a model that gives every class the same score.

    For independent logits with distribution N(0, s²) it is ``s²/2 − (e^{s²} − 1) / (2 classes)`` on average. ``classes=`` gives
    the number of classes. By default, it is that of the cross-entropy in the loss, provided that the loss is ``ln(classes)`` if
    all scores are equal.

    It misleads if ``classes=`` is given and a term of the loss does not depend on classes (the auxiliary loss of a mixture of
    experts): the term counts as excess.

    Returns:
        Nats; exactly zero if all scores are equal, negative if the model is better than chance.

    Raises:
        InapplicableError: The model has no loss, or its number of classes is unknown.

    Source: Karpathy, A Recipe for Training Neural Networks (2019), "verify loss @ init".
    """
    return float(loss_of_run(run)) - run[CHANCE_LOSS].loss
