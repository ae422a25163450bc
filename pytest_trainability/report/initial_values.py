"""The initial values of a model as a table, in which the layers of a network share a row."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ..records.initial_values import InitialValues
from ..records.names import folded, template
from ..records.text import format_number, visible

__all__ = ["initial_table"]

HEADS = ("name", "shape", "rms", "mean", "outlier", "form")


def initial_table(values: Iterable[InitialValues]) -> list[str]:
    r"""Return the lines of a table: names, shapes, rms, mean, outlier and form.

    Names that differ by numbers share a row if they have the same shape and form. A number that differs within a row is a range.

    >>> weight = InitialValues(
    ...     "h.0.w", "parameter", (8, 8), "float32", "normal", "normal, std 0.02", 0.0199, 0.0, 2.9, True
    ... )
    >>> print(*initial_table([weight]), sep="\n")
    name   shape  rms     mean  outlier  form
    h.0.w  8×8    0.0199  0     2.9      normal, std 0.02

    Args:
        values: The initial values, in the order of the table.

    Returns:
        Lines of equal layout, the heads first; none without values.
    """
    groups: dict[tuple[object, ...], list[InitialValues]] = defaultdict(list)
    for found in values:
        groups[found.kind, template(found.name), found.shape, found.dtype, template(found.text)].append(found)
    rows = [HEADS, *(_row(group) for group in groups.values())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines if groups else []


def _row(group: Sequence[InitialValues]) -> tuple[str, ...]:
    first = group[0]
    remarks = [*(["buffer"] if first.kind == "buffer" else []), *([first.dtype] if first.dtype != "float32" else [])]
    text = first.text if len({found.text for found in group}) == 1 else template(first.text)
    return (
        visible(_name(group)),
        "×".join(map(str, first.shape)) or "scalar",
        _span([found.rms for found in group], 3),
        _span([found.mean for found in group], 2),
        _span([found.outlier for found in group], 2),
        visible(text) + (f" ({', '.join(remarks)})" if remarks else ""),
    )


def _name(group: Sequence[InitialValues]) -> str:
    """Return the name of a row: one that lists all numbers if there is one."""
    patterns = list(folded(found.name for found in group))
    return patterns[0] if len(patterns) == 1 else f"{template(group[0].name)} ({len(group)})"


def _span(values: Sequence[float], digits: int) -> str:
    """Return numbers as text: one if they agree in their digits, else the smallest and the largest; empty without any."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return ""
    low, high = format_number(min(known), digits), format_number(max(known), digits)
    return low if low == high else f"{low} to {high}"
