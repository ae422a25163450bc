"""Values of measures in a baseline, and how those of one measure have changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal, TypeAlias

from ..records.reports import BaselineChange
from ..records.text import format_finite
from .shifts import Sample, ShiftTest

__all__ = ["EPSILON", "BaselineValues", "NameSet", "Series", "are_faults", "name_changes"]

ROUND_OFF_UNITS = 10
"""Elements of a profile below this many units of round-off of the largest element of both sides have not moved. A gradient that
is zero except for round-off, such as that of a bias that a softmax cancels, differs between any two machines."""
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
"""Relative precision of floating types."""


@dataclass(frozen=True, slots=True)
class NameSet:
    """Names that a measure found on every seed. A name that random dropping hides on some seed is not included."""

    names: tuple[str, ...]

    def changes_from(self, old: NameSet, *, measure: str) -> Iterator[BaselineChange]:
        """Yield the names that have vanished and the names that are new."""
        before, after = set(old.names), set(self.names)
        return name_changes(measure, before - after, after - before)


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers of one measure, one per element and seed."""

    unit: str
    scale: Literal["linear", "log"]
    values: Mapping[str, tuple[float | None, ...]]
    """Values by element, one per seed; ``""`` is the element of a scalar. None if the model of a seed lacks the element."""

    def changes_from(
        self,
        old: Series,
        *,
        measure: str,
        test: ShiftTest,
        floors: tuple[float, float],
        faulty: tuple[Sequence[bool], Sequence[bool]],
        in_order: bool,
    ) -> Iterator[BaselineChange]:
        """Yield the elements that have vanished or are new, then the elements that have moved, largest shift first.

        An element that is round-off on both sides has not moved, however large the other elements have become. One that is not
        counts even if it is small next to an element that has exploded.

        Args:
            old: The same measure in the baseline.
            measure: Name of the measure.
            test: Test for one element, with the error probability of the whole measure.
            floors: Levels of round-off of a log-scale measure, of the baseline and now.
            faulty: Whether NaN and +inf are faults on each seed, of the baseline and now. See Note [Faults and outcomes] in
                baselines.py.
            in_order: Whether elements are in the order of the forward pass: the first one that has moved comes first, as the
                others may be its consequences.
        """
        fresh = self.on_every_seed() | {e for e, row in self.values.items() if any(are_faults(row, faulty[1]))}
        yield from name_changes(measure, old.on_every_seed() - set(self.values), fresh - set(old.values))
        shared = [element for element in self.values if element in old.values]
        test = test.for_each_of(len(shared))
        floor = min(floors)

        def change_of(element: str) -> BaselineChange | None:
            rows = old.values[element], self.values[element]
            if old.scale == "log" and all(_is_round_off(*of, test.tolerance) for of in zip(rows, floors)):
                return None
            samples = (
                Sample([_on_scale(value, old.scale, floor) for value in row], are_faults(row, seeds))
                for row, seeds in zip(rows, faulty)
            )
            shift = test.shift(*samples)
            return None if shift is None else self._moved(measure, element, rows, old.scale, shift, test.tolerance)

        moved = [replace(c, considered=len(shared)) for element in shared if (c := change_of(element)) is not None]
        first, others = (moved[:1], moved[1:]) if in_order else ([], moved)
        yield from (*first, *sorted(others, key=lambda change: -_size(change)))

    def _moved(
        self,
        measure: str,
        element: str,
        rows: tuple[Sequence[float | None], Sequence[float | None]],
        scale: str,
        shift: float,
        tolerance: float,
    ) -> BaselineChange:
        """Return the change of one element. A finite shift is that of the finite seeds, and so are the means shown with it."""
        old_finite, new_finite = map(format_finite, rows)
        is_shown = math.isfinite if math.isfinite(shift) else lambda value: True
        old, new = (_mean([v for v in row if v is not None and is_shown(v)], scale) for row in rows)
        if scale == "log" and math.isfinite(shift) and 0 < old < math.inf and 0 < new < math.inf:
            # The level of round-off decides whether an element has moved, and not how far.
            shift = max(shift, math.log(new / old), key=abs)
        return BaselineChange(
            measure,
            "moved",
            element=element,
            old=old,
            new=new,
            shift=shift,
            tolerance=tolerance,
            unit=self.unit,
            scale=scale,
            old_finite=old_finite,
            new_finite=new_finite,
        )

    def on_every_seed(self) -> set[str]:
        """Return the elements that every seed has. Others may be missing by chance, such as steps that are randomly dropped."""
        return {element for element, values in self.values.items() if None not in values}

    def round_off(self, dtype: str) -> float:
        """Return the level of round-off of a profile on a logarithmic scale; 0 for other values.

        Args:
            dtype: Floating type of the measurement.
        """
        if self.scale != "log" or len(self.values) < 2:
            return 0.0
        known = (v for v in chain.from_iterable(self.values.values()) if v is not None and math.isfinite(v))
        return ROUND_OFF_UNITS * EPSILON.get(dtype, 0.0) * max(known, default=0)


BaselineValues: TypeAlias = "Series | NameSet"
"""One measure in a baseline."""


def name_changes(measure: str, vanished: Iterable[str], new: Iterable[str]) -> Iterator[BaselineChange]:
    """Yield a change for names that have vanished, and one for names that are new, each sorted."""
    if vanished:
        yield BaselineChange(measure, "vanished", elements=tuple(sorted(vanished)))
    if new:
        yield BaselineChange(measure, "new", elements=tuple(sorted(new)))


def _size(change: BaselineChange) -> float:
    """Return the size of a shift, infinite if it is NaN."""
    size = abs(change.shift)
    return math.inf if math.isnan(size) else size


def _is_round_off(row: Sequence[float | None], floor: float, tolerance: float) -> bool:
    """Return whether the values of an element do not exceed the level of round-off by more than the tolerance, on average."""
    known = [value for value in row if value is not None]
    if not known or not floor or not all(map(math.isfinite, known)):
        return False
    above = [math.log(max(value, floor) / floor) for value in known]
    return math.fsum(above) <= tolerance * len(above)


def _on_scale(value: float | None, scale: str, floor: float) -> float | None:
    """Return a value, or the logarithm of a value of a log-scale measure; values below the floor are raised to it."""
    if value is None or scale != "log":
        return value
    value = max(value, floor) if value == value else value
    return math.log(value) if value > 0 else -math.inf if value == 0 else math.nan


def _mean(values: Iterable[float | None], scale: str) -> float:
    """Return the mean of the known values, the geometric mean for a log-scale measure; NaN if no value is known."""
    known = [value for value in (_on_scale(v, scale, 0.0) for v in values) if value is not None]
    mean = sum(known) / len(known) if known else math.nan
    if scale != "log":
        return mean
    return math.exp(min(mean, 709.0)) if mean < math.inf else mean


def are_faults(row: Sequence[float | None], faulty: Sequence[bool]) -> list[bool]:
    """Return for each value whether it is NaN or +inf on a seed where that is a fault."""
    return [
        is_faulty and value is not None and (math.isnan(value) or value == math.inf)
        for value, is_faulty in zip(row, faulty)
    ]
