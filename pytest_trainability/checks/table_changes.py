"""Tables: tensors that are the same on all seeds, and the places of their entries.

Masks, positions, frequencies and the slopes of a bias are not drawn. Their entries may change places, as where masks no longer
alternate, without a change of root mean square and mean. A baseline stores projections of each such tensor onto fixed
pseudo-random directions. Whole numbers are the same on every machine: they have a digest, and any difference counts. Other
entries are computed, and the sine of a large angle, for instance, differs between machines by up to a few thousandths: a
hundredth counts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from ..records.names import expanded, folded, in_order_of
from ..records.reports import BaselineChange
from ..records.tensors import Projections
from .initial_values import InitialRow
from .text_changes import text_changes

__all__ = ["TABLES", "table_changes", "table_rows"]

TABLES = "tables"
"""Name of the comparison in reports."""
COMPUTED = 10
"""Largest distance between the projections of entries that were computed alike, in units of the tolerance of initial values."""
DRAWN, SAME = "drawn anew on each seed", "the same on all seeds"


def table_rows(seeds: Sequence[Mapping[str, Projections]]) -> dict[str, Projections] | None:
    """Return the rows of a baseline.

    Args:
        seeds: For each seed, the projections by the name of the parameter or buffer.

    Returns:
        Projections by pattern of names of the tensors that are the same on all seeds, in the model's order. None for a single
        seed, which does not tell what is drawn.
    """
    if len(seeds) < 2:
        return None
    groups: dict[Projections, list[str]] = {}
    for name, first in seeds[0].items():
        if all(name in seed and first.is_near(seed[name]) for seed in seeds[1:]):
            rounded = replace(first, rms=float(f"{first.rms:.9g}"), values=tuple(round(v, 9) for v in first.values))
            groups.setdefault(rounded, []).append(name)
    return in_order_of(seeds[0], {p: row for row, names in groups.items() for p in folded(names)})


def table_changes(
    old: Mapping[str, Projections],
    new: Mapping[str, Projections],
    *,
    drawn: tuple[Mapping[str, InitialRow], Mapping[str, InitialRow]] = ({}, {}),
    but: Collection[str] = (),
    tolerance: float = 1e-3,
) -> Iterator[BaselineChange]:
    """Yield the tables with other entries, and the tensors that are drawn on one side only.

    Args:
        old: Rows of the baseline.
        new: Rows now.
        drawn: Initial values of the baseline and now, which tell what is drawn.
        but: Tensors whose size, mean or shape has changed, which is reported already. That one of them is drawn is not.
        tolerance: Tolerance of initial values.
    """
    before, after = _by_name(old), _by_name(new)
    changed: dict[tuple[str, str], list[str]] = {}
    for name in {**after, **before}:
        if name not in before or name not in after:
            missing = int(name in before)
            if _is_drawn(name, drawn[missing]):
                changed.setdefault((SAME, DRAWN) if missing else (DRAWN, SAME), []).append(name)
        elif name not in but and not _are_equal(before[name], after[name], tolerance):
            texts = _text(before[name], after[name], {n: p for n, p in before.items() if n != name}, tolerance)
            changed.setdefault(texts, []).append(name)
    yield from text_changes(TABLES, changed, {**before, **after})


def _by_name(rows: Mapping[str, Projections]) -> dict[str, Projections]:
    return {name: row for pattern, row in rows.items() for name in expanded(pattern)}


def _is_drawn(name: str, rows: Mapping[str, InitialRow]) -> bool:
    """Whether a tensor of floating type differs between seeds for certain."""
    row = next((row for pattern, row in rows.items() if name in expanded(pattern)), None)
    return row is not None and row.spread > 0 and math.isfinite(row.chance)


def _are_equal(old: Projections, new: Projections, tolerance: float) -> bool:
    if old.digest and new.digest:
        return (old.shape, old.digest) == (new.shape, new.digest)
    return old.shape == new.shape and _distance(old, new) <= COMPUTED * tolerance


def _distance(old: Projections, new: Projections, *, sign: int = 1) -> float:
    """Return the largest distance of two projections, or the relative one of the sizes."""
    if len(old.values) != len(new.values):
        return math.inf
    # A file holds five digits of a size, of which the last one may be rounded either way.
    size = abs(old.rms - new.rms) / (max(old.rms, new.rms) or 1.0) - 1e-4
    return max(size, *(abs(a - sign * b) for a, b in zip(old.values, new.values)), 0.0)


def _text(old: Projections, new: Projections, others: Mapping[str, Projections], tolerance: float) -> tuple[str, str]:
    """Return in words which entries a table had, and which it has now."""
    if old.shape != new.shape:
        was, now = ("shape " + "×".join(map(str, row.shape)) for row in (old, new))
        return was, now
    alike = next((name for name, other in others.items() if _are_equal(other, new, tolerance)), "")
    if alike:
        return "entries of its own", f"those of {alike}"
    if _distance(old, new, sign=-1) <= COMPUTED * tolerance:
        return "entries", "their negatives"
    is_as_large = math.isclose(old.rms, new.rms, rel_tol=1e-4)
    return "entries", "others of the same rms" if is_as_large else f"others, rms {old.rms:.3g} → {new.rms:.3g}"
