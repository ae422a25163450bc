"""Readings of single runs, the values that they average to, and the form that baselines store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from ..checks.baseline_values import BaselineValues, NameSet, Series
from ..checks.statistics import Level, estimate
from ..checks.verdicts import Value
from ..engine.runs.run import Need, Run
from ..errors import TrainabilityError, UsageError
from ..measures import Measure
from ..records.estimates import Estimate, Names, Profile, Spectrum

__all__ = ["assemble", "read", "recorded"]

_READS = {
    "scalar": "a number",
    "spectrum": "a list of numbers",
    "profile": "numbers by name",
    "names": "a list of names",
}


def read(m: Measure, run: Run, tolerated: type[TrainabilityError] | None, *, presumes: Need[bool] | None = None) -> Any:
    """Return the reading of one measure from one run.

    Args:
        m: The measure.
        run: A run with the needs of the measure.
        tolerated: Class of errors that the measure may raise.
        presumes: Need without which the measure is not read; None for no condition.

    Returns:
        The reading; None if the measure raised a tolerated error, or is not read.

    Raises:
        TrainabilityError: The measure raised an error that is not tolerated.
        UsageError: The measure returned something that is not of its kind.
    """
    try:
        if presumes is not None and not run[presumes]:
            return None
        found = m.read(run)
    except TrainabilityError as error:
        if tolerated is not None and isinstance(error, tolerated):
            return None
        raise
    if not _is_of_kind(found, m.kind):
        msg = f"the measure {m.name!r} of kind {m.kind!r} must read {_READS[m.kind]}. It returned {found!r:.80}."
        raise UsageError(msg)
    return found


def _is_of_kind(found: Any, kind: str) -> bool:
    if kind == "scalar":
        return isinstance(found, Real)
    if kind == "profile":
        return isinstance(found, Mapping) and all(isinstance(n, str) and isinstance(v, Real) for n, v in found.items())
    element: type = str if kind == "names" else Real
    return isinstance(found, (list, tuple)) and all(isinstance(value, element) for value in found)


def assemble(m: Measure, readings: Sequence[Any], level: Level) -> Value:
    """Average one measure over seeds.

    Args:
        m: The measure.
        readings: One reading per seed.
        level: Confidence level of the intervals.

    Returns:
        An estimate, a spectrum (largest first), a profile, or the names of all seeds, in an order that agrees with every seed's.
    """

    def averaged(values: Sequence[float], name: str = "") -> Estimate:
        return estimate(values, unit=m.unit, name=name, scale=m.scale, level=level)

    if m.kind == "scalar":
        return averaged(readings)
    if m.kind == "spectrum":
        elements = sorted((averaged(values) for values in zip(*readings)), key=lambda element: -element.mean)
        return Spectrum(tuple(replace(e, name=f"{m.element} {number}") for number, e in enumerate(elements, 1)))
    if m.kind == "names":
        return Names(_merged(readings), tuple(len(names) for names in readings))
    # With stochastic depth a seed may skip a step. It has no value there, and the average runs over the other seeds.
    names = dict.fromkeys(n for reading in readings for n in reading)
    return Profile({n: averaged([reading[n] for reading in readings if n in reading], n) for n in names})


def _merged(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the names of several lists, each once, in an order that agrees with all of them where one exists.

    A name that a later list adds stands right before the name that follows it there. The first value that is not finite may be
    another one on another seed, and is first in the whole list.
    """
    found: list[str] = []
    for names in lists:
        place = len(found)
        for name in reversed(names):
            if name in found:
                place = min(place, found.index(name))
            else:
                found.insert(place, name)
    return tuple(found)


def recorded(m: Measure, readings: Sequence[Any]) -> BaselineValues:
    """Return one measure as a baseline stores it.

    Args:
        m: The measure.
        readings: One reading per seed.

    Returns:
        For a measure of names, the sorted names that every seed has. Otherwise the values of every seed by element, with None for
        a seed without that element; the element of a scalar has the empty name.
    """
    if m.kind == "names":
        return NameSet(tuple(sorted(set.intersection(*(set(names) for names in readings)))))
    if m.kind == "scalar":
        return Series(m.unit, m.scale, {"": tuple(readings)})
    if m.kind == "spectrum":
        readings = [{f"{m.element} {i}": value for i, value in enumerate(values, 1)} for values in readings]
    names = dict.fromkeys(name for reading in readings for name in reading)
    return Series(m.unit, m.scale, {name: tuple(reading.get(name) for reading in readings) for name in names})
