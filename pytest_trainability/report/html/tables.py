"""Values of a check, aligned on the steps of the chain, on the parameters or on other names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...records.names import expanded
from ...records.text import format_number
from .axes import number

__all__ = ["INPUT", "Column", "Element", "Table", "Values", "column_of", "expand", "values_of"]

INPUT = "input"
"""Name of the state before the first step, in measures of states."""
DIGITS = 4


@dataclass(frozen=True, slots=True)
class Element:
    """One number, averaged over seeds."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    seeds: tuple[float, ...] = ()
    """One value per seed."""


@dataclass(frozen=True, slots=True)
class Values:
    """The value of one measure, of this session or of a baseline."""

    measure: str
    kind: str
    unit: str
    scale: str
    by: str
    elements: Mapping[str, Element] = field(default_factory=dict)
    """In the order of the document."""
    names: tuple[str, ...] = ()

    @property
    def log(self) -> bool:
        """Whether the values belong on a logarithmic axis."""
        return self.scale == "log"

    @property
    def label(self) -> str:
        """Measure and unit."""
        return f"{self.measure}, {self.unit}" if self.unit else self.measure


def values_of(found: Iterable[Mapping[str, Any]]) -> dict[str, Values]:
    """Return the values of a document by measure.

    Args:
        found: The list ``values`` of a check, or ``old_values`` of its baseline.
    """
    return {
        one["measure"]: Values(
            one["measure"],
            one["kind"],
            one["unit"],
            one["scale"],
            one["by"],
            {element["name"]: _element(element) for element in one["elements"]},
            tuple(one["names"]),
        )
        for one in found
    }


def _element(found: Mapping[str, Any]) -> Element:
    mean, low, high = (number(found[key]) for key in ("mean", "low", "high"))
    return Element(mean, low, high, tuple(map(number, found["values"])))


def expand(pattern: str) -> list[str]:
    """Return the names that a folded name stands for; the name itself if they are too many.

    >>> expand("blocks.{0-1}.w"), expand("{0-99999999}")
    (['blocks.0.w', 'blocks.1.w'], ['{0-99999999}'])
    """
    try:
        return expanded(pattern)
    except ValueError:
        return [pattern]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of numbers or texts in a table."""

    title: str
    cells: tuple[str, ...]
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Numbers by name, which the charts of the same axis show as well."""

    axis: str
    """Axis of the charts that are linked with it: ``steps``, ``parameters`` or ``m1``, ``m2``, … for others."""
    title: str
    names: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Name and cells of each row."""
        return list(zip(self.names, *(column.cells for column in self.columns)))


def column_of(title: str, names: Sequence[str], found: Mapping[str, float]) -> Column:
    """Return the numbers of names as a column; empty cells for names without one."""
    return Column(title, tuple(format_number(found[name], DIGITS) if name in found else "" for name in names))
