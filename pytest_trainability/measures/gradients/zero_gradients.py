"""The classes of gradients that are zero, exactly or by algebra, and what later seeds need not find out again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...engine.linalg.norms import stored_values
from ...engine.runs.common_needs import GRADIENT_NORMS, GRADIENT_TERMS, PARAMETER_GRADIENTS
from ...engine.runs.objective import Objective, trainable_parameters
from ...engine.runs.run import Need, Run, Stage
from ...engine.runs.training import Gradients, Training
from ...records.gradient_classes import (
    BALANCED,
    CANCELLED,
    CANCELLED_WEIGHT,
    DEAD,
    UNKNOWN,
    waking,
)
from .round_off import RoundOff, cancels, is_zero, round_off, rounded_sums, small_gradients, zero_sums

__all__ = ["SMALL_GRADIENTS", "WAKING_LIMIT", "classes_of_zeros", "first_parameters"]

WAKING_LIMIT = 3
"""Number of optimizer steps after which a parameter whose gradient is still zero counts as asleep. Nested zeros need one step
each: in a diffusion transformer with a zero-initialized head, the gates get a gradient after step one, and the branches behind
the gates after step two."""

# Note [Zeros of later seeds]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~
# That a sum cancels by algebra belongs to the architecture, not to the draw, so later seeds take it over from the first one that
# finds it, by name: a sum that is round-off at initialization, or that is zero although its terms are not. A gradient that is
# exactly zero needs evidence of its own seed: the gradient of the weight next to a bias, which has the same cotangent, is a
# signal, so that the terms of the sum are not zero. A draw may leave units dead, or behind a gate of zero, and then only the
# optimizer steps tell a gradient that wakes from one that does not. A parameter that is anything else on an earlier seed is not
# known.


def _small(run: Run) -> set[str]:
    parameters, gradients = trainable_parameters(run.capture.model), run[PARAMETER_GRADIENTS]
    return small_gradients(parameters, gradients, eps=_coarsest(run), loss=_loss(run), sizes=run[GRADIENT_NORMS])


SMALL_GRADIENTS: Need[set[str]] = Need(
    "small gradients", _small, Stage.BACKWARD, requires=(PARAMETER_GRADIENTS, GRADIENT_NORMS)
)
"""Parameters whose gradient may be round-off."""


@dataclass(frozen=True, slots=True)
class _Answers:
    """What earlier seeds have found out, by parameter. Later ones add what is missing. See Note [Zeros of later seeds]."""

    cancels: dict[str, bool]
    """Whether a gradient that is not zero is a sum that cancels."""
    cancels_after_steps: dict[str, bool] = field(default_factory=dict)
    """Whether a gradient that is not zero after the optimizer steps is a sum that cancels."""
    underflows: dict[str, bool] = field(default_factory=dict)
    """Whether a gradient of zero has underflowed."""
    shows: dict[str, bool] = field(default_factory=dict)
    """Whether the loss changes when a parameter is moved whose gradient is a sum that cancels, also after the steps."""
    sums: dict[str, str] = field(default_factory=dict)
    """The classes of vectors whose gradient is a sum that cancels at initialization: zero by algebra, or on this draw."""
    others: set[str] = field(default_factory=set)
    """Parameters without a gradient that are no such sums on at least one seed."""

    @classmethod
    def of(cls, run: Run) -> _Answers:
        """Return the answers so far; those of the first seed begin with what the terms of its gradients decide.

        What cancels for a random functional as well does not depend on the values of parameters: it is zero by algebra.
        """

        def by_terms() -> _Answers:
            found = {name: cancels(terms) for name, terms in run[GRADIENT_TERMS].items()}
            decided = {name: answer for name, answer in found.items() if answer is not None}
            sums = {name for name, cancel in decided.items() if cancel}
            vectors = {name for name in sums if not _is_weight(run.capture.model.get_parameter(name))}
            return cls(decided, shows=dict.fromkeys(sums, False), sums=dict.fromkeys(vectors, CANCELLED))

        return run.of_first_seed(_ZEROS.name, by_terms)

    def sums_of_zero(self, gradients: Gradients, small: set[str]) -> set[str]:
        """Return the parameters whose gradient is exactly zero and known to be a sum that cancels by algebra.

        Args:
            gradients: Gradients of this seed by parameter name.
            small: Parameters whose gradient may be round-off.
        """
        signals = {name for name in _nonzero(gradients) if name not in small or self.cancels.get(name) is False}
        sums = {name for name in _zero(gradients) if self.sums.get(name) == CANCELLED}
        return {name for name in sums if _weight_next_to(name) in signals}

    def add(self, labels: Mapping[str, str], sums: Collection[str]) -> None:
        """Add the classes that one seed has found.

        Args:
            labels: The classes.
            sums: Parameters whose gradient is a sum that cancels at initialization.
        """
        found = {name: labels[name] for name in sums if labels[name] in {CANCELLED, BALANCED}}
        self.others.update(labels.keys() - found.keys())
        self.sums.update(found)
        self.cancels.update(dict.fromkeys(found, True))
        for name in self.others:
            self.sums.pop(name, None)


def _weight_next_to(name: str) -> str:
    """Return the name that the weight of a bias has in PyTorch's modules, such as ``in_proj_weight`` of ``in_proj_bias``."""
    module, _, last = name.rpartition(".")
    return f"{module}.{last.replace('bias', 'weight')}".removeprefix(".")


def classes_of_zeros(run: Run) -> dict[str, str]:
    """Return the classes of the parameters whose gradient is zero, exactly or by algebra, by name."""
    gradients, small, answers = run[PARAMETER_GRADIENTS], run[SMALL_GRADIENTS], _Answers.of(run)
    without = _zero(gradients) | {name for name in small if answers.cancels.get(name)}
    known = answers.sums_of_zero(gradients, small) | (small & answers.sums.keys())
    if small <= answers.cancels.keys() and without <= known:
        return {name: answers.sums[name] for name in without}
    # The need of a later stage is not listed, so that models without zeros are neither copied nor run again.
    return run[_ZEROS]


def _find(run: Run) -> dict[str, str]:
    """Find the classes of gradients that are zero, by further passes."""
    objective, eps, answers = Objective.of(run), _coarsest(run), _Answers.of(run)
    gradients = run[PARAMETER_GRADIENTS]
    all_zero, known = _zero(gradients), answers.sums_of_zero(gradients, run[SMALL_GRADIENTS])
    zero, zeros = all_zero - known, set[str]()
    doubtful = _round_off(run, objective, zero, answers)
    weights = {name for name in doubtful.cancelled if _is_weight(objective.parameters[name])}
    biases = set(doubtful.cancelled) - weights | known
    found = dict.fromkeys(doubtful.cancelled | known, CANCELLED)
    shows = answers.shows
    shows |= rounded_sums(objective, biases - shows.keys(), eps=eps)
    if weights or zero:
        explained = (zero | weights | biases) - doubtful.underflowed
        by_design = explained if _is_by_design(run, gradients, all_zero | doubtful.cancelled) else set()
        sleepers = _Sleepers(zero, weights, biases)
        classes, zeros = _asleep(
            Training.of(run), gradients, sleepers, eps=eps, by_design=by_design, known=answers.cancels_after_steps
        )
        found |= classes
        rounded = {name for name, label in found.items() if label == CANCELLED}
        shows |= rounded_sums(objective, rounded - weights - shows.keys(), eps=eps)
    labels = {n: BALANCED if label == CANCELLED and shows.get(n) else label for n, label in found.items()}
    answers.add(labels, biases | zeros)
    return labels


_ZEROS: Need[dict[str, str]] = Need(
    "zero gradients", _find, Stage.RERUN, requires=(PARAMETER_GRADIENTS, GRADIENT_TERMS, SMALL_GRADIENTS)
)


def _round_off(run: Run, objective: Objective, zero: set[str], answers: _Answers) -> RoundOff:
    """Find the gradients that are round-off, unless earlier seeds have found it out; ``zero`` are those that are exactly zero."""
    gradients, small = run[PARAMETER_GRADIENTS], run[SMALL_GRADIENTS]
    if small <= answers.cancels.keys() and zero <= answers.underflows.keys():
        return RoundOff(
            frozenset(name for name in small if answers.cancels[name]),
            frozenset(name for name in zero if answers.underflows[name]),
        )
    found = round_off(objective, gradients, eps=_coarsest(run), loss=_loss(run))
    if small:
        # A sum that cancels is small: the gradients that are not small are none either.
        answers.cancels.update({name: name in found.cancelled for name in _nonzero(gradients)})
        answers.underflows.update({name: name in found.underflowed for name in zero})
    return found


def _zero(gradients: Gradients) -> set[str]:
    return {name for name, g in gradients.items() if g is not None and is_zero(g)}


def _loss(run: Run) -> float:
    return 0.0 if run.capture.loss is None else float(run.capture.loss.detach().abs())


@dataclass(frozen=True, slots=True)
class _Sleepers:
    """Parameters that get no gradient at initialization."""

    zero: set[str]
    """Those whose gradient is exactly zero."""
    weights: set[str]
    """Weights whose gradient is zero by algebra."""
    biases: set[str]
    """Other parameters whose gradient is zero by algebra. No step is taken for them."""


def _asleep(
    training: Training,
    gradients: Gradients,
    sleepers: _Sleepers,
    *,
    eps: float,
    by_design: set[str],
    known: dict[str, bool],
) -> tuple[dict[str, str], set[str]]:
    """Take optimizer steps until every parameter has a gradient, and return the classes of those that had none.

    Args:
        training: Optimizer steps on the run's batch.
        gradients: Gradients at initialization.
        sleepers: Parameters without a gradient.
        eps: Coarsest relative precision of the model's arithmetic.
        by_design: Parameters whose zeros a zero-initialized part explains.
        known: Whether the gradients are sums that cancel, as far as earlier seeds have found out; receives further answers.

    Returns:
        Classes of the parameters whose gradient is zero and of weights; and of biases whose gradient is a signal after a step, so
        that it is round-off at initialization only because something in between is zero. And the parameters whose gradient is
        zero although it is the sum of terms that are not.
    """
    zero, weights, biases = sleepers.zero, sleepers.weights, sleepers.biases
    sleeping, first = zero | weights, dict[str, int]()
    later, loss = gradients, 0.0
    for step, after in _gradients_after_steps(training, gradients):
        if after is None:
            return {n: waking(first[n], by_design=n in by_design) if n in first else UNKNOWN for n in sleeping}, set()
        later, loss = after
        doubtful = weights | biases
        small = small_gradients(training.parameters, later, eps=eps, loss=loss) if doubtful else set()
        awake = _nonzero(later) - (doubtful & small)
        first |= dict.fromkeys(((sleeping | biases) & awake) - first.keys(), step)
        if first.keys() >= sleeping:
            break
    # One comparison after the last step, instead of one after every step.
    small = small_gradients(training.parameters, later, eps=eps, loss=loss) & sleeping
    if not small <= known.keys():
        found = round_off(training.objective, later, eps=eps, loss=loss, among=sleeping).cancelled
        known |= {name: name in found for name in sleeping & _nonzero(later)}
    cancelled = {name for name in small if known[name]}
    woken = _nonzero(later) | first.keys()
    vectors = {name for name in zero - cancelled - woken if not _is_weight(training.parameters[name])}
    sums = zero_sums(training.objective, vectors, eps=eps) if vectors else {}

    def label(name: str) -> str:
        if name in cancelled:
            return CANCELLED_WEIGHT if _is_weight(training.parameters[name]) else CANCELLED
        if name in woken:
            return waking(first.get(name, WAKING_LIMIT), by_design=name in by_design)
        if name in sums:
            return BALANCED if sums[name] else CANCELLED
        return DEAD if name in zero else CANCELLED_WEIGHT

    # A gradient that is not finite afterwards tells nothing of a bias.
    signals = biases & first.keys() if _are_finite(later) else set()
    return {name: label(name) for name in sleeping | signals}, set(sums)


def _are_finite(gradients: Gradients) -> bool:
    return all(g is None or bool(stored_values(g).isfinite().all()) for g in gradients.values())


def _nonzero(gradients: Gradients) -> set[str]:
    return {name for name, g in gradients.items() if g is not None} - _zero(gradients)


def _gradients_after_steps(
    training: Training, gradients: Gradients
) -> Iterator[tuple[int, tuple[Gradients, float] | None]]:
    """Yield the number of each optimizer step, from 1, with gradients and loss after it; None once a parameter is not finite."""
    for step in range(1, WAKING_LIMIT + 1):
        if not training.step(gradients):
            yield step, None
            return
        training.draw_anew(step)
        loss = training.loss()
        gradients = training.objective.gradients(loss)
        yield step, (gradients, float(loss.detach().abs()))


def _is_weight(parameter: Tensor) -> bool:
    """Whether two or more dimensions have more than one entry: a bias may have further dimensions of one."""
    return sum(size > 1 for size in parameter.shape) >= 2


def _coarsest(run: Run) -> float:
    """Return the coarsest relative precision of the chain and of the loss."""
    found = [run.chain.epsilon(index) for index in range(1, len(run.chain) + 1)]
    loss = run.capture.loss
    return max([*found, *([] if loss is None else [torch.finfo(loss.dtype).eps])], default=0.0)


def _is_by_design(run: Run, gradients: Gradients, without: Collection[str]) -> bool:
    """Whether a zero-initialized branch, gate or layer explains gradients that are zero and wake.

    Zeros by design leave a way for gradients: a residual connection, through which they reach the first step or the inputs; or a
    weight layer or a gate that is zero, whose own gradient is not, such as a zero head. An elementwise factor of zero on the
    only way, such as the weight of a normalization, is no design.

    Args:
        run: The run.
        gradients: Gradients at initialization.
        without: Parameters whose gradient is zero, exactly or by algebra.

    Returns:
        Whether there is such a way.
    """
    parameters = dict(run.capture.model.named_parameters())
    awake = {id(parameters[name]) for name, g in gradients.items() if g is not None and name not in without}
    if any(id(p) in awake for p in first_parameters(run)):
        return True
    if any(id(p) in awake and _is_layer(p) and is_zero(p) for p in parameters.values()):
        return True
    return run.capture.inputs_carry_gradient and Objective.of(run).reaches_inputs()


def first_parameters(run: Run) -> list[nn.Parameter]:
    """Return the parameters of the first step that has any to train, and of modules before it, without those of the head.

    The weights of an embedding may be those of the head, and then get a gradient that has not come through the chain.
    """
    steps = [call for call in run.chain.steps if any(p.requires_grad for p in call.module.parameters())]
    if not steps:
        return []
    calls, last = run.capture.calls, run.chain.steps[-1].end
    tied = {id(p) for call in calls if call.start >= last for p in call.module.parameters()}
    early = (p for call in calls if call.end <= steps[0].end for p in call.module.parameters())
    return [p for p in (*steps[0].module.parameters(), *early) if id(p) not in tied]


def _is_layer(parameter: Tensor) -> bool:
    """Whether a parameter multiplies vectors as a matrix, or all of them by one number."""
    return parameter.dim() >= 2 or parameter.numel() == 1
