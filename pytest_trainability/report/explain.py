"""Text for a failed check: bounds, changes from the baseline, and a small picture of the growth along the chain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from operator import attrgetter, itemgetter
from typing import Any

from ..checks.bounds import Bound
from ..records.estimates import Profile, Spectrum
from ..records.names import alike, and_more, expanded
from ..records.reports import BaselineChange, BaselineRecord, CheckRecord, VerdictRecord
from ..records.text import format_names, format_number, visible

__all__ = [
    "baseline_lines",
    "bound_text",
    "change_lines",
    "cut_left",
    "depth_line",
    "explain",
    "explain_baseline",
    "explain_comparison",
    "explain_lines",
    "labelled",
    "marginal_text",
    "seeds_text",
    "shown_in",
    "sparkline",
    "stopped_early",
    "to_ascii",
]

BARS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 24
LABEL_WIDTH = 15
SEEDS_WIDTH = 12
"""Number of characters above which a list of seeds is summarized."""
WORST_SHOWN, WORST_NAMED = 5, 2
"""Number of elements that a failed comparison lists, and that a line names."""
MOST_SEEDS_NAMED = 10_000
"""Number of seeds above which a marginal verdict is not worth settling."""
LARGEST_PERCENTAGE = 1.05
"""Largest ratio that is shown in percent."""


def explain(record: CheckRecord, *, width: int = 80) -> str:
    """Return the message of a failed check: value and bound, where and why it fails, and how to repeat it.

    Args:
        record: Record with at least one verdict that does not hold.
        width: Number of columns to wrap at. Long names and commands exceed it.
    """
    failed = [verdict.measure for verdict in record.verdicts if not verdict.holds]
    head = f"{record.model}: {' and '.join(failed)} out of bounds"
    return _message(head, record, explain_lines(record, width=width - 2), width)


def explain_baseline(record: CheckRecord, *, width: int = 80) -> str:
    """Return the message of a measurement that differs from its baseline or has none.

    Args:
        record: Record with a baseline that does not hold.
        width: Number of columns to wrap at. Long names and commands exceed it.
    """
    assert record.baseline is not None
    missing = record.baseline.status == "missing"
    head = f"{record.model}: {'no baseline' if missing else 'changed since the baseline'}"
    lines = [
        *baseline_lines(record.baseline, steps=record.step_names, width=width - 2),
        *_cause_lines(record, width - 2),
    ]
    return _message(head, record, lines, width)


def _message(head: str, record: CheckRecord, lines: Sequence[str], width: int) -> str:
    lines = [*labelled("measured", measured_on(record), width - 2), *lines]
    return "\n".join([visible(head), *("  " + line for line in lines)])


def explain_lines(record: CheckRecord, *, width: int, full: bool = False) -> list[str]:
    """Return labelled lines on each violation, on its place and likely cause, and on how to repeat the check.

    Args:
        record: The record.
        width: Number of columns to wrap at.
        full: Whether all elements are listed, instead of the first ones.
    """
    lines: list[str] = []
    for verdict in record.verdicts:
        if not verdict.holds:
            lines += violation_lines(verdict, width=width, full=full)
    if record.baseline is not None and not record.baseline.holds:
        lines += baseline_lines(record.baseline, steps=record.step_names, width=width, full=full)
    lines += labelled(f"along {record.along}", depth_line(record, width - LABEL_WIDTH))
    lines += labelled("leaves band", record.leaves_band, width)
    lines += _cause_lines(record, width)
    lines += cure_lines(record, width)
    # An output that is not finite is a caution where the test passes, and the likely cause where it fails.
    for note in (*(caution for caution in record.cautions if caution not in record.cause), *record.notes):
        lines += labelled("note", note, width)
    if record.reproduce:
        lines += labelled("reproduce", reproduce_command(record))
    return lines


def _cause_lines(record: CheckRecord, width: int) -> list[str]:
    """Return labelled lines on the likely cause of a failure; none without one."""
    return [
        text
        for index, line in enumerate(record.cause)
        for text in labelled("likely cause" if index == 0 else "", line, width)
    ]


def cure_lines(record: CheckRecord, width: int) -> list[str]:
    """Return labelled lines on the changes that bring what has failed inside its bounds; none without one."""
    lines: list[str] = []
    for index, cure in enumerate(record.cures):
        effect = f"{cure.measure} {format_number(cure.before)} → {format_number(cure.after)} on the same seeds"
        lines += labelled("cure" if index == 0 else "or", f"{cure.text}: {effect}", width)
    return lines


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
    lines += change_lines(baseline.changes, width, full=full)
    if baseline.status == "changed":
        lines += labelled("if intended", baseline.command)
    return lines


def _unchanged_text(baseline: BaselineRecord, steps: Sequence[str]) -> str:
    """Return where the cause must be if neither initial values nor modules have changed; empty if they have."""
    changed = {change.measure for change in baseline.changes}
    if not baseline.model_compared or not changed or not changed.isdisjoint(OF_MODEL[:2]):
        return ""
    places = {name: place for place, name in enumerate(steps)}
    unchanged = "initial values and modules"
    if OPERATIONS in changed:
        unchanged += " unchanged" if changed - {OPERATIONS} else " unchanged, all numbers within tolerance"
        operated = [
            name for c in baseline.changes if c.measure == OPERATIONS for p in c.elements for name in expanded(p)
        ]
        return f"{unchanged}: the forward code changed{_first(operated, places)}"
    moved = [change.element for change in baseline.changes if change.element in places]
    if baseline.operations_compared:
        what = "a constant of the forward pass"
        unchanged = "initial values, modules and operations"
    else:
        what = "the forward pass"
    return f"{unchanged} unchanged: {what}, the loss or the inputs changed{_first(moved, places)}"


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


OPERATIONS = "operations"
OF_MODEL = ("initial values", "modules", OPERATIONS)
"""Comparisons of the model itself, whose changes are causes. All others are consequences."""


def model_change_texts(changes: Sequence[BaselineChange]) -> list[str]:
    """Return texts on changes of initial values or modules: one for each group of names that changed alike."""
    moved = _shortened([_model_change_text(change) for change in changes if change.kind == "moved"])
    others = [_names_text(change) for change in changes if change.kind != "moved"]
    if moved and not others and changes[0].measure != OPERATIONS:
        moved[-1] += ", all others unchanged"
    return [*moved, *others]


def _model_change_text(change: BaselineChange) -> str:
    of = f" ({change.count} of {change.considered})" if change.considered > 1 else ""
    if change.measure == OPERATIONS and "" in (change.old_text, change.new_text):
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
    largest = moved[0]
    if not largest.element:
        return f"{largest.old_to_new}: {shift_text(largest)}"
    groups = alike(moved, lambda change: f"{change.element}: {change.old_text} {change.new_text}")
    worst = ", ".join(
        f"{group[0].element} ({group[0].old_to_new}){and_more([change.element for change in group])}"
        for group in groups[:WORST_NAMED]
    )
    more = ", …" if len(groups) > WORST_NAMED else ""
    if largest.old_text:
        return f"{len(moved)} of {largest.considered} changed: {worst}{more}"
    return f"{len(moved)} of {largest.considered} moved, {shift_text(largest)}: {worst}{more}"


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


def measured_on(record: CheckRecord) -> str:
    """Return ``12 × GPT2Block, per sample, train mode, float32 on cpu, seeds 0-3, settled after 2``."""
    parts = [
        record.steps,
        record.frame,
        f"{record.mode} mode",
        f"{record.dtype} on {record.device}",
        seeds_text(record),
    ]
    if stopped_early(record):
        parts.append(f"settled after {len(record.seeds)}")
    return ", ".join(parts)


def stopped_early(record: CheckRecord) -> bool:
    """Return whether the bounds were settled before all requested seeds were drawn."""
    return len(record.seeds) < len(record.seeds_requested)


def seeds_text(record: CheckRecord) -> str:
    """Return the requested seeds: ``seeds 0-3``, ``seed 5`` or ``seeds 0,3,5``."""
    if record.fixed:
        return "finished module"
    written = _ranges(record.seeds_requested)
    if len(written) > SEEDS_WIDTH:
        return f"{len(record.seeds_requested)} seeds from {record.seeds_requested[0]} to {record.seeds_requested[-1]}"
    return f"seed{'s' if len(record.seeds_requested) > 1 else ''} {written}"


def _ranges(seeds: Sequence[int]) -> str:
    first, last = seeds[0], seeds[-1]
    if len(seeds) > 1 and tuple(seeds) == tuple(range(first, last + 1)):
        return f"{first}-{last}"
    return ",".join(map(str, seeds))


def reproduce_command(record: CheckRecord) -> str:
    """Return the command that repeats this check alone."""
    options = [] if record.fixed else [f"--trainability-seeds={_seeds_option(record.seeds_requested)}"]
    # On a machine with a GPU the CPU is not the default. A finished module stays on its device.
    if not (record.fixed and record.device == "cpu"):
        options.append(f"--trainability-device={record.device}")
    return " ".join([record.reproduce, *options])


def _seeds_option(seeds: Sequence[int]) -> str:
    """Return the value of ``--trainability-seeds``. A single seed is written as a range, because a number means how many."""
    written = _ranges(seeds)
    return f"{written}-{written}" if written.isdecimal() else written


def violation_lines(verdict: VerdictRecord, *, width: int, full: bool = False) -> list[str]:
    """Return labelled lines on value, bound and margin of a verdict that does not hold, and on the worst elements.

    Args:
        verdict: The verdict.
        width: Number of columns to wrap at.
        full: Whether every element outside gets a line.
    """
    if verdict.elements == 0:
        why = verdict.remark or "no element to judge"
        return labelled(verdict.measure, f"nothing was measured, {bound_text(verdict)}: {why}", width)
    text = f"{verdict.value_text}, {bound_text(verdict)}: {_margin_text(verdict)}{marginal_text(verdict)}"
    lines = [*labelled(verdict.measure, text, width), *labelled("", _worst_text(verdict), width)]
    return [*lines, *(_full_lists(verdict, width) if full else ())]


def _worst_text(verdict: VerdictRecord) -> str:
    if not verdict.where or verdict.elements == 1:
        return verdict.where
    finite = (*verdict.worst_finite, *[""] * len(verdict.worst))
    groups = alike([(*worst, seeds) for worst, seeds in zip(verdict.worst, finite)], itemgetter(0))
    texts = (_worst_of(*group[0]) + and_more([name for name, _, _ in group]) for group in groups[:WORST_NAMED])
    return f"{verdict.violations} of {verdict.elements} outside, worst {', '.join(texts)}"


def _full_lists(verdict: VerdictRecord, width: int) -> Iterator[str]:
    """Yield a line for each element outside, or each name, where the other lines do not show them all."""
    finite = (*verdict.worst_finite, *[""] * len(verdict.worst))
    of_names = verdict.elements == 1 and verdict.names
    texts = verdict.names if of_names else [_worst_of(*worst, seeds) for worst, seeds in zip(verdict.worst, finite)]
    if len(texts) > 1:
        yield from (line for text in texts for line in labelled("", text, width))


def _worst_of(name: str, value: float, finite: str) -> str:
    return f"{name} {finite if finite and math.isnan(value) else format_number(value, 2)}"


def marginal_text(verdict: VerdictRecord) -> str:
    """Return ``, marginal: about 24 seeds would settle it`` for a marginal verdict, else an empty text."""
    if not verdict.marginal:
        return ""
    if verdict.seeds_needed > MOST_SEEDS_NAMED:
        return ", marginal, and so close that no number of seeds would settle it"
    return f", marginal: about {_two_digits(verdict.seeds_needed)} seeds would settle it"


def _two_digits(count: float) -> int:
    """Round up to two significant digits, because the spread over a few seeds is not more accurate."""
    unit: int = 10 ** max(len(str(int(count))) - 2, 0)
    return math.ceil(count / unit) * unit


def bound_text(verdict: VerdictRecord) -> str:
    """Return ``must lie in [-5, 5]``, ``must be ≥ 1e-06`` or ``must be ≤ 0.9``, with the patterns of what was judged."""
    text = str(Bound(verdict.low, verdict.high))
    return f"{text} ({verdict.selection})" if verdict.selection else text


def _margin_text(verdict: VerdictRecord) -> str:
    if math.isnan(verdict.value):
        return "NaN or infinite on the other seeds" if verdict.finite else "not a number"
    end = verdict.low if verdict.low is not None and verdict.value < verdict.low else verdict.high
    if end is None or math.isinf(verdict.value):
        return f"outside, {verdict.finite}" if verdict.finite else "outside"
    if not verdict.unit.startswith("nats") and verdict.value > 0 and end > 0:
        ratio, way = max(verdict.value, end) / min(verdict.value, end), "small" if verdict.value < end else "large"
        by = f"{float(f'{ratio:.2g}'):,.6g} times" if ratio > LARGEST_PERCENTAGE else f"{100 * (ratio - 1):.2g} %"
        return f"{by} too {way}"
    return f"{format_number(abs(verdict.value - end), 2)} outside"


def depth_line(record: CheckRecord, width: int) -> str:
    """Return a sparkline of the accumulated log gain from the last step, on the left, to the first."""
    if not record.growth:
        return ""
    room = max((width - 2 - SPARKLINE_WIDTH) // 2, 8)
    first, last = (cut_left(name, room) for name in (record.step_names[0], record.step_names[-1]))
    bars = max(min(width - 2 - len(first) - len(last), SPARKLINE_WIDTH), 8)
    return f"{last} {sparkline(accumulated(record.growth), bars)} {first}"


def cut_left(text: str, width: int) -> str:
    """Shorten a text to its end, in which names differ."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def accumulated(growth: Sequence[float]) -> list[float]:
    """Return the log gain from the last state to each state before it, in nats; it starts with 0 at the last state."""
    total, found = 0.0, [0.0]
    for rate in reversed(growth):
        total += rate
        found.append(total)
    return found


def sparkline(values: Sequence[float], width: int = SPARKLINE_WIDTH) -> str:
    """Return bars between the smallest and the largest value, and ``×`` for values that are not finite.

    The full height is a range of at least one, so that noise does not look like a trend.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "×" * min(len(values), width)
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    low, span = min(finite), max(max(finite) - min(finite), 1.0)
    offset = (span - (max(finite) - low)) / 2
    steps = len(BARS) - 1
    return "".join(
        BARS[round((value - low + offset) / span * steps)] if math.isfinite(value) else "×" for value in values
    )


def labelled(label: str, text: str, width: int = 0) -> list[str]:
    """Return the lines of a text behind a label, wrapped at a width if one is given. A long label gets a separate line."""
    if not text:
        return []
    label, lines = visible(label), [""]
    for word in visible(text).split(" "):
        if width and lines[-1] and len(lines[-1]) + len(word) + 1 > width - LABEL_WIDTH:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    head = [label] if len(label) >= LABEL_WIDTH else []
    return head + [f"{label if i == 0 and not head else '':<{LABEL_WIDTH - 1}} {line}" for i, line in enumerate(lines)]


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
    groups = [[e] for e in outside] if full else alike(outside, attrgetter("name"))[:WORST_SHOWN]
    texts = (f"{group[0].name}: {group[0]}{and_more([e.name for e in group])}" for group in groups)
    return [*map(visible, (head, count)), *(f"  {visible(text)}" for text in texts)]


_ASCII = str.maketrans(
    {"±": "+-", "≥": ">=", "≤": "<=", "×": "x", "÷": "/", "−": "-", "–": "-", "·": "|", "…": "...", "→": "->", "›": ">"}
    | {"✔": "+", "✘": "x"}
    | dict(zip(BARS, "_.-~=+*#"))
)


def shown_in(text: str, encoding: str | None) -> str:
    """Return a line to print: escaped by :func:`visible`, and in ASCII if the encoding is unknown or cannot represent it."""
    text = visible(text)
    try:
        text.encode(encoding or "ascii")
    except (UnicodeError, LookupError):
        # The characters of a sparkline become '#', among others.
        return visible(to_ascii(text))
    return text


def to_ascii(text: str) -> str:
    """Replace every character that ASCII lacks by a similar one or an escape."""
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")
