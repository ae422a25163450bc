"""Text on what has changed since a baseline, or between two measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..records.names import alike, and_more, expanded
from ..records.reports import BaselineChange, BaselineRecord
from ..records.text import format_names, format_number
from .layout import WORST_NAMED, WORST_SHOWN, labelled

__all__ = ["baseline_headline", "baseline_lines", "change_lines", "change_texts", "shift_text"]


def baseline_headline(baseline: BaselineRecord) -> str:
    """Return the shortest true sentence about a measurement that has no baseline or differs from it.

    Args:
        baseline: A comparison that does not hold.
    """
    if baseline.status == "missing":
        return f"no baseline for {baseline.entry}"
    if not baseline.changes:
        return f"changed since the baseline {baseline.entry}"
    first, *others = dict.fromkeys(change.measure for change in baseline.changes)
    of_first = [change for change in baseline.changes if change.measure == first]
    text = (model_change_texts if first in OF_MODEL else change_texts)(of_first)[0]
    more = f"; {len(others)} more differ{'' if len(others) > 1 else 's'}" if others else ""
    return f"{first} changed since the baseline: {text}{more}"


def baseline_lines(baseline: BaselineRecord, *, steps: Sequence[str], width: int, full: bool = False) -> list[str]:
    """Return labelled lines on the place of the baseline, its changes, and the command that records it.

    Args:
        baseline: The comparison.
        steps: Names of the steps of the chain, in program order.
        width: Number of columns to wrap at.
        full: Whether all elements that have changed are listed.
    """
    entry = f"{baseline.entry} in {baseline.file}"
    if baseline.status == "missing":
        return [
            *labelled("baseline", f"none for {entry}. Record it and commit the file.", width),
            *labelled("to record", baseline.command),
        ]
    recorded = f", recorded with {baseline.recorded_with}" if baseline.recorded_with else ""
    lines = labelled("baseline", entry + recorded, width)
    lines += labelled("model", _unchanged_text(baseline, steps), width)
    lines += labelled("gradients", _scaled_text(baseline.changes), width)
    lines += change_lines(baseline.changes, width, full=full)
    if baseline.status == "changed":
        lines += labelled("if intended", baseline.command)
    return lines


def _unchanged_text(baseline: BaselineRecord, steps: Sequence[str]) -> str:
    """Return where the cause must be if neither initial values nor modules have changed; empty if they have."""
    changed = {change.measure for change in baseline.changes}
    if not baseline.model_compared or not changed or not changed.isdisjoint(OF_MODEL[:2]):
        return ""
    # The first state is called input, and comes before all steps.
    places = {"input": -1} | {name: place for place, name in enumerate(steps)}
    lost = [name for c in baseline.changes if (c.measure, c.kind) == UNUSED for name in c.elements]
    without = f", so that {format_names(lost, WORST_NAMED)} get{'s' * (len(lost) == 1)} no gradient" if lost else ""
    unchanged = "initial values and modules"
    if OPERATIONS in changed:
        unchanged += " unchanged" if changed - {OPERATIONS} else " unchanged, all numbers within tolerance"
        operated = [
            name for c in baseline.changes if c.measure == OPERATIONS for p in c.elements for name in expanded(p)
        ]
        return f"{unchanged}: the forward code changed{without or _first(operated, places)}"
    moved = [change.element for change in baseline.changes if change.element in places]
    if baseline.operations_compared:
        what = "a constant of the forward pass"
        unchanged = "initial values, modules and operations"
    else:
        what = "the forward pass"
    if SETTINGS in changed:
        return f"{unchanged} unchanged: a constant of the forward pass changed{without}"
    return f"{unchanged} unchanged: {what}, the loss or the inputs changed{without or _first(moved, places)}"


def _scaled_text(changes: Sequence[BaselineChange]) -> str:
    """Return that gradients are scaled behind the last state, if all are larger or all smaller, and nothing else has moved.

    Where states and growth rates are as before, so are the Jacobians that a gradient is pulled back with. What has changed is
    the gradient that they start from. All change by one factor then, and less only where they are round-off.
    """
    of_gradients = [change for change in changes if change.measure == GRADIENTS]
    others = {change.measure for change in changes} - {GRADIENTS, *OF_MODEL}
    shifts = [change.shift for change in of_gradients]
    # A few parameters show nothing that all have in common.
    if others or len(shifts) < MIN_PARAMETERS or len(shifts) < of_gradients[0].considered:
        return ""
    sizes = sorted(map(abs, shifts))
    if not all(map(math.isfinite, shifts)) or abs(math.fsum(shifts)) < math.fsum(sizes):
        return ""
    up_to = "up to " if sizes[-1] - sizes[0] > of_gradients[0].tolerance else ""
    times = f"{up_to}{format_number(_exp(sizes[-1]))}"
    way = "larger" if shifts[0] > 0 else "smaller"
    return f"all are {times} times {way}, but states and growth are as before: the loss or the output is scaled"


def _first(names: Sequence[str], places: Mapping[str, int]) -> str:
    """Return the first of some steps as text; without a step among them, the place that they name; empty for none."""
    first = min((name for name in names if name in places), key=places.__getitem__, default="")
    return f", first at {first}" if first else f" {names[0]}" if names else ""


def change_lines(changes: Sequence[BaselineChange], width: int, *, full: bool = False) -> list[str]:
    """Return labelled lines on each measure that has changed.

    Args:
        changes: The changes.
        width: Number of columns to wrap at.
        full: Whether all elements that have changed are listed.
    """
    lines: list[str] = []
    for measure in dict.fromkeys(change.measure for change in changes):
        of_measure = [change for change in changes if change.measure == measure]
        texts = model_change_texts(of_measure) if measure in OF_MODEL else change_texts(of_measure)
        for text in texts:
            lines += labelled(measure, text, width)
        if full:
            lines += [line for text in _all_changes(of_measure) for line in labelled("", text, width)]
    return lines


def _all_changes(changes: Sequence[BaselineChange]) -> list[str]:
    """Return a text for each element that has changed, and for each pattern of names; none if there is only one."""
    texts = [
        text
        for change in changes
        for text in (change.elements or ([f"{change.element} ({change.old_to_new})"] if change.element else []))
    ]
    stand_for_many = (len(_names_of(change, element)) > 1 for change in changes for element in change.elements)
    return texts if len(texts) > 1 or any(stand_for_many) else []


OPERATIONS, SETTINGS, FRAME = "operations", "settings", "frame"
GRADIENTS = "gradient_norm"
MIN_PARAMETERS = 3
"""Smallest number of gradients that can show a common factor."""
UNUSED = ("unused_parameters", "new")
"""Measure and kind of the change of parameters that have lost their gradient."""


OF_MODEL = ("initial values", "modules", OPERATIONS, SETTINGS)
"""Comparisons of the model itself, whose changes are causes. All others are consequences."""
OF_CODE = (OPERATIONS, SETTINGS)
"""Comparisons of the code between and in modules."""


def model_change_texts(changes: Sequence[BaselineChange]) -> list[str]:
    """Return texts on changes of initial values or modules: one for each group of names that changed alike."""
    moved = _shortened([_model_change_text(change) for change in changes if change.kind == "moved"])
    others = [_names_text(change) for change in changes if change.kind != "moved"]
    if moved and not others and changes[0].measure not in OF_CODE:
        moved[-1] += ", all others unchanged"
    return [*moved, *others]


def _model_change_text(change: BaselineChange) -> str:
    of = f" ({change.count} of {change.considered})" if change.considered > 1 else ""
    if change.measure in OF_CODE and "" in (change.old_text, change.new_text):
        return f"{change.element}: {change.old_text or change.new_text} {'gone' if change.old_text else 'new'}{of}"
    if change.old_text:
        return f"{change.element}: {change.old_to_new}{of}"
    if math.isnan(change.shift):
        return f"{change.element}: {'no longer finite' if math.isnan(change.new) else 'finite again'}{of}"
    if change.unit == "mean" or not math.isfinite(change.shift):
        what = "mean" if change.unit == "mean" else "rms"
        return f"{change.element}: {what} {change.old:.3g} → {change.new:.3g}{of}"
    return f"{change.element} ×{format_number(math.exp(change.shift))}{of}: rms {change.old:.3g} → {change.new:.3g}"


def _shortened(texts: Sequence[str]) -> list[str]:
    """Return the first texts, and the number of those that are left out."""
    left = len(texts) - WORST_SHOWN
    return [*texts[:WORST_SHOWN], *([f"and {left} more"] if left > 0 else [])]


def change_texts(changes: Sequence[BaselineChange]) -> list[str]:
    """Return texts on the changes of one measure: names that vanished or are new, then numbers that moved, old → new."""
    moved = [change for change in changes if change.kind == "moved"]
    texts = [_names_text(change) for change in changes if change.kind != "moved"]
    return [*texts, *([_moved_text(moved)] if moved else [])]


def _names_text(change: BaselineChange) -> str:
    is_new = change.kind == "new"
    if not change.elements:
        return "not in the baseline" if is_new else "no longer measured"
    names = [name for element in change.elements for name in _names_of(change, element)]
    return f"{len(names)} {'new' if is_new else 'gone'}: {format_names(names, WORST_NAMED)}"


def _names_of(change: BaselineChange, element: str) -> list[str]:
    """Return the names that an element stands for: one, unless it is a pattern of initial values, modules or steps."""
    return expanded(element) if change.measure in OF_MODEL else [element]


def _moved_text(moved: Sequence[BaselineChange]) -> str:
    # A profile by step begins with the first step that has moved.
    first, largest = moved[0], max(moved, key=_size)
    if largest.measure == FRAME:
        return _frame_text(largest)
    if not largest.element:
        return f"{largest.old_to_new}: {shift_text(largest)}"
    is_later = not first.old_text and _size(first) < _size(largest)
    moved = [largest, *(change for change in moved if change is not largest)] if is_later else moved
    groups = alike(moved, lambda change: f"{change.element}: {change.old_text} {change.new_text}")
    worst = ", ".join(
        f"{group[0].element} ({group[0].old_to_new}){and_more([change.element for change in group])}"
        for group in groups[:WORST_NAMED]
    )
    more = ", …" if len(groups) > WORST_NAMED else ""
    if largest.old_text:
        return f"{len(moved)} of {largest.considered} changed: {worst}{more}"
    at = f" first at {first.element} ({first.old_to_new})," if is_later else ""
    return f"{len(moved)} of {largest.considered} moved,{at} {shift_text(largest)}: {worst}{more}"


def _size(change: BaselineChange) -> float:
    """Return the size of a shift, infinite if it is NaN."""
    return math.inf if math.isnan(change.shift) else abs(change.shift)


def _frame_text(change: BaselineChange) -> str:
    """Return what another division into trajectories says on samples."""
    if change.new_text == "joint":
        return f"{change.old_to_new}: samples have no gradients of their own any longer, as where they interact"
    return f"{change.old_to_new}: samples have gradients of their own now, as where they do not interact"


def _finiteness_text(change: BaselineChange) -> str:
    """Return what has changed if other seeds are finite than in the baseline."""
    if change.old_finite and change.new_finite:
        return "finite on other seeds"
    if change.new_finite:
        return "no longer finite on every seed" if math.isfinite(change.old) else "finite on some seeds now"
    if change.old_finite:
        return "finite on every seed again" if math.isfinite(change.new) else "no longer finite on any seed"
    return "finite on one side only"


def shift_text(change: BaselineChange) -> str:
    """Return ``by 1.55, more than 0.3`` or, for a log-scale measure, ``2.1 times larger, more than 1.35``."""
    if change.scale == "log" and (change.old == 0) != (change.new == 0):
        return "no longer zero" if change.old == 0 else "zero now"
    if not math.isfinite(change.shift):
        return _finiteness_text(change)
    if change.scale == "log":
        factor, most = (format_number(_exp(abs(value))) for value in (change.shift, change.tolerance))
        return f"{factor} times {'larger' if change.shift > 0 else 'smaller'}, more than {most}"
    return f"by {format_number(change.shift)}, more than {format_number(change.tolerance)}"


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
