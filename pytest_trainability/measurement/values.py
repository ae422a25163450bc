"""Values, modules and initial values of a measurement as plain data, for files that show them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from ..checks.baseline_entries import Entry
from ..checks.baseline_values import NameSet, Series
from ..checks.initial_values import initial_rows
from ..checks.judged_elements import BY_PARAMETER
from ..checks.module_changes import folded_modules
from ..checks.statistics import CONFIDENCE, Level, estimate
from ..init.description import ModelDescription
from ..init.reading import form_of
from ..measures import MEASURES, Measure
from ..records.estimates import Estimate, Names, Profile
from ..records.names import expanded, number_of_names
from ..records.values import ElementRecord, ModuleRecord, TensorRecord, ValueRecord
from .seed_runs import SeedRuns

__all__ = ["details", "old_value_records", "value_records"]

INPUT = "input"
"""Name of the first state in measures by state, before all steps."""
_NUMBERED = re.compile(r"exponent \d+")
_MISSING = float("nan")
"""Stands for the value of a seed whose model lacks the element, such as a step that was dropped at random."""


def details(seed_runs: SeedRuns) -> dict[str, Any]:
    """Return the fields ``values``, ``modules`` and ``tensors`` of a record.

    Args:
        seed_runs: Runs of all seeds. Modules and initial values are left out if nothing has read them.
    """
    known = seed_runs.known_descriptions
    rows = initial_rows([{n: (d.shapes[n], v) for n, v in d.values.items()} for d in known]) if known else {}
    modules = folded_modules(known[0].modules) if known else {}
    return {
        "values": tuple(value_records(seed_runs)),
        "modules": tuple(ModuleRecord(name, kind, number_of_names(name)) for name, kind in modules.items()),
        "tensors": tuple(
            TensorRecord(name, number_of_names(name), row.shape, row.rms, row.mean, _look(name, known[0]))
            for name, row in rows.items()
        ),
    }


def _look(pattern: str, first: ModelDescription) -> str:
    """Return how the entries of the first tensor of a pattern are distributed on the first seed."""
    return form_of(first.values[expanded(pattern)[0]])


def value_records(seed_runs: SeedRuns) -> list[ValueRecord]:
    """Return the value of every measure that was read, in the order in which they were read."""
    steps = {name for rate in seed_runs.readings["growth_rate"] for name in rate}
    parameters = {name for norm in seed_runs.readings.get("gradient_norm", []) for name in norm}
    parameters |= {name for description in seed_runs.known_descriptions for name in description.shapes}
    return [_value_record(seed_runs, name, steps, parameters) for name in seed_runs.values]


def _value_record(seed_runs: SeedRuns, name: str, steps: Collection[str], parameters: Collection[str]) -> ValueRecord:
    measure, value = seed_runs.with_unit_of_chain(MEASURES[name]), seed_runs.values[name]
    if isinstance(value, Names):
        return ValueRecord(name, "names", measure.unit, measure.scale, "", names=value.names)
    if isinstance(value, Estimate):
        return ValueRecord(name, "estimate", measure.unit, measure.scale, "", (_element(value, value.values),))
    if isinstance(value, Profile):
        by = _by(measure, value, steps, parameters)
        readings = seed_runs.readings[name]
        elements = (_element(e, [reading.get(n, _MISSING) for reading in readings]) for n, e in value.items())
        return ValueRecord(name, "profile", measure.unit, measure.scale, by, tuple(elements))
    of_spectrum = tuple(_element(e, e.values) for e in value)
    return ValueRecord(name, "spectrum", measure.unit, measure.scale, _by_number(measure), of_spectrum)


def _by_number(measure: Measure | None) -> Literal["exponent", "other"]:
    """Return what the elements of a spectrum are."""
    return "exponent" if measure is None or measure.element == "exponent" else "other"


def _element(found: Estimate, values: Sequence[float]) -> ElementRecord:
    return ElementRecord(found.name, found.mean, found.low, found.high, tuple(map(float, values)))


def _by(
    measure: Measure | None, names: Collection[str], steps: Collection[str], parameters: Collection[str]
) -> Literal["step", "parameter", "other"]:
    """Return what the elements of a profile are, as its declaration says or as their names show."""
    if measure is not None and measure.zero_by_design:
        return "parameter" if measure.zero_by_design in BY_PARAMETER else "step"
    if names and set(names) - {INPUT} <= set(steps):
        return "step"
    return "parameter" if names and set(names) <= set(parameters) else "other"


def old_value_records(entry: Entry) -> tuple[ValueRecord, ...]:
    """Return the values of a baseline, in the form of :func:`value_records`.

    Args:
        entry: The baseline.
    """
    norms, rates = (_names_in(entry.measures, name) for name in ("gradient_norm", "growth_rate"))
    parameters = {*norms, *(name for pattern in entry.initial for name in expanded(pattern))}
    return tuple(_old_value(name, values, rates, parameters) for name, values in entry.measures.items())


def _names_in(measures: Mapping[str, Series | NameSet], name: str) -> Collection[str]:
    found = measures.get(name)
    return found.values if isinstance(found, Series) else ()


def _old_value(name: str, found: Series | NameSet, steps: Collection[str], parameters: Collection[str]) -> ValueRecord:
    if isinstance(found, NameSet):
        return ValueRecord(name, "names", "", "linear", "", names=found.names)
    elements = tuple(_old_element(element, row, found.scale) for element, row in found.values.items())
    if list(found.values) == [""]:
        return ValueRecord(name, "estimate", found.unit, found.scale, "", elements)
    measure = MEASURES.get(name)
    is_spectrum = measure.kind == "spectrum" if measure else all(map(_NUMBERED.fullmatch, found.values))
    if is_spectrum:
        return ValueRecord(name, "spectrum", found.unit, found.scale, _by_number(measure), elements)
    return ValueRecord(
        name, "profile", found.unit, found.scale, _by(measure, found.values, steps, parameters), elements
    )


def _old_element(name: str, row: Sequence[float | None], scale: Literal["linear", "log"]) -> ElementRecord:
    known = [value for value in row if value is not None]
    values = [_MISSING if value is None else value for value in row]
    return _element(estimate(known, name=name, scale=scale, level=Level(CONFIDENCE)), values)
