"""Suggested bounds: what the values of a measurement support."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..checks.bounds import Bound
from ..checks.judged_elements import judged_elements, selected_elements
from ..checks.statistics import Level
from ..checks.suggestions import LEFT_OUT, Sides, sides_of, supported_ends
from ..checks.verdicts import Value
from ..measures import DEFAULT, MEASURES, Measure
from ..records.estimates import Estimate, Names, Profile, Spectrum
from ..records.suggestions import Suggestion
from ..records.text import format_names, format_spread
from .seed_runs import SeedRuns

__all__ = ["suggestions_of"]

NOT_ASKED = frozenset((*DEFAULT, "growth_rate", "untrained_fraction", "nonfinite", "log_gain"))
"""Measures that are read in any case. They get a bound if the test has one, or if they are listed below."""
CHOSEN = {
    "depth": ("log_gain", "gradient_norm", "activation_rms", "unused_parameters"),
    "time": ("lyapunov_max", "gradient_norm", "activation_rms", "unused_parameters"),
}
"""Measures of every run that get a bound, along depth and along time."""


def suggestions_of(
    seed_runs: SeedRuns, bounds: Mapping[str, Bound], failing: Sequence[str], defaults: Sequence[str] = ()
) -> tuple[Suggestion, ...]:
    """Return a suggestion for each measure of a measurement that can be bounded.

    Args:
        seed_runs: The runs.
        bounds: Bounds that were judged, by measure.
        failing: Measures whose bound does not hold.
        defaults: Measures whose bound is none of the test, but of a preset, the command line or the ini file.
    """
    chosen = [name for name in CHOSEN[seed_runs.common.along] if name in seed_runs.values]
    further = [name for name in seed_runs.values if name not in NOT_ASKED and name not in LEFT_OUT]
    names = list(dict.fromkeys([*chosen, *further, *(name for name in bounds if name in seed_runs.values)]))
    level = seed_runs.level
    # One error for all bounds together.
    shared = Level(level.confidence).shared(len(names)) if names else level
    found = (_suggestion(seed_runs, MEASURES[name], bounds.get(name), shared) for name in names)
    return tuple(
        replace(one, holds=one.measure not in failing, is_default=one.measure in defaults and one.current is not None)
        for one in found
        if one is not None
    )


def _suggestion(seed_runs: SeedRuns, m: Measure, bound: Bound | None, level: Level) -> Suggestion | None:
    """Return what the values of one measure support; None if they have no element to judge and no bound."""
    value = seed_runs.values[m.name]
    if bound is not None:
        value = selected_elements(m.name, value, bound)
    value = judged_elements(m.zero_by_design, value, seed_runs.gradient_classes)
    sides = sides_of(m.name, m.kind)
    if isinstance(value, Names):
        found: Any = (None, float(max(value.counts)))
    elif not isinstance(value, Estimate) and not len(value):
        return None
    else:
        draws = list(_draws(value, seed_runs.readings[m.name]))
        found = supported_ends(m.name, draws, sides=sides, scale=m.scale, tolerance=m.tolerance, level=level)
    missing = found if isinstance(found, str) else ""
    low, high = (None, None) if missing else found
    suggestion = Suggestion(m.name, _measured(value, sides), low, high, missing)
    if bound is None:
        return suggestion
    patterns = tuple(bound.matching), tuple(bound.excluding)
    return replace(suggestion, current=(bound.low, bound.high), matching=patterns[0], excluding=patterns[1])


def _draws(value: Estimate | Spectrum | Profile, readings: Sequence[Any]) -> Iterator[list[float]]:
    """Yield the values of all elements for each seed. A step that a seed has skipped has no value there."""
    if isinstance(value, Estimate):
        yield from ([number] for number in value.values)
    elif isinstance(value, Spectrum):
        yield from (list(numbers) for numbers in zip(*(element.values for element in value)))
    else:
        rows = {name: iter(element.values) for name, element in value.items()}
        for reading in readings:
            yield [next(row) for name, row in rows.items() if name in reading]


def _measured(value: Value, sides: Sides) -> str:
    """Return the values in words, those of a profile by its extreme elements."""
    if isinstance(value, Estimate):
        return _text(value)
    if isinstance(value, Names):
        return f"{len(value)}: {format_names(value.names)}" if len(value) else "none"
    elements = list(value.values()) if isinstance(value, Profile) else list(value)
    low, high = min(elements, key=lambda e: e.mean), max(elements, key=lambda e: e.mean)
    parts = {"low": [("smallest", low)], "high": [("largest", high)], "both": [("smallest", low), ("largest", high)]}
    return ", ".join(f"{word} {_text(element)} ({element.name})" for word, element in parts[sides])


def _text(value: Estimate) -> str:
    return format_spread(value.mean, value.spread, unit=value.unit, scale=value.scale)
