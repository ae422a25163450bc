"""From what was read of each seed's run to values with intervals, and to what a baseline holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from ..checks.baselines import NameSet, Recorded, Series
from ..checks.statistics import Level, estimate
from ..checks.verdicts import Value
from ..engine.runs.run import Run
from ..errors import TrainabilityError, UsageError
from ..measures import Measure
from ..records.estimates import Estimate, Names, Profile, Spectrum

__all__ = ["assemble", "read", "recorded"]


def read(m: Measure, run: Run, tolerated: type[TrainabilityError] | None) -> Any:
    """Take one measure's numbers from a run; None where it has none for a reason that is tolerated."""
    try:
        found = m.read(run)
    except TrainabilityError as error:
        if tolerated is not None and isinstance(error, tolerated):
            return None
        raise
    if not _is_of_kind(found, m.kind):
        msg = f"the measure {m.name!r} must read {_READS[m.kind]}, for it is a {m.kind}. It returned {found!r:.80}."
        raise UsageError(msg)
    return found


_READS = {
    "scalar": "a number",
    "spectrum": "a list of numbers",
    "profile": "numbers by name",
    "names": "a list of names",
}


def _is_of_kind(found: Any, kind: str) -> bool:
    if kind == "scalar":
        return isinstance(found, Real)
    if kind == "profile":
        return isinstance(found, Mapping) and all(isinstance(n, str) and isinstance(v, Real) for n, v in found.items())
    wanted: type = str if kind == "names" else Real
    return isinstance(found, (list, tuple)) and all(isinstance(element, wanted) for element in found)


def assemble(m: Measure, readings: Sequence[Any], level: Level) -> Value:
    """Average one measure over seeds."""

    def averaged(values: Sequence[float], name: str = "") -> Estimate:
        return estimate(values, unit=m.unit, name=name, scale=m.scale, level=level)

    if m.kind == "scalar":
        return averaged(readings)
    if m.kind == "spectrum":
        elements = sorted((averaged(values) for values in zip(*readings)), key=lambda element: -element.mean)
        return Spectrum(tuple(replace(e, name=f"{m.element} {number}") for number, e in enumerate(elements, 1)))
    if m.kind == "names":
        return Names(tuple(dict.fromkeys(n for names in readings for n in names)), tuple(len(r) for r in readings))
    # A step that a seed did not take (stochastic depth) has no value there.
    names = dict.fromkeys(n for reading in readings for n in reading)
    return Profile({n: averaged([reading[n] for reading in readings if n in reading], n) for n in names})


def recorded(m: Measure, readings: Sequence[Any]) -> Recorded:
    """Take one measure's numbers per seed, as a baseline holds them."""
    if m.kind == "names":
        return NameSet(tuple(sorted(set.intersection(*(set(names) for names in readings)))))
    if m.kind == "scalar":
        return Series(m.unit, m.scale, {"": tuple(readings)})
    if m.kind == "spectrum":
        readings = [{f"{m.element} {i}": value for i, value in enumerate(values, 1)} for values in readings]
    names = dict.fromkeys(name for reading in readings for name in reading)
    return Series(m.unit, m.scale, {name: tuple(reading.get(name) for reading in readings) for name in names})
