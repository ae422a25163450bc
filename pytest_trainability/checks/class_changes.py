"""Changes of the classes of gradients since a baseline."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from ..records.gradient_classes import BALANCED, CANCELLED, DEAD, SIGNAL, kind_of, without_names
from ..records.reports import BaselineChange

__all__ = ["CLASSES", "class_changes"]

CLASSES = "gradient_classes"
"""Name of the measure that lists the classes."""


def class_changes(
    old: Iterable[str], new: Iterable[str], *, gone: Collection[str], repeatable: bool, considered: int
) -> Iterator[BaselineChange]:
    """Yield the parameters whose gradient has changed its class.

    Whether a sum cancels exactly (dead) or up to round-off (zero by algebra) depends on the machine. The difference between these
    two counts only where arithmetic repeats. That a sum cancels on this draw is a property of the draw, and no change.

    Args:
        old: Lines ``NAME: CLASS`` of the baseline. A parameter without a line has a signal.
        new: Lines now.
        gone: Parameters that one side lacks.
        repeatable: Whether unchanged code repeats its arithmetic.
        considered: Number of parameters.
    """
    before, after = without_names(old), without_names(new)
    for name in dict.fromkeys([*before, *after]):
        labels = before.get(name, SIGNAL), after.get(name, SIGNAL)
        kinds = {kind_of(label) for label in labels}
        same = labels[0] == labels[1] or kinds == {SIGNAL, BALANCED}
        same = same or (not repeatable and kinds <= {CANCELLED, BALANCED, DEAD})
        if not same and name not in gone:
            yield BaselineChange(
                CLASSES, "moved", element=name, old_text=labels[0], new_text=labels[1], considered=considered
            )
