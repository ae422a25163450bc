"""Cures: changes of a model that have been tried on copies of it and bring a failed measure inside its bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count, islice

from torch import nn

from ..checks.remedies import LARGEST_FACTOR, remedies, remedies_of_causes
from ..checks.remedy import Remedy
from ..measures import MEASURES
from ..records.estimates import Estimate
from ..records.names import alike
from ..records.reports import VerdictRecord
from .changes import apply, changed
from .seed_runs import SeedRuns

__all__ = ["Cure", "Judge", "find_cures"]

MOST_SHOWN = 2
"""Number of cures after which the search ends."""
MOST_GROUPS = 6
"""Number of groups of zeros of one name, counted from the output, that are tried to be left as they are."""
MOST_TRIALS = 4
"""Number of runs of one seed in which the size of a change is adjusted."""
CLOSE, CLOSE_NATS = 0.05, 0.5
"""Part of the distance to the target that may be left when the adjustment ends, and largest rest in nats."""
NO_MATTER_OF_VALUES = frozenset({"backward_error", "leaked_targets", "unregistered_parameters", "unused_parameters"})
"""Measures that no change of initial values or added normalization brings back."""
GROWTH = frozenset({"log_gain", "lyapunov_max"})
"""Measures whose bounds say how large drawn weights must be."""
MARGIN = 0.2
"""Distance that the target keeps from the ends of the bound, as a part of its width; in nats if it has one end only."""

Judge = Callable[[SeedRuns], Sequence[VerdictRecord]]
"""Measures what has failed on other runs, and returns the verdicts on it."""


@dataclass(frozen=True, slots=True)
class Cure:
    """A change of a model that brings a failed measure inside its bound, on the same seeds and on as many others.

    It was tried on copies. :meth:`apply` makes the same change to a model of the same class.

    >>> import torch
    >>> from torch import nn
    >>> from pytest_trainability import measure, within
    >>> tower = lambda: nn.Sequential(*[layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.Tanh())])
    >>> result = measure(tower, torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), seeds=2)
    >>> try:
    ...     result.check(log_gain=within(3))
    ... except AssertionError:
    ...     cure = result.cures()[0]
    >>> cure.measure, bool(cure.before < -8), bool(abs(cure.after) < 3)
    ('log_gain', True, True)
    """

    text: str
    """What to write in the model's code."""
    measure: str
    """The measure that had failed; the first one if there were several."""
    before: float
    after: float
    remedy: Remedy
    """The change, as plain data."""

    def apply(self, model: nn.Module) -> None:
        """Change a model in place, as the cure says.

        Args:
            model: A model of the class that was measured.

        Raises:
            LookupError: The model has no parameter or module of a name that the cure changes.
        """
        apply(self.remedy, model)


def find_cures(seed_runs: SeedRuns, failed: Sequence[VerdictRecord], judge: Judge) -> tuple[Cure, ...]:
    """Return the cures among the remedies that the factors of the steps suggest, at most two.

    Args:
        seed_runs: The runs that failed, whose steps have been taken apart.
        failed: Verdicts that do not hold.
        judge: Measures the same on the runs of a changed model.

    Returns:
        Changes after which all of the verdicts hold, also on seeds that the test does not use, the most specific one first. Of
        two for the same parameters, that with the log gain nearer to zero comes first.
    """
    found = tuple(_found(seed_runs, failed, judge))
    if len(found) > 1 and len({cure.remedy.targets for cure in found}) == 1 and found[0].measure in GROWTH:
        return tuple(sorted(found, key=lambda cure: abs(cure.after)))
    return found


def _found(seed_runs: SeedRuns, failed: Sequence[VerdictRecord], judge: Judge) -> Iterator[Cure]:
    found: list[Remedy] = []
    if {verdict.measure for verdict in failed} & NO_MATTER_OF_VALUES:
        return
    causes = [cause for found_causes in seed_runs.causes.values() for cause in found_causes]
    for remedy in (*remedies_of_causes(causes), *remedies(seed_runs.factors or ())):
        if any(remedy.adds_nothing_to(other) for other in found):
            # Factors by layer where one for all of them is enough, more parameters than needed, a part of what is needed.
            continue
        if (remedy.kind == "several" and found) or (remedy.is_fallback and any(not one.is_fallback for one in found)):
            continue
        remedy = _smallest(seed_runs, remedy, judge)
        cure = _tried(seed_runs, failed, remedy, judge)
        if cure is not None:
            yield cure
            found.append(remedy)
        if len(found) == MOST_SHOWN:
            return


def _tried(seed_runs: SeedRuns, failed: Sequence[VerdictRecord], remedy: Remedy, judge: Judge) -> Cure | None:
    """Return a remedy as a cure; None if it is none.

    Where its size only just suffices, so that the bound holds on the seeds of the test and not on others, it is adjusted to the
    middle of the bound; an estimate also where it does not suffice.
    """
    versions = [remedy]
    if _concerns_growth(failed) and remedy.kind == "scale" and (remedy.is_minimal or not remedy.adjustable):
        versions.append(replace(remedy, adjustable=True, is_minimal=False))
    for version in versions:
        # A change that cannot be made or run is no cure: a module that cannot be copied, a layer that refuses another input.
        with suppress(Exception):
            sized = _sized(seed_runs, failed, version)
            verdicts = _verdicts(seed_runs, sized, seed_runs.common.seeds, judge)
            if not all(verdict.holds for verdict in verdicts):
                if not version.is_estimate:
                    return None
            elif all(verdict.holds for verdict in _verdicts(seed_runs, sized, _other_seeds(seed_runs), judge)):
                return Cure(sized.text, failed[0].measure, failed[0].value, verdicts[0].value, sized)
    return None


def _other_seeds(seed_runs: SeedRuns) -> tuple[int, ...]:
    """Return as many seeds as were run that the test does not use; none if there is one draw only."""
    if seed_runs.recipe.fixed:
        return ()
    return tuple(islice((s for s in count() if s not in seed_runs.seeds_requested), len(seed_runs.common.seeds)))


def _verdicts(seed_runs: SeedRuns, remedy: Remedy, seeds: tuple[int, ...], judge: Judge) -> Sequence[VerdictRecord]:
    """Return the verdicts on what has failed, measured on a changed model; none without seeds."""
    if not seeds:
        return ()
    with _runs_with(seed_runs, remedy, seeds) as runs:
        return judge(runs)


def _concerns_growth(failed: Sequence[VerdictRecord]) -> bool:
    return bool(GROWTH & {verdict.measure for verdict in failed})


def _sized(seed_runs: SeedRuns, failed: Sequence[VerdictRecord], remedy: Remedy) -> Remedy:
    """Return a remedy with the size that bounds on growth ask for, where it has one."""
    if remedy.adjustable:
        return _adjusted(seed_runs, remedy, _target(seed_runs, failed, remedy))
    if remedy.kind == "draw" and _concerns_growth(failed):
        return _drawn_for_growth(seed_runs, remedy, _target(seed_runs, failed, remedy))
    return remedy


def _smallest(seed_runs: SeedRuns, remedy: Remedy, judge: Judge) -> Remedy:
    """Return a remedy with as few of its zeros as the bounds of one seed need.

    Zeros next to the output may be a design, such as the last layer of a branch. They are the first that stay, all layers of one
    name together; then the last one of those that are left.
    """
    groups = alike(remedy.in_order, str)[-MOST_GROUPS:]
    if len(remedy.in_order) < 2 or not _holds(seed_runs, remedy, judge):
        return remedy
    for group in (*reversed(groups), ()):
        names = group or remedy.in_order[-1:]
        fewer = remedy.without_zeros(names)
        if fewer.in_order and _holds(seed_runs, fewer, judge):
            remedy = fewer
    return remedy


def _holds(seed_runs: SeedRuns, remedy: Remedy, judge: Judge) -> bool:
    """Return whether what has failed holds on one seed of a changed model."""
    with suppress(Exception):
        return all(verdict.holds for verdict in _verdicts(seed_runs, remedy, (seed_runs.typical_seed(),), judge))
    return False


@contextmanager
def _runs_with(seed_runs: SeedRuns, remedy: Remedy, seeds: tuple[int, ...]) -> Iterator[SeedRuns]:
    """Yield runs of the same recipe with a changed model. Changes of modules that outlive the run are undone afterwards."""
    with changed(seed_runs.recipe.model, remedy) as model:
        yield SeedRuns(replace(seed_runs.recipe, model=model), seeds, seed_runs.level.confidence)


def _target(seed_runs: SeedRuns, failed: Sequence[VerdictRecord], remedy: Remedy) -> float:
    """Return the log gain to aim at: zero, or what the bounds on growth allow that is nearest to it or to the present one."""
    low, high = -math.inf, math.inf
    length = seed_runs.common.time or len(seed_runs.common.steps)
    for verdict in failed:
        scale = {"log_gain": 1.0, "lyapunov_max": length}.get(verdict.measure)
        if scale is not None:
            low = max(low, -math.inf if verdict.low is None else scale * verdict.low)
            high = min(high, math.inf if verdict.high is None else scale * verdict.high)
    has_end = math.isfinite(low) or math.isfinite(high)
    aim = _log_gain(seed_runs) if remedy.is_minimal and has_end else 0.0
    inside = MARGIN * (high - low) if math.isfinite(high - low) else MARGIN
    return min(max(aim, low + inside), high - inside)


def _adjusted(seed_runs: SeedRuns, remedy: Remedy, target: float) -> Remedy:
    """Return the remedy to the power at which the log gain of one seed is nearest to the target, by the secant method.

    Saturation and normalization make the log gain a curve in the logarithm of the weights, and not a line.
    """
    before, seed = sum(factor.gain for factor in seed_runs.factors or ()), seed_runs.typical_seed()
    tried = [(0.0, before)]
    exponent = 1.0
    for _ in range(MOST_TRIALS):
        with _runs_with(seed_runs, remedy.to_the_power(exponent), (seed,)) as runs:
            gain = _log_gain(runs)
        tried.append((exponent, gain))
        if not math.isfinite(gain) or abs(gain - target) < min(CLOSE * abs(before - target), CLOSE_NATS):
            break
        (a, at_a), (b, at_b) = tried[-2:]
        if at_a == at_b:
            break
        exponent = b - (at_b - target) * (b - a) / (at_b - at_a)
        if not _size(remedy) * abs(exponent) < math.log(LARGEST_FACTOR):
            break
    best = min(tried, key=lambda pair: abs(pair[1] - target) if math.isfinite(pair[1]) else math.inf)
    return remedy.to_the_power(best[0])


def _drawn_for_growth(seed_runs: SeedRuns, remedy: Remedy, target: float) -> Remedy:
    """Return a draw with the deviations that bring the log gain of one seed to the target.

    Weights are drawn with a gain of 1, and what follows them may lose a part, such as half of the squares behind a ReLU. What
    is lost along the chain is divided among the weights, in one step: nothing is known of the growth before the draw.
    """
    seed = seed_runs.typical_seed()
    with _runs_with(seed_runs, remedy, (seed,)) as runs:
        gain = _log_gain(runs)
    factor = math.exp((target - gain) / len(remedy.targets)) if math.isfinite(gain) else 1.0
    scaled = replace(remedy, factors=tuple(factor * deviation for deviation in remedy.factors))
    if not 1 / LARGEST_FACTOR < factor < LARGEST_FACTOR:
        return remedy
    with _runs_with(seed_runs, scaled, (seed,)) as runs:
        return scaled if abs(_log_gain(runs) - target) < abs(gain - target) else remedy


def _size(remedy: Remedy) -> float:
    """Return the logarithm of the largest factor, or the largest shift."""
    return max(abs(f) if remedy.kind == "shift" else abs(math.log(f)) for f in remedy.factors)


def _log_gain(runs: SeedRuns) -> float:
    runs.run([MEASURES["log_gain"]])
    value = runs.values["log_gain"]
    assert isinstance(value, Estimate)
    return value.mean
