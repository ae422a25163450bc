"""Text on a failed comparison of a profile or spectrum with a number."""

from __future__ import annotations

from numbers import Real
from operator import attrgetter
from typing import Any

from ..records.estimates import Profile, Spectrum
from ..records.names import alike, and_more
from ..records.text import visible
from .layout import WORST_SHOWN

__all__ = ["explain_comparison"]

_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


_COMPARISONS = {"<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__}


def explain_comparison(op: str, left: Any, right: Any, *, full: bool = False) -> list[str] | None:
    """Return the elements of a profile or spectrum that do not satisfy a failed comparison with a number.

    Args:
        op: The operator.
        left: Its left side.
        right: Its right side.
        full: Whether all elements are listed.

    Returns:
        Lines for pytest, or None for other comparisons.
    """
    if isinstance(right, (Profile, Spectrum)):
        op, left, right = _MIRRORED.get(op, op), right, left
    if op not in _COMPARISONS or not isinstance(left, (Profile, Spectrum)) or not isinstance(right, Real):
        return None
    head = f"{left!r} {op} {right!r}"
    elements = list(left.values()) if isinstance(left, Profile) else list(left)
    if not elements:
        kind = "profile" if isinstance(left, Profile) else "spectrum"
        return [head, f"The {kind} is empty: no element to compare. Check the names or patterns that selected it."]
    outside = [e for e in elements if not _COMPARISONS[op](e.mean, float(right))]
    outside.sort(key=lambda e: e.mean if op in {">", ">="} else -e.mean)
    count = f"{len(outside)} of {len(elements)} elements are not {op} {right!r}; the worst:"
    groups = [[e] for e in outside] if full else alike(outside, attrgetter("name"))
    shown = groups if full else groups[:WORST_SHOWN]
    texts = [f"{group[0].name}: {group[0]}{and_more([e.name for e in group])}" for group in shown]
    if len(shown) < len(groups):
        texts.append(f"and {sum(map(len, groups[len(shown) :]))} more, which -v lists")
    return [*map(visible, (head, count)), *(f"  {visible(text)}" for text in texts)]
