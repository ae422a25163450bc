"""Changes of texts, such as the class of a module or the operations of a step, grouped by names that changed alike."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ..records.names import expanded, of_form, with_stars
from ..records.reports import BaselineChange

__all__ = ["text_by_name", "text_changes", "times"]


def text_by_name(rows: Mapping[str, str]) -> dict[str, str]:
    """Return the text of each name.

    >>> text_by_name({"blocks.{0-1}": "Linear", "head": "Tanh"})
    {'blocks.0': 'Linear', 'blocks.1': 'Linear', 'head': 'Tanh'}

    Args:
        rows: Texts by pattern of names, as a baseline stores them.
    """
    return {name: text for pattern, text in rows.items() for name in expanded(pattern)}


def times(text: str, count: int) -> str:
    """Return a text with the number of its repetitions.

    >>> times("Addmm", 1), times("Addmm", 3)
    ('Addmm', 'Addmm ×3')
    """
    return text if count == 1 else f"{text} ×{count}"


def text_changes(
    measure: str, changed: Mapping[tuple[str, str], Collection[str]], known: Collection[str]
) -> Iterator[BaselineChange]:
    """Yield one change for each group of names that differ by numbers and whose text changed alike.

    Args:
        measure: Name of the comparison in reports.
        changed: The names by their texts, in the baseline and now.
        known: All names of the same kind.
    """
    for (was, now), names in changed.items():
        for form, count, considered in with_stars(names, known):
            yield BaselineChange(
                measure,
                "moved",
                element=form,
                elements=tuple(of_form(form, names)),
                old_text=was,
                new_text=now,
                count=count,
                considered=considered,
            )
