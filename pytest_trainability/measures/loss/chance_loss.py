"""What a guess would cost: the loss of a model that gives every class the same score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...engine.capture.recorder import Loss, with_gradient
from ...engine.runs.objective import Objective
from ...engine.runs.requirements import require_loss
from ...engine.runs.run import Need, Run, Stage
from ...engine.trees import carries_gradient, map_tensors, tensors_in
from ...errors import InapplicableError
from ..measure import declare

__all__ = ["CHANCE_LOSS", "ChanceLoss", "loss_of_run"]


@dataclass(frozen=True, slots=True)
class ChanceLoss:
    """What a guess costs, in nats, and among how many classes it is made."""

    classes: int
    loss: float


def loss_of_run(run: Run) -> Tensor:
    """Return the loss of a run, a scalar; there must be one."""
    return require_loss(run, "initial_loss", "excess_loss").detach()


# Where cross-entropies are computed -------------------------------------------------------------------------------
def _classes_first(scores: Tensor, *_: Any, **__: Any) -> int:
    return int(scores.shape[min(scores.dim(), 2) - 1])


def _along(scores: Tensor, dim: int | None = None, *_: Any, **__: Any) -> int:
    return int(scores.shape[-1 if dim is None else dim])


def _two(*_: Any, **__: Any) -> int:
    return 2


def _zero(_: int) -> float:
    return 0.0


def _log_probability(classes: int) -> float:
    return -math.log(classes)


def _probability(classes: int) -> float:
    return 1 / classes


_CROSS_ENTROPIES: Mapping[Any, tuple[Callable[..., int], Callable[[int], float]]] = {
    F.cross_entropy: (_classes_first, _zero),
    F.nll_loss: (_classes_first, _log_probability),
    F.log_softmax: (_along, _log_probability),
    torch.log_softmax: (_along, _log_probability),
    Tensor.log_softmax: (_along, _log_probability),
    F.binary_cross_entropy_with_logits: (_two, _zero),
    F.binary_cross_entropy: (_two, _probability),
}
"""Functions that a cross-entropy goes through: how many classes their first argument has, what it is for a guess."""
_LOG_SOFTMAXES = {F.log_softmax, torch.log_softmax, Tensor.log_softmax}


class _EqualScores(TorchFunctionMode):
    """Give every class the same score wherever a cross-entropy is computed, and note how many classes there are."""

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
        # With a gradient, for that is what a loss is known by, even of a model that is frozen.
        equal = torch.full_like(scores, score(classes), requires_grad=True)
        return equal if func in _LOG_SOFTMAXES else func(equal, *others, **kwargs)


# The guess --------------------------------------------------------------------------------------------------------
def _chance_loss(run: Run) -> ChanceLoss:
    loss_of_run(run)
    if run.recipe.classes is not None:
        return ChanceLoss(run.recipe.classes, math.log(run.recipe.classes))
    equal = _EqualScores()
    objective = Objective.of(run)
    objective.loss = None if objective.loss is None else _with_gradient(objective.loss)
    with equal:
        _, loss = objective.outputs()
    guesses = [] if loss is None else _matching(loss, list(equal.classes), _AUXILIARY)
    if not guesses and not equal.classes:
        guesses = _guesses_of_equal_outputs(run)
    if len(guesses) != 1:
        raise InapplicableError(_unclear(run, list(equal.classes), loss))
    return guesses[0]


CHANCE_LOSS: Need[ChanceLoss] = Need("loss of a guess", _chance_loss, Stage.RERUN)
"""Of the number of classes that was given, or else of the one that the loss itself shows: with all scores equal it must
be its logarithm."""


def _with_gradient(loss: Loss) -> Loss:
    """Let a loss carry a gradient where nothing that it is computed from is trained: here its value is all that counts."""

    def evaluated(*given: Any) -> Any:
        value = loss(*given)
        return with_gradient(value) if isinstance(value, Tensor) and not carries_gradient(value) else value

    return evaluated


_AUXILIARY = 0.01
"""A loss of a guess that is ``ln(classes)`` but for one per cent has a small term beside, such as a router's; it stays
part of the guess, and is no excess."""
_EXACT = 1e-4


def _matching(loss: Tensor, classes: Sequence[int], tolerance: float) -> list[ChanceLoss]:
    """Return the guess among as many classes as make its loss ``ln(classes)``; sums and further terms do not."""
    value = float(loss.detach())
    tolerance = max(tolerance, 8 * torch.finfo(loss.dtype).eps)
    return [ChanceLoss(n, value) for n in classes if n > 1 and abs(value / math.log(n) - 1) < tolerance]


def _guesses_of_equal_outputs(run: Run) -> list[ChanceLoss]:
    """Return the guess of a loss that is written by hand: what it is where all outputs are equal."""
    if run.recipe.loss is None:
        return []
    output = map_tensors(
        run.capture.output, lambda t: with_gradient(torch.zeros_like(t)) if t.is_floating_point() else t
    )
    target = map_tensors(run.capture.target, torch.clone)
    loss = run.recipe.loss(output) if run.capture.target is None else run.recipe.loss(output, target)
    sizes = [size for tensor in tensors_in(output) for size in tensor.shape[1:]]
    return _matching(loss.reshape(()), list(dict.fromkeys([2, *sizes])), _EXACT)


def _unclear(run: Run, classes: Sequence[int], loss: Tensor | None) -> str:
    must = "excess_loss needs a loss that is a mean cross-entropy, and its number of classes."
    if classes and loss is not None:
        value, guess = float(loss.detach()), math.log(max(classes[0], 2))
        counts = " and ".join(map(str, classes))
        came = f"One over {counts} classes was computed, but where every class has the same score the loss is"
        if math.isnan(value):
            return f"{must} {came} not a number. Look for a batch without a label, such as one whose targets are all ignored."
        came += f" {value:.4g}, not its logarithm {guess:.4g}"
        if _is_multiple(value / guess, loss.dtype):
            return f"{must} {came}, but {value / guess:.0f} times that: it is a sum. Reduce it by mean."
        came += ": it is a sum, or has further terms."
    else:
        name = getattr(run.recipe.loss, "__name__", type(run.capture.model).__name__)
        came = f"The loss of {name!r} was not seen to be one."
    return (
        f"{must} {came} If the loss is to be compared with a guess, say among how many classes it is made: classes=10."
    )


def _is_multiple(ratio: float, dtype: torch.dtype) -> bool:
    """Whether a ratio is a whole number of at least two, as far as sums of numbers of this type can tell."""
    round_off = 8 * torch.finfo(dtype).eps * ratio
    return ratio > 1.5 and round_off < 0.1 and abs(ratio - round(ratio)) <= max(round_off, _EXACT)


@declare("scalar", tolerance=0.05, measured_with="excess_loss")
def initial_loss(run: Run) -> float:
    """Return the loss of the run's batch, before any step is taken.

    A classifier that knows nothing costs ``ln(classes)``; ``excess_loss`` is what is above that. It misleads where the
    loss is no mean over samples: a sum grows with the batch.

    Returns:
        Loss units, as the loss is reduced.

    Raises:
        InapplicableError: There is no loss.

    Source: Karpathy, A Recipe for Training Neural Networks (2019), "verify loss @ init".
    """
    return float(loss_of_run(run))


@declare("scalar", unit="nats", needs=[CHANCE_LOSS], tolerance=0.05)
def excess_loss(run: Run) -> float:
    """Return ``loss − ln(classes)``: what the loss is above that of a model that gives every class the same score.

    With logits of independent N(0, s²) it is ``s²/2 − (e^{s²} − 1) / (2 classes)`` on average. The number of classes is
    the one that was given (``classes=``); else that of the cross-entropy that the loss computes, if with equal scores
    it is ``ln(classes)``. It misleads where a part of the loss is not about classes (an auxiliary loss of a mixture of
    experts): with ``classes`` given that part counts as excess.

    Returns:
        Nats; exactly zero where all scores are equal, and negative where the model guesses better than at random.

    Raises:
        InapplicableError: There is no loss, or none that shows among how many classes it chooses.

    Source: Karpathy, A Recipe for Training Neural Networks (2019), "verify loss @ init".
    """
    return float(loss_of_run(run)) - run[CHANCE_LOSS].loss
