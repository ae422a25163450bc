"""The classes of gradients that are zero, exactly or by algebra, and what later seeds need not find out again."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...engine.linalg.norms import is_zero
from ...engine.runs.common_needs import GRADIENT_NORMS, GRADIENT_TERMS, PARAMETER_GRADIENTS
from ...engine.runs.gradient_terms import Terms, gradients_with_terms
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
from .round_off import RoundOff, cancels, gradient_norms, round_off, rounded_sums, small_gradients, zero_sums

__all__ = ["SMALL_GRADIENTS", "WAKING_LIMIT", "ZERO_GRADIENTS", "classes_of_zeros", "first_parameters"]

WAKING_LIMIT = 3
"""Number of optimizer steps after which a parameter whose gradient is still zero counts as asleep. Nested zeros need one step
each: in a diffusion transformer with a zero-initialized head, the gates get a gradient after step one, and the branches behind
the gates after step two."""

# Note [Zeros of later seeds]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~
# That a sum cancels by algebra belongs to the architecture, not to the draw, so later seeds reuse, by name, whether a small
# gradient is one. A draw may differ, though: a weight of zero before a normalization leaves round-off where others have a signal.
# So an answer holds only where the gradients have about the same sizes, unless the terms gave it: what cancels for a random
# functional as well cancels at all values. A gradient that is exactly zero is examined on every seed. A draw may leave units
# dead, or behind a gate of zero, and only the optimizer steps tell a gradient that wakes from one that does not.


def _small(run: Run) -> set[str]:
    parameters, gradients = trainable_parameters(run.capture.model), run[PARAMETER_GRADIENTS]
    return small_gradients(parameters, gradients, eps=_coarsest(run), loss=_loss(run), sizes=run[GRADIENT_NORMS])


SMALL_GRADIENTS: Need[set[str]] = Need(
    "small gradients", _small, Stage.BACKWARD, requires=(PARAMETER_GRADIENTS, GRADIENT_NORMS)
)
"""Parameters whose gradient may be round-off."""

ZERO_GRADIENTS: Need[set[str]] = Need(
    "gradients of zero",
    lambda run: {name for name, g in run[PARAMETER_GRADIENTS].items() if g is not None and is_zero(g)},
    Stage.BACKWARD,
    requires=(PARAMETER_GRADIENTS,),
)
"""Parameters whose gradient is exactly zero."""


class _Sums:
    """Which gradients that are not zero are sums that cancel, by parameter. See Note [Zeros of later seeds].

    Args:
        eps: Coarsest relative precision of the model's arithmetic.
        by_algebra: Parameters whose gradients cancel at all values, until an answer of a seed says otherwise.
    """

    def __init__(self, eps: float, by_algebra: Collection[str] = ()) -> None:
        self._factor = (1 / eps) ** (1 / 3) if eps else math.inf
        self._by_algebra = frozenset(by_algebra)
        self._known: dict[str, tuple[bool, float, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._known)

    def add(self, cancel: Mapping[str, bool], sizes: Mapping[str, float]) -> None:
        """Add answers of one seed.

        Args:
            cancel: Whether each gradient is a sum that cancels.
            sizes: Norms of all gradients of the seed.
        """
        largest = max(sizes.values(), default=0.0)
        self._by_algebra -= cancel.keys()
        self._known.update({name: (answer, sizes[name], largest) for name, answer in cancel.items()})

    def answers(self, names: Collection[str], sizes: Mapping[str, float]) -> dict[str, bool] | None:
        """Return whether gradients are sums that cancel; None unless it is known of all of them.

        An answer is taken over by gradients of the same size or nearer to it, up to a third of the digits: that of a signal
        unless a gradient is smaller, and that of round-off unless it is larger, both in itself and relative to the largest one.

        Args:
            names: Parameters with a gradient that is not zero.
            sizes: Norms of all gradients of the seed.
        """
        found, largest = dict.fromkeys(self._by_algebra.intersection(names), True), max(sizes.values(), default=0.0)
        for name in set(names) - found.keys():
            if name not in self._known:
                return None
            cancels, size, largest_then = self._known[name]
            ratios = (sizes[name] / size, sizes[name] / size * largest_then / largest)
            if not (max(ratios) <= self._factor if cancels else min(ratios) >= 1 / self._factor):
                return None
            found[name] = cancels
        return found


@dataclass(frozen=True, slots=True)
class _Answers:
    """What earlier seeds have found out, by parameter. Later ones add what is missing. See Note [Zeros of later seeds]."""

    sums: _Sums
    """Sums that cancel at initialization."""
    sums_after_steps: _Sums
    """Sums that cancel after the optimizer steps."""
    underflows: dict[str, bool] = field(default_factory=dict)
    """Whether a gradient of zero has underflowed."""
    shows: dict[str, bool] = field(default_factory=dict)
    """Whether the loss changes when a parameter is moved whose gradient is a sum that cancels, also after the steps."""

    @classmethod
    def of(cls, run: Run) -> _Answers:
        """Return the answers so far; those of the first seed begin with what the terms of its gradients decide.

        What cancels for a random functional as well does not depend on the values of parameters: it is zero by algebra.
        """

        def by_terms() -> _Answers:
            eps, found = _coarsest(run), {name: cancels(terms) for name, terms in run[GRADIENT_TERMS].items()}
            by_algebra = [name for name, answer in found.items() if answer is True]
            sums = _Sums(eps, by_algebra)
            sums.add({name: False for name, answer in found.items() if answer is False}, run[GRADIENT_NORMS])
            return cls(sums, _Sums(eps), shows=dict.fromkeys(by_algebra, False))

        return run.of_first_seed(_ZEROS.name, by_terms)


def classes_of_zeros(run: Run) -> dict[str, str]:
    """Return the classes of the parameters whose gradient is zero, exactly or by algebra, by name."""
    small, answers = run[SMALL_GRADIENTS], _Answers.of(run)
    known = answers.sums.answers(small, run[GRADIENT_NORMS])
    if known is not None and not run[ZERO_GRADIENTS]:
        sums = [name for name in small if known[name]]
        if all(name in answers.shows and not _is_weight(run.capture.model.get_parameter(name)) for name in sums):
            return {name: BALANCED if answers.shows[name] else CANCELLED for name in sums}
    # The need of a later stage is not listed, so that models without zeros are neither copied nor run again.
    return run[_ZEROS]


def _find(run: Run) -> dict[str, str]:
    """Find the classes of gradients that are zero, by further passes."""
    objective, eps, answers = Objective.of(run), _coarsest(run), _Answers.of(run)
    gradients, zero = run[PARAMETER_GRADIENTS], run[ZERO_GRADIENTS]
    doubtful = _round_off(run, objective, answers)
    weights = {name for name in doubtful.cancelled if _is_weight(objective.parameters[name])}
    biases, shows = set(doubtful.cancelled) - weights, answers.shows
    found = dict.fromkeys(doubtful.cancelled, CANCELLED)
    shows |= rounded_sums(objective, biases - shows.keys(), eps=eps)
    if weights or zero:
        explained = (zero | weights | biases) - doubtful.underflowed
        by_design = explained if _is_by_design(run, gradients, zero | doubtful.cancelled) else set()
        sleepers = _Sleepers(zero, weights, biases)
        found |= _asleep(
            Training.of(run), gradients, sleepers, eps=eps, by_design=by_design, known=answers.sums_after_steps
        )
        rounded = {name for name, label in found.items() if label == CANCELLED}
        shows |= rounded_sums(objective, rounded - weights - shows.keys(), eps=eps)
    return {n: BALANCED if label == CANCELLED and shows.get(n) else label for n, label in found.items()}


_ZEROS: Need[dict[str, str]] = Need(
    "zero gradients",
    _find,
    Stage.RERUN,
    requires=(PARAMETER_GRADIENTS, GRADIENT_NORMS, GRADIENT_TERMS, SMALL_GRADIENTS, ZERO_GRADIENTS),
)


def _round_off(run: Run, objective: Objective, answers: _Answers) -> RoundOff:
    """Find the gradients that are round-off, unless earlier seeds have found it out."""
    gradients, small, sizes = run[PARAMETER_GRADIENTS], run[SMALL_GRADIENTS], run[GRADIENT_NORMS]
    zero, known = run[ZERO_GRADIENTS], answers.sums.answers(small, sizes)
    if known is not None and zero <= answers.underflows.keys():
        return RoundOff(
            frozenset(name for name in small if known[name]),
            frozenset(name for name in zero if answers.underflows[name]),
        )
    found = round_off(objective, gradients, eps=_coarsest(run), loss=_loss(run))
    if small:
        # A sum that cancels is small: the gradients that are not small are none either.
        answers.sums.add({name: name in found.cancelled for name in sizes.keys() - zero}, sizes)
        answers.underflows.update({name: name in found.underflowed for name in zero})
    return found


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
    known: _Sums,
) -> dict[str, str]:
    """Take optimizer steps until every parameter has a gradient, and return the classes of those that had none.

    Args:
        training: Optimizer steps on the run's batch.
        gradients: Gradients at initialization.
        sleepers: Parameters without a gradient.
        eps: Coarsest relative precision of the model's arithmetic.
        by_design: Parameters whose zeros a zero-initialized part explains.
        known: Which gradients are sums that cancel, as far as earlier seeds have found out; receives further answers.

    Returns:
        Classes of the parameters whose gradient is zero and of weights; and of biases whose gradient is a signal after a step, so
        that it is round-off at initialization only because something in between is zero.
    """
    zero, weights, biases = sleepers.zero, sleepers.weights, sleepers.biases
    sleeping, first = zero | weights, dict[str, int]()
    later, loss, nonzero = gradients, 0.0, set[str]()
    terms: Mapping[str, Terms] = {}
    for step, after in _gradients_after_steps(training, gradients, observed=not known):
        if after is None:
            return {n: waking(first[n], by_design=n in by_design) if n in first else UNKNOWN for n in sleeping}
        later, loss, terms = after
        doubtful = weights | biases
        small = small_gradients(training.parameters, later, eps=eps, loss=loss) if doubtful else set()
        nonzero = {name for name, g in later.items() if not is_zero(g)}
        awake = nonzero - (doubtful & small)
        first |= dict.fromkeys(((sleeping | biases) & awake) - first.keys(), step)
        if first.keys() >= sleeping:
            break
    # One comparison after the last step, instead of one after every step.
    sizes = gradient_norms(later)
    known.add({name: False for name in sleeping & terms.keys() if cancels(terms[name]) is False}, sizes)
    small = small_gradients(training.parameters, later, eps=eps, loss=loss, sizes=sizes) & sleeping
    answers = known.answers(small, sizes)
    if answers is None:
        found = round_off(training.objective, later, eps=eps, loss=loss, among=sleeping).cancelled
        answers = {name: name in found for name in sleeping & nonzero}
        known.add(answers, sizes)
    cancelled = {name for name in small if answers[name]}
    woken = nonzero | first.keys()
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
    signals = biases & first.keys() if all(map(math.isfinite, sizes.values())) else set()
    return {name: label(name) for name in sleeping | signals}


def _gradients_after_steps(
    training: Training, gradients: Gradients, *, observed: bool
) -> Iterator[tuple[int, tuple[Gradients, float, Mapping[str, Terms]] | None]]:
    """Take optimizer steps, and yield what follows them.

    Args:
        training: Optimizer steps on the run's batch.
        gradients: Gradients before the first step.
        observed: Whether to compare the gradients with their terms.

    Yields:
        The number of each step, from 1, with gradients, loss and terms after it; None once a parameter is not finite.
    """
    for step in range(1, WAKING_LIMIT + 1):
        if not training.step(gradients):
            yield step, None
            return
        training.draw_anew(step)
        loss, terms = training.loss(), dict[str, Terms]()
        if observed:
            gradients, terms = gradients_with_terms(training.objective, loss)
        else:
            gradients = training.objective.gradients(loss)
        yield step, (gradients, float(loss.detach().abs()), terms)


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
