"""Text on what has changed since a baseline, or between two measurements."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

from ..records.names import alike, and_more, expanded
from ..records.reports import BaselineChange, BaselineRecord
from ..records.text import exp_or_infinity, format_names, format_number
from .layout import WORST_NAMED, WORST_SHOWN, labelled

__all__ = ["baseline_headline", "baseline_lines", "change_lines", "change_texts", "constants_text", "shift_text"]


def baseline_headline(baseline: BaselineRecord) -> str:
    """Return the shortest true sentence about a measurement that has no baseline or differs from it.

    Args:
        baseline: A comparison that does not hold.
    """
    if baseline.status == "missing":
        return f"no baseline for {baseline.entry}"
    if not baseline.changes:
        return f"changed since the baseline {baseline.entry}"
    first, *others = sorted(dict.fromkeys(change.measure for change in baseline.changes), key=_rank(baseline.changes))
    of_first = [change for change in baseline.changes if change.measure == first]
    text = (model_change_texts if first in OF_MODEL else change_texts)(of_first)[0]
    more = f"; {len(others)} more differ{'' if len(others) > 1 else 's'}" if others else ""
    return f"{first} changed since the baseline: {text}{more}"


def _rank(changes: Sequence[BaselineChange]) -> Callable[[str], int]:
    """Return a function that orders measures by weight: the model, gradients that are gone, its code, numbers, the frame."""
    lost = {PATH, *(measure for measure, kind in ((c.measure, c.kind) for c in changes) if (measure, kind) == UNUSED)}

    def rank(measure: str) -> int:
        groups = (set(OF_MODEL) - {*OF_CODE, OUTPUT}, lost, {OUTPUT, OPERATIONS}, {SETTINGS})
        number = next((i for i, group in enumerate(groups) if measure in group), len(groups))
        return number + (measure == FRAME)

    return rank


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
    """Return where the cause must be if neither initial values, nor tables, nor modules have changed; empty if they have."""
    changed = {change.measure for change in baseline.changes}
    if not baseline.model_compared or not changed or not changed.isdisjoint(OF_INITIALIZATION):
        return ""
    # The first state is called input, and comes before all steps.
    places = {"input": -1} | {name: place for place, name in enumerate(steps)}
    lost = [name for c in baseline.changes if (c.measure, c.kind) == UNUSED for name in c.elements]
    settings = [change for change in baseline.changes if change.measure == SETTINGS]
    ended = next(filter(None, map(_ended_gradient, settings)), "")
    without = f", so that {format_names(lost, WORST_NAMED)} get{'s' * (len(lost) == 1)} no gradient" if lost else ""
    if not changed.isdisjoint(SEEN):
        numbers = "" if changed - SEEN - {SETTINGS} else ", all numbers within tolerance"
        operated = [
            name for c in baseline.changes if c.measure == OPERATIONS for p in c.elements for name in expanded(p)
        ]
        inner = [name for change in settings for pattern in change.elements for name in expanded(pattern)]
        where = ended + without or _first(operated, places, inner)
        return f"initial values and modules unchanged{numbers}: the forward code changed{where}"
    unchanged = f"{_compared_text(baseline)} unchanged"
    if ended:
        return f"{unchanged}: the forward code changed{ended}{without}"
    if settings:
        is_constant = all(change.old_text and change.new_text for change in settings)
        return f"{unchanged}: {'a constant of' if is_constant else 'a call in'} the forward pass changed{without}"
    if without or PATH in changed:
        entered = [name for change in baseline.changes if change.measure == PATH for name in change.elements]
        place = f" in front of {format_names(entered, WORST_NAMED)}" if entered else ""
        return f"{unchanged}: the gradient is cut{place}, as by {CUTS if entered else CUTS_OF_LOSS}{without}"
    moved = [change for change in baseline.changes if change.element in places]
    functions = [f"the backward pass of {format_names(baseline.custom_functions)}"] if baseline.custom_functions else []
    return f"{unchanged}: {', '.join([*NOT_SEEN, *functions])}, the inputs or the loss changed{_first_moved(moved, places)}"


def _compared_text(baseline: BaselineRecord) -> str:
    """Return what could be compared: operations only of steps that both sides have."""
    if not baseline.operations_compared:
        return "initial values and modules"
    are_gone = any(c.measure in OF_STEPS and c.kind != "moved" and c.elements for c in baseline.changes)
    return f"initial values, modules and operations{' of the steps that remain' if are_gone else ''}"


def _ended_gradient(change: BaselineChange) -> str:
    """Return where and at which calls of a module a gradient ends that did not in the baseline; empty if none does."""
    calls = [call for call in _CALL.findall(change.new_text) if _ENDS.search(call)]
    if not calls or _ENDS.search(change.old_text):
        return ""
    return f", and a gradient ends in {change.element} at {', '.join(calls[:WORST_NAMED])}"


def _scaled_text(changes: Sequence[BaselineChange]) -> str:
    """Return that gradients are scaled behind the last state, if all are larger or all smaller, and only the code has changed.

    Where states and growth rates are as before, so are the Jacobians that a gradient is pulled back with. What has changed is
    the gradient that they start from. All change by one factor then, and less only where they are round-off. An initial value
    that has changed, such as the bias of a head, moves the point at which the loss is taken instead.
    """
    of_gradients = [change for change in changes if change.measure == GRADIENTS]
    others = {change.measure for change in changes} - {GRADIENTS, *OF_CODE, OUTPUT}
    shifts = [change.shift for change in of_gradients]
    # A few parameters show nothing that all have in common.
    if others or len(shifts) < MIN_PARAMETERS or len(shifts) < of_gradients[0].considered:
        return ""
    sizes = sorted(map(abs, shifts))
    if not all(map(math.isfinite, shifts)) or abs(math.fsum(shifts)) < math.fsum(sizes):
        return ""
    up_to = "up to " if sizes[-1] - sizes[0] > of_gradients[0].tolerance else ""
    times = f"{up_to}{format_number(exp_or_infinity(sizes[-1]))}"
    way = "larger" if shifts[0] > 0 else "smaller"
    return f"all are {times} times {way}, but states and growth are as before: the loss or the output is scaled"


def _first_moved(changes: Sequence[BaselineChange], places: Mapping[str, int]) -> str:
    """Return the first state or step at which numbers differ, in the order in which they are computed.

    States differ behind what has changed in the forward pass. In the backward pass, everything in front of it differs: if no
    state does, the last step is the first one that the gradient comes to. A state holds what later steps read: if a step in front
    of the first one differs, too, then what has changed may be in a later step, which reads something else.
    """
    forward = [change.element for change in changes if change.measure != GROWTH]
    backward = [change.element for change in changes if change.measure == GROWTH]
    if not forward:
        return f", in the backward pass first at {max(backward, key=places.__getitem__)}" if backward else ""
    is_earlier = min(map(places.__getitem__, forward)) > min(map(places.__getitem__, backward), default=len(places))
    return _first(forward, places) + (", or in what later steps read of its output" if is_earlier else "")


def _first(names: Sequence[str], places: Mapping[str, int], inner: Sequence[str] = ()) -> str:
    """Return the first of some steps as text; without a step among them, the place that they name; empty for none.

    Args:
        names: Names of steps.
        places: Place of each step in program order.
        inner: Modules whose code passes other constants. The innermost one that holds all of those in the first step is named.
    """
    first = min((name for name in names if name in places), key=places.__getitem__, default="")
    inside = [name.split(".") for name in inner if name.startswith(f"{first}.")] if first else []
    shared = takewhile(lambda parts: len({*parts}) == 1, zip(*inside))
    first = ".".join(part for part, *_ in shared) or first
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


TABLES, COPIES, OPERATIONS, SETTINGS, FRAME = "tables", "copies", "operations", "settings", "frame"
OUTPUT, PATH = "output", "gradient path"
OF_STEPS = ("growth_rate", "activation_rms")
"""Measures whose elements are steps."""
SEEN = {OPERATIONS, OUTPUT}
"""Comparisons that show that the forward code has changed."""
NOT_SEEN = ("a constant", "a mask", "a reshape", "another operand", "a detach", "code under no_grad")
"""Parts of the forward pass that neither operations nor initial values show."""
CUTS = "a detach, code under no_grad or a draw without gradient"
CUTS_OF_LOSS = "a detach, code under no_grad, a draw without gradient, or a loss that leaves results out"
"""What can take the gradient away."""
GRADIENTS = "gradient_norm"
GROWTH = "growth_rate"
MIN_PARAMETERS = 3
"""Smallest number of gradients that can show a common factor."""
UNUSED = ("unused_parameters", "new")
"""Measure and kind of the change of parameters that have lost their gradient."""


OF_INITIALIZATION = ("initial values", COPIES, TABLES, "modules")
"""Comparisons of the model before it runs."""
OF_MODEL = (*OF_INITIALIZATION, OUTPUT, OPERATIONS, SETTINGS)
"""Comparisons of the model itself, whose changes are causes. All others are consequences."""
OF_CODE = (OPERATIONS, SETTINGS)
"""Comparisons of the code between and in modules."""
_CALL = re.compile(r"\w+\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")
_ENDS = re.compile(r"^detach\(|\bno_grad\)")
"""Calls at which a gradient ends."""


def model_change_texts(changes: Sequence[BaselineChange]) -> list[str]:
    """Return texts on changes of initial values or modules: one for each group of names that changed alike."""
    moved = _shortened([_with_remark(change) for change in changes if change.kind == "moved"])
    others = [_names_text(change) for change in changes if change.kind != "moved"]
    if moved and not others and changes[0].measure not in {COPIES, *OF_CODE, OUTPUT}:
        moved[-1] += ", all others unchanged"
    return [*moved, *others]


def constants_text(changes: Sequence[BaselineChange]) -> str:
    """Return a remark on constants in the code that differ from those of a baseline, whose numbers have not changed.

    >>> constants_text([BaselineChange("settings", "moved", "time", old_text="mul(1000)")])
    'settings changed since the baseline, all numbers within tolerance: time: mul(1000) gone'

    Args:
        changes: The differences.
    """
    return (
        f"{SETTINGS} changed since the baseline, all numbers within tolerance: {'; '.join(model_change_texts(changes))}"
    )


def _with_remark(change: BaselineChange) -> str:
    return _model_change_text(change) + (f", {change.remark}" if change.remark else "")


def _model_change_text(change: BaselineChange) -> str:
    of = f" ({change.count} of {change.considered})" if change.considered > 1 else ""
    if change.measure == OUTPUT:
        return f"shape {change.old_to_new}"
    if change.measure in OF_CODE and "" in (change.old_text, change.new_text):
        return f"{change.element}: {change.old_text or change.new_text} {'gone' if change.old_text else 'new'}{of}"
    if change.measure == COPIES:
        return f"{change.element}: {change.new_text}{of}"
    if change.old_text:
        return f"{change.element}: {change.old_to_new}{of}"
    if math.isnan(change.shift):
        return f"{change.element}: {'no longer finite' if math.isnan(change.new) else 'finite again'}{of}"
    what = {"mean": "mean ", "value": ""}.get(change.unit, "rms ")
    # A mean has no factor, and a number none from zero or to another sign.
    if change.unit == "mean" or not math.isfinite(change.shift) or (change.unit and change.old * change.new <= 0):
        return f"{change.element}: {what}{change.old + 0.0:.3g} → {change.new + 0.0:.3g}{of}"
    return f"{change.element} ×{format_number(math.exp(change.shift))}{of}: {what}{change.old:.3g} → {change.new:.3g}"


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
    if change.measure == PATH:
        return f"no gradient passes into {format_names(names, WORST_NAMED)} any longer"
    if (change.measure, change.kind) == UNUSED:
        of = f"{len(names)} parameters get" if len(names) > 1 else "1 parameter gets"
        return f"{of} no gradient now: {format_names(names, WORST_NAMED)}"
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
    others = [largest, *(c for c in moved if c is not largest and c is not first)] if is_later else moved
    groups = alike(others, lambda change: f"{change.element}: {change.old_text} {change.new_text}")
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
        factor, most = (format_number(exp_or_infinity(abs(value))) for value in (change.shift, change.tolerance))
        return f"{factor} times {'larger' if change.shift > 0 else 'smaller'}, more than {most}"
    return f"by {format_number(change.shift)}, more than {format_number(change.tolerance)}"
