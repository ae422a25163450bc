"""Verdicts on the measures of a measurement: which bounds apply, which elements they judge, and remarks on values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from ..checks.bounds import Bound
from ..checks.judged_elements import BY_PARAMETER, COVERAGE, judged_elements, selected_elements, untrained_text
from ..checks.verdicts import Value, judge
from ..measures import MEASURES, Measure
from ..records.estimates import Estimate, Names, Profile, Spectrum
from ..records.reports import VerdictRecord
from .seed_runs import SeedRuns

__all__ = ["applicable_bounds", "verdict_of"]

FROZEN = "no parameter gets a gradient, because all are frozen or none is used"
"""Why a measure by parameter has no element."""


def applicable_bounds(bounds: Mapping[Measure, Bound], values: Mapping[str, Value]) -> Mapping[Measure, Bound]:
    """Return the bounds to judge.

    Bounds on what the model has none of are left out if they allow that. The bound on parameters without a gradient is added if a
    bound on gradients shows little without it.

    Args:
        bounds: Bounds by measure.
        values: Values of all measures that were read.
    """
    bounds = {m: b for m, b in bounds.items() if not (b.if_any and _is_empty(values.get(m.name)))}
    coverage, found = MEASURES["untrained_fraction"], values.get("untrained_fraction")
    about_gradients = any(m.zero_by_design in BY_PARAMETER for m in bounds)
    if not about_gradients or coverage in bounds or not isinstance(found, Estimate) or COVERAGE.holds(found.mean):
        return bounds
    return {coverage: COVERAGE, **bounds}


def verdict_of(seed_runs: SeedRuns, m: Measure, bound: Bound) -> VerdictRecord | None:
    """Return the verdict on one measure.

    Args:
        seed_runs: Runs that have read the measure.
        m: The measure.
        bound: Its bound.

    Returns:
        The verdict; None where all branches are zero by design, so that there is nothing to judge, and where only zeros by design
        close the chain, and the log gain of the other steps holds.

    Raises:
        BoundError: A pattern of the bound matches no element.
    """
    value, classes = selected_elements(m.name, seed_runs.values[m.name], bound), seed_runs.gradient_classes
    judged = judged_elements(m.zero_by_design, value, classes)
    if _is_empty(judged) and not _is_empty(value):
        return None
    around = seed_runs.gain_around_zeros() if m.name == "log_gain" else None
    if around is not None and bound.holds(around.log_gain):
        return None
    found = judge(m.name, judged, bound, scale=m.scale, level=seed_runs.level, by_seed=m.holds_by_seed)
    verdict = replace(found, selection=bound.selection)
    if not verdict.elements:
        return replace(verdict, remark=m.if_empty or (FROZEN if m.zero_by_design in BY_PARAMETER else ""))
    if m.name == "initial_loss":
        return replace(verdict, remark=_chance_loss(seed_runs.values))
    if m.name == "untrained_fraction":
        asleep = seed_runs.values.get("asleep_parameters")
        return replace(verdict, remark=untrained_text(classes, asleep.names if isinstance(asleep, Names) else ()))
    return verdict


def _chance_loss(values: Mapping[str, Value]) -> str:
    """Return a remark with the loss of a uniform guess, which the initial loss of a classifier should equal."""
    loss, excess = values["initial_loss"], values.get("excess_loss")
    if not isinstance(loss, Estimate) or not isinstance(excess, Estimate):
        return ""
    chance_loss = loss.mean - excess.mean
    return f"a guess among {math.exp(chance_loss):.0f} classes costs {chance_loss:.4g}"


def _is_empty(value: Value | None) -> bool:
    """Return whether a value has no element to judge."""
    return value is None or (isinstance(value, (Profile, Spectrum)) and not len(value))
