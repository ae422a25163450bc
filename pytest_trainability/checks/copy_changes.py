"""Tensors that equal each other at initialization: the rows that a baseline stores, and their comparison.

The initial values of a teacher that is drawn anew look like those of the student that it should be a copy of: their sizes and
means agree. A row says that tensors equal earlier ones: ``"teacher.{0,2}.weight"`` with the text ``"teacher.* = student.*"``, in
which both stars stand for the same rest of the name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from ..records.names import folded, in_order_of
from ..records.reports import BaselineChange
from .text_changes import text_by_name

__all__ = ["COPIES", "copy_changes", "copy_rows"]

COPIES = "copies"
"""Name of the comparison in reports."""
_EQUALS = " = "


def copy_rows(seeds: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the rows of a baseline: the tensors that are copies on every seed.

    >>> copy_rows([{f"teacher.{i}.weight": f"student.{i}.weight" for i in range(3)}])
    {'teacher.{0-2}.weight': 'teacher.* = student.*'}

    Args:
        seeds: For each seed, the names of copies, each with that of the tensor that it equals.
    """
    by_text: dict[str, list[str]] = {}
    for name, first in seeds[0].items():
        if all(seed.get(name) == first for seed in seeds):
            by_text.setdefault(_EQUALS.join(_stems(name, first)), []).append(name)
    rows = {pattern: text for text, names in by_text.items() for pattern in folded(names)}
    return in_order_of(seeds[0], rows)


def _stems(name: str, first: str) -> tuple[str, str]:
    """Return two names with a star for the parts that both end with.

    >>> _stems("teacher.0.weight", "student.0.weight"), _stems("ema", "code")
    (('teacher.*', 'student.*'), ('ema', 'code'))
    """
    parts, others = name.split("."), first.split(".")
    shared = 0
    while shared < min(len(parts), len(others)) - 1 and parts[-1 - shared] == others[-1 - shared]:
        shared += 1
    stems = (".".join([*of[: len(of) - shared], *(["*"] if shared else [])]) for of in (parts, others))
    return next(stems), next(stems)


def copy_changes(
    old: Mapping[str, str], new: Mapping[str, str], *, known: tuple[Collection[str], Collection[str]]
) -> Iterator[BaselineChange]:
    """Yield the copies that no longer equal what they did, then those that are new.

    Args:
        old: Rows of the baseline. Without any, the baseline is older than these rows, or the model had no copies, and nothing is
            compared.
        new: Rows now.
        known: Names of all tensors, of the baseline and now. Tensors of one side only are left out.
    """
    before, after = _firsts(old), _firsts(new)
    shared = {*known[0]} & {*known[1]}
    if before:
        yield from _lost(before, after, shared, is_new=False)
        yield from _lost(after, before, shared, is_new=True)


def _firsts(rows: Mapping[str, str]) -> dict[str, str]:
    """Return the name that each copy equals."""
    found = {}
    for name, text in text_by_name(rows).items():
        stem, _, other = text.partition(_EQUALS)
        found[name] = other.removesuffix("*") + name[len(stem) - 1 :] if stem.endswith("*") else other
    return found


def _lost(
    of: Mapping[str, str], others: Mapping[str, str], shared: Collection[str], *, is_new: bool
) -> Iterator[BaselineChange]:
    """Yield the copies of one side that are none on the other, whichever of two equal tensors comes first there."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, first in of.items():
        is_kept = others.get(name, name) == others.get(first, first)
        if not is_kept and name in shared and first in shared:
            groups.setdefault(_stems(name, first), []).append(name)
    for (stem, other), names in groups.items():
        considered = sum(_stems(name, first) == (stem, other) for name, first in of.items())
        texts = (
            (f"not equal to {other}", f"now equal to {other}")
            if is_new
            else (f"equal to {other}", f"no longer equal to {other}")
        )
        yield BaselineChange(
            COPIES,
            "moved",
            element=stem,
            elements=tuple(folded(names)),
            old_text=texts[0],
            new_text=texts[1],
            count=len(names),
            considered=considered,
        )
