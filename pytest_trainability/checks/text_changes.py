"""Changes of texts, such as the class of a module or the operations of a step, grouped by names that changed alike."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ..records.names import of_form, with_stars
from ..records.reports import BaselineChange

__all__ = ["text_changes"]


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
