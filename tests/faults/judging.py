"""Measuring a case, and judging it by the preset of its family, by a baseline or by one bound."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pytest_trainability import measure
from pytest_trainability.checks.baselines import compare
from pytest_trainability.checks.bounds import Bound
from pytest_trainability.checks.presets import find_preset
from pytest_trainability.errors import TrainabilityFailure
from pytest_trainability.measurement import Context, Measurement, measure_in
from pytest_trainability.measures import MEASURES, recorded_along
from pytest_trainability.records.reports import BaselineChange, VerdictRecord

from .cases import Case

RECORDED = tuple(m.name for m in recorded_along("depth"))


def measured(case: Case, seeds: range, *, bounds: Mapping[str, Bound] | None = None) -> Measurement:
    """Measure what the family's preset asks for, or other bounds, and what a baseline records, on all seeds."""
    given: dict[str, Any] = dict.fromkeys(("target", "loss"))
    given |= {"exponents": 1, "device": "cpu", **case.arguments}
    until = find_preset(case.family) if bounds is None else bounds
    found = measure_in(Context(), case.build, seeds=seeds, until=until, measures=RECORDED, **given)
    found.complete()
    return found


def flagged(case: Case, found: Measurement) -> dict[str, VerdictRecord]:
    """Judge the family's preset, and return the verdicts that do not hold."""
    with suppress(TrainabilityFailure):
        found.check(preset=case.family)
    return {name: verdict for name, verdict in found._verdicts.items() if not verdict.holds}


def changed(old: Measurement, new: Measurement) -> dict[str, list[BaselineChange]]:
    """Compare with a baseline, and return what has changed by measure."""
    recorded = [MEASURES[name] for name in RECORDED]
    entries = (one.with_settings(one._entry(recorded)) for one in (old, new))
    changes = compare(*entries, {m.name: m.tolerance for m in recorded})
    found: dict[str, list[BaselineChange]] = {}
    for change in changes:
        found.setdefault(change.measure, []).append(change)
    return found


def holds(case: Case, name: str, bound: Bound, seeds: range) -> bool:
    """Measure a model and judge one bound on it."""
    found = measure(case.build, seeds=seeds, **case.arguments)
    try:
        found.check(**{name: bound})
    except TrainabilityFailure:
        return False
    return True
