"""Gradients by autograd against finite differences of the forward pass, step by step and module by module."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from ...engine.linalg.norms import norm
from ...engine.runs.perturbed_runs import Changed, PerturbedRuns, Place, inner_product
from ...engine.runs.run import Need, Run, Stage
from ...records.causes import CauseRecord
from ...records.text import format_names
from ..measure import declare
from .custom_functions import CUSTOM_BACKWARD, CUSTOM_FUNCTIONS, CustomFunction

__all__ = ["BACKWARD_ERRORS", "Comparison", "compared"]

AGREES = 1e-4
"""Relative difference up to which a finite difference confirms a gradient."""
STEPS = (1e-4, 1e-5, 1e-6, 1e-3, 1e-7)
"""Sizes of the changes, relative to the RMS of what is changed. The first one that confirms the gradient is sufficient."""
CONVERGED = 0.1
"""A finite difference contradicts a gradient if it changes with the step size, and from one side to the other, by at most this
share of its distance from the gradient."""
JOINT_STEPS = (1e-6, 1e-5, 1e-7)
"""The same where all places change together, which crosses more kinks of ReLUs."""
EPS = torch.finfo(torch.float64).eps
RESOLVED = 1 / AGREES
"""Smallest change that is a finite difference, in units of the round-off: it is known to the share that decides."""
SHARE = 1e-2
"""Contribution of each place to a common derivative, as a share of the largest one, unless it is smaller anyway."""
DIRECTIONS = 3
"""Number of random directions that must disagree with the gradient."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Autograd's derivative along one direction, and a finite difference."""

    derivative: float
    difference: float
    decided: bool
    """Whether the two agree, or the finite difference has converged to another number."""

    @property
    def error(self) -> float:
        """Absolute difference relative to the larger one of the two; 0 if both are 0."""
        largest = max(abs(self.derivative), abs(self.difference))
        return abs(self.derivative - self.difference) / largest if largest else 0.0

    @property
    def agrees(self) -> bool:
        """Whether the two agree."""
        return self.decided and self.error <= AGREES


def compared(derivative: float, before: Sequence[float], after: Sequence[float], round_off: float) -> Comparison:
    """Compare a derivative with central differences over :data:`STEPS`.

    Args:
        derivative: The derivative along a direction.
        before: Changes of the function at minus each step.
        after: Changes at plus each step; as many as there are.
        round_off: Size of changes that are round-off.

    Returns:
        The comparison with the first difference that agrees; or else with the one that has converged best. It is undecided
        if none has converged, if the two sides have different slopes (a kink), or if the changes are round-off.
    """
    known: list[tuple[float, float, float]] = []
    """Step, central difference, and difference of the slopes on the two sides."""
    for step, low, high in zip(STEPS, before, after):
        difference = (high - low) / (2 * step)
        found = Comparison(derivative, difference, decided=True)
        if max(abs(derivative), abs(difference)) * 2 * step > RESOLVED * round_off:
            if found.agrees:
                return found
            known.append((step, difference, abs(low + high) / step))
    known.sort(reverse=True)
    pairs = [(abs(a[1] - b[1]), b) for a, b in pairwise(known)]
    if not pairs:
        return Comparison(derivative, math.nan, decided=False)
    change, (_, difference, kink) = min(pairs)
    limit = CONVERGED * abs(derivative - difference)
    return Comparison(derivative, difference, decided=max(change, kink) <= limit)


@dataclass(frozen=True, slots=True)
class _Errors:
    """Relative errors of the gradient at one place, each 0 or more, or NaN if it is undecided."""

    loss: float
    """Of the whole backward pass from the loss to the place."""
    step: float
    """Of the part from the first state that a change of the place reaches."""
    reaches: int | None
    """Number of this state; None if the change reaches no state before the loss."""
    ratios: tuple[float, float] = (math.nan, math.nan)
    """Derivatives by autograd over finite differences, of the whole and of the part; NaN if they are undecided."""

    @property
    def agree(self) -> bool:
        """Whether one of the two confirms the gradient."""
        return self.loss <= AGREES or self.step <= AGREES


class _Examination:
    """Compares every place of a run."""

    def __init__(self, run: Run, runs: PerturbedRuns) -> None:
        self._runs = runs
        self._single = {index for index, state in enumerate(run.chain.cut.states) if len(state) == 1}
        self._shared = _shared_modules(run)
        self.ratios: dict[Place, float] = {}
        """The derivative by autograd over the finite difference, for places that were examined by themselves."""
        self._floor = EPS * abs(runs.base.loss) / (2 * max(JOINT_STEPS)) / AGREES
        """Smallest derivative of the loss that a joint finite difference can confirm."""

    def errors(self) -> dict[Place, float]:
        """Return the relative error of each place, NaN where it is undecided, the last state first."""
        found = self._confirmed(list(self._runs.gradients))
        right = {place for place in found if isinstance(place, int)}
        rest = [place for place in self._runs.gradients if place not in found]
        states: list[Place] = [*sorted((place for place in rest if isinstance(place, int)), reverse=True)]
        for place in [*states, *(place for place in rest if isinstance(place, str))]:
            errors = self._examine(place)
            if errors.loss <= AGREES and isinstance(place, int):
                right.add(place)
            found[place] = self._own_error(place, errors, right)
        return found

    def _confirmed(self, places: list[Place]) -> dict[Place, float]:
        """Return the places whose gradients a finite difference along all of them together confirms, each with its error.

        The directions are scaled such that no place contributes much more than another. If the sum is wrong, each half is tried.
        Contributions that round-off would hide are left out.
        """
        error, shares = self._joint_error(places)
        found = {place: error / share for place, share in shares.items() if error <= AGREES * share}
        places = [place for place, share in shares.items() if share >= self._floor]
        rest = [place for place in places if place not in found]
        if found:
            return found | (self._confirmed(rest) if rest else {})
        if len(rest) < 2:
            return {}
        half = len(rest) // 2
        return self._confirmed(rest[:half]) | self._confirmed(rest[half:])

    def _joint_error(self, places: list[Place]) -> tuple[float, dict[Place, float]]:
        """Return the absolute error of the derivative along all places together, and the contribution of each."""
        runs = self._runs
        drawn = {place: runs.direction(place, 0) for place in places}
        derivatives = {place: inner_product(runs.gradients[place], drawn[place]) for place in places}
        largest = max(*map(abs, derivatives.values()), self._floor / SHARE) * SHARE
        factors = {p: math.copysign(min(1.0, largest / abs(d)) if d else 1.0, d) for p, d in derivatives.items()}
        directions = {p: [factors[p] * v for v in direction] for p, direction in drawn.items()}
        shares = {place: factors[place] * d for place, d in derivatives.items()}
        total, errors = sum(shares.values()), list[float]()
        for step in JOINT_STEPS:
            before, after = runs.changed(directions, -step).loss, runs.changed(directions, step).loss
            errors.append(abs((after - before) / (2 * step) - total))
            is_confirmed = errors[-1] <= AGREES * min(shares.values())
            # An error that does not depend on the step is no kink: a gradient is wrong.
            is_constant = len(errors) > 1 and abs(errors[-1] - errors[-2]) <= CONVERGED * errors[-2]
            if is_confirmed or is_constant:
                break
        return min(errors), shares

    def _own_error(self, place: Place, errors: _Errors, right: set[int]) -> float:
        """Return the error that arises between a place and the first state that it reaches, without those behind it."""
        self.ratios[place] = errors.ratios[0]
        if errors.agree:
            return errors.loss if errors.loss <= AGREES else errors.step
        if errors.reaches is None or errors.reaches in right:
            return errors.loss
        self.ratios[place] = errors.ratios[1]
        alone = errors.reaches in self._single and place not in self._shared
        return errors.step if alone else math.nan

    def _examine(self, place: Place) -> _Errors:
        first = self._compare(place, 0)
        if first.agree or (math.isnan(first.loss) and math.isnan(first.step)):
            return first
        every = (first, *(self._compare(place, number) for number in range(1, DIRECTIONS)))
        losses, steps = [e.loss for e in every], [e.step for e in every]
        return _Errors(_median(losses), _median(steps), first.reaches, first.ratios)

    def _compare(self, place: Place, number: int) -> _Errors:
        """Compare along one direction, with as many step sizes as it takes."""
        runs = self._runs
        direction = runs.direction(place, number)
        derivative = inner_product(runs.gradients[place], direction)
        before: list[Changed] = []
        after: list[Changed] = []
        errors = _Errors(math.nan, math.nan, None)
        for step in STEPS:
            before.append(runs.changed({place: direction}, -step))
            after.append(runs.changed({place: direction}, step))
            errors = self._errors(place, derivative, before, after)
            if errors.agree or not (math.isnan(errors.loss) or math.isnan(errors.step)):
                break
        return errors

    def _errors(self, place: Place, derivative: float, before: Sequence[Changed], after: Sequence[Changed]) -> _Errors:
        runs = self._runs
        same = all(c.decided for c in (*before, *after))

        def error(change: Callable[[Changed], float], round_off: float) -> tuple[float, float]:
            found = compared(derivative, [*map(change, before)], [*map(change, after)], round_off)
            if not found.agrees and not (found.decided and same):
                return math.nan, math.nan
            return found.error, found.derivative / found.difference if found.difference else math.inf

        base = runs.base
        whole, ratio = error(lambda changed: changed.loss - base.loss, EPS * abs(base.loss))
        reaches = _first_difference(before[0], after[0], place)
        if reaches is None:
            return _Errors(whole, whole, None, (ratio, ratio))
        cotangents, state = runs.gradients[reaches], base.states[reaches]

        def change(changed: Changed) -> float:
            return inner_product(cotangents, [new - old for new, old in zip(changed.states[reaches], state)])

        products = [g * x for g, x in zip(cotangents, state) if g is not None]
        step, step_ratio = error(change, EPS * math.hypot(*(float(norm(p)) for p in products)))
        return _Errors(whole, step, reaches, (ratio, step_ratio))


def _shared_modules(run: Run) -> set[str]:
    """Return the paths of modules whose parameters act at several places: they are tied, or the module is called repeatedly."""
    calls = Counter(call.path for call in run.capture.calls if not call.inner)
    owners: dict[int, list[str]] = {}
    for name, parameter in run.capture.model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    tied = {path for paths in owners.values() if len(paths) > 1 for path in paths}
    return tied | {path for path, number in calls.items() if number > 1}


def _median(errors: Sequence[float]) -> float:
    """Return the median of the errors; NaN if one is."""
    return math.nan if any(map(math.isnan, errors)) else sorted(errors)[len(errors) // 2]


def _first_difference(before: Changed, after: Changed, place: Place) -> int | None:
    """Return the number of the first state behind a place that differs between two runs; None if there is none."""
    for index in sorted(before.states):
        behind = index > place if isinstance(place, int) else True
        pairs = zip(before.states[index], after.states.get(index, []))
        if behind and any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs):
            return index
    return None


def _backward_errors(run: Run) -> dict[str, float]:
    runs = PerturbedRuns(run, "backward_error")
    with runs.entered():
        found = _Examination(run, runs).errors()
    return dict(_named(run, found))


def _named(run: Run, errors: dict[Place, float]) -> Iterator[tuple[str, float]]:
    """Yield the errors that are decided by name, in program order: steps, what follows the last one, and parameters."""
    last = "output" if run.capture.loss is None else "loss"
    for index, name in enumerate((*run.chain.names, last)):
        if not math.isnan(errors.get(index, math.nan)):
            yield name, errors[index]
    for place, error in errors.items():
        if isinstance(place, str) and not math.isnan(error):
            yield f"parameters of {place or type(run.capture.model).__name__}", error


BACKWARD_ERRORS: Need[dict[str, float]] = Need("backward errors", _backward_errors, Stage.RERUN)
"""Relative errors of gradients by step, then by module with parameters; those that are undecided are left out."""


WRONG = 0.01
"""Error from which on a backward pass is explained."""
FEW = 8
"""Number of modules up to which all are named."""


def _backward_causes(run: Run) -> tuple[CauseRecord, ...]:
    runs = PerturbedRuns(run, "backward_error")
    with runs.entered():
        examination = _Examination(run, runs)
        errors = examination.errors()
    names = (*run.chain.names, "output" if run.capture.loss is None else "loss")
    steps = [place for place, error in errors.items() if isinstance(place, int) and error > WRONG]
    others = [place for place, error in errors.items() if isinstance(place, str) and error > WRONG]
    wrong: list[Place] = [*sorted(steps)] or [*others]
    # A wrong function inside a step is found through the step, and through the parameters in front of it.
    found: dict[tuple[str, bool], list[tuple[Place, float]]] = {}
    for place in wrong:
        ratio = examination.ratios[place]
        functions = dict.fromkeys(use.name for use in _uses(run, names, place))
        found.setdefault((" or ".join(functions), math.isfinite(ratio)), []).append((place, ratio))
    return tuple(
        CauseRecord(_cause_text(_where(run, names, function, [p for p, _ in places]), [ratio for _, ratio in places]))
        for (function, _), places in found.items()
    )


def _uses(run: Run, names: Sequence[str], place: Place) -> list[CustomFunction]:
    """Return the uses of custom functions that can have made the gradient at a place wrong."""
    step = names[place] if isinstance(place, int) else place
    return [use for use in run[CUSTOM_FUNCTIONS] if use.step == step or (isinstance(place, str) and not use.module)]


def _where(run: Run, names: Sequence[str], function: str, places: Sequence[Place]) -> str:
    """Return the custom function with the modules that call it, or else the steps or the parameters whose gradients are wrong."""
    if function:
        modules = list(dict.fromkeys(use.module for place in places for use in _uses(run, names, place) if use.module))
        return f"{function} in {_listed(modules)}" if modules else function
    steps = [names[place] for place in places if isinstance(place, int)]
    modules = [place for place in places if isinstance(place, str)]
    return _listed(steps) if steps else f"the parameters of {_listed([m or 'the model' for m in modules])}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= FEW else format_names(names)


def _cause_text(where: str, ratios: Sequence[float]) -> str:
    of = f"the backward pass of {where} is not the derivative of the forward pass: "
    low, high = min(ratios), max(ratios)
    if not math.isfinite(low):
        return f"{of}autograd's gradient is not zero, and the finite difference is"
    times = f"{low:.4g}" if len(ratios) == 1 else f"{low:.3g} to {high:.3g}"
    along = f"along {'a random direction' if len(ratios) == 1 else 'random directions'}"
    text = f"{along}, autograd's derivative is {times} times the finite difference"
    return f"{of}{text}, from both sides and for smaller steps, so that it is no kink"


BACKWARD_CAUSES: Need[tuple[CauseRecord, ...]] = Need(
    "causes of wrong gradients", _backward_causes, Stage.RERUN, requires=(CUSTOM_FUNCTIONS,)
)
"""Which custom function has a wrong backward pass, and by which factor."""


@declare(
    "profile",
    needs=[BACKWARD_ERRORS],
    tolerance=0.01,
    presumes=CUSTOM_BACKWARD,
    explained_by=BACKWARD_CAUSES,
    holds_by_seed=True,
)
def backward_error(run: Run) -> dict[str, float]:
    """Return the relative difference between gradients by autograd and finite differences, by step and by module.

    ``|⟨g, v⟩ - D| / max(|⟨g, v⟩|, |D|)`` for random directions v, with D the central difference of the loss in float64. A step
    has the error that arises in it: between the state before it and the first state behind it. Values that leave the graph are
    held where they are, so that a stopped gradient is no error.

    It misleads where a backward pass differs from the derivative by design: reversed, scaled or clipped gradients.

    Returns:
        Pure numbers from 0 to 2: below 1e-4 where the gradient is right, 0.8 for a factor of 5, 2 for a wrong sign. Names in
        program order: the steps, ``"loss"`` (or ``"output"``) for what follows the last one, and ``"parameters of MODULE"``.
        Undecided places are left out: piecewise constant functions with a gradient, kinks, gradients below the round-off, and
        what cannot be separated from a wrong gradient that arrives. Along time only parameters have values.

    Raises:
        InapplicableError: The model does not run in float64.

    Source: Griewank & Walther, Evaluating Derivatives (2008), on checking derivatives; Bengio, Léonard & Courville,
    arXiv:1308.3432, for straight-through estimators.
    """
    return run[BACKWARD_ERRORS]
