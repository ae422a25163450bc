"""Changes of the classes of modules since a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..records.names import folded, in_order_of
from ..records.reports import BaselineChange
from .text_changes import text_by_name, text_changes

__all__ = ["MODULES", "folded_modules", "module_changes"]

MODULES = "modules"
"""Name of the comparison in reports."""


def folded_modules(classes: Mapping[str, str]) -> dict[str, str]:
    """Return the classes of modules by pattern of names.

    >>> folded_modules({"blocks.0": "Block", "blocks.1": "Block", "head": "Linear"})
    {'blocks.{0-1}': 'Block', 'head': 'Linear'}
    """
    by_class: dict[str, list[str]] = {}
    for name, kind in classes.items():
        by_class.setdefault(kind, []).append(name)
    return in_order_of(classes, {pattern: kind for kind, names in by_class.items() for pattern in folded(names)})


def module_changes(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[BaselineChange]:
    """Yield the modules of another class, then those that have vanished or are new, without modules inside them.

    Args:
        old: Classes by pattern of names, in the baseline.
        new: Classes now.
    """
    before, after = text_by_name(old), text_by_name(new)
    changed: dict[tuple[str, str], list[str]] = {}
    for name, kind in before.items():
        if name in after and after[name] != kind:
            changed.setdefault((kind, after[name]), []).append(name)
    yield from text_changes(MODULES, changed, before)
    gone, fresh = _outermost(before, after), _outermost(after, before)
    if gone:
        yield BaselineChange(MODULES, "vanished", elements=tuple(folded(gone)))
    if fresh:
        yield BaselineChange(MODULES, "new", elements=tuple(folded(fresh)))


def _outermost(names: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """Return the names that the others lack, without those inside another one of them."""
    missing = {name for name in names if name not in others}
    return [name for name in names if name in missing and name.rpartition(".")[0] not in missing]
