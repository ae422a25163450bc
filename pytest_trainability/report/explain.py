"""A failed check in words and one small picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from ..checks.bounds import Bound
from ..records.estimates import Profile, Spectrum
from ..records.reports import BaselineChange, BaselineRecord, CheckRecord, VerdictRecord
from ..records.text import format_names, format_number

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
    "visible",
]

BARS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 24
LABEL = 15
SEEDS_WIDTH = 12
WORST_SHOWN, WORST_NAMED = 5, 2
MOST_SEEDS_NAMED = 10_000
BARELY = 1.05
"""Ratio up to which one is told in percent."""


def explain(record: CheckRecord, *, width: int = 80) -> str:
    """Return the message of a failed check: what was claimed, by how much it fails, where, why, and how to repeat it.

    Args:
        record: With at least one verdict that does not hold.
        width: Cotangents to stay within, where names allow.
    """
    failed = [verdict.measure for verdict in record.verdicts if not verdict.holds]
    head = f"{record.model}: {' and '.join(failed)} out of bounds"
    lines = [*labelled("measured", measured_on(record), width - 2), *explain_lines(record, width=width - 2)]
    return "\n".join([head, *("  " + line for line in lines)])


def explain_lines(record: CheckRecord, *, width: int) -> list[str]:
    """Return one labelled line or more for each violation, for where and why, and for how to repeat the check."""
    lines: list[str] = []
    for verdict in record.verdicts:
        if not verdict.holds:
            lines += violation_lines(verdict, width=width)
    if record.baseline is not None and not record.baseline.holds:
        lines += baseline_lines(record.baseline, width=width)
    lines += labelled(f"along {record.along}", depth_line(record, width - LABEL))
    lines += labelled("leaves band", record.leaves_band, width)
    for index, line in enumerate(record.cause):
        lines += labelled("likely cause" if index == 0 else "", line, width)
    for note in (*record.cautions, *record.notes):
        lines += labelled("note", note, width)
    if record.reproduce:
        lines += labelled("reproduce", reproduce_command(record))
    return lines


def explain_baseline(record: CheckRecord, *, width: int = 80) -> str:
    """Return the message of a measurement that is not what its baseline says, or that has none."""
    assert record.baseline is not None
    missing = record.baseline.status == "missing"
    head = f"{record.model}: {'no baseline' if missing else 'changed since the baseline'}"
    lines = [*labelled("measured", measured_on(record), width - 2), *baseline_lines(record.baseline, width=width - 2)]
    return "\n".join([head, *("  " + line for line in lines)])


def baseline_lines(baseline: BaselineRecord, *, width: int) -> list[str]:
    """Return where the baseline stands, what has changed, old → new, and the command that records it."""
    what = f"{baseline.entry} in {baseline.file}"
    if baseline.status == "missing":
        return [
            *labelled("baseline", f"must be recorded and committed: none for {what}", width),
            *labelled("to record", baseline.command),
        ]
    recorded = f", recorded with {baseline.recorded_with}" if baseline.recorded_with else ""
    lines = labelled("baseline", what + recorded, width)
    lines += change_lines(baseline.changes, width)
    if baseline.status == "changed":
        lines += labelled("if intended", baseline.command)
    return lines


def change_lines(changes: Sequence[BaselineChange], width: int) -> list[str]:
    """Return one labelled line or more for each measure that has changed."""
    lines: list[str] = []
    for measure in dict.fromkeys(change.measure for change in changes):
        for text in change_texts([change for change in changes if change.measure == measure]):
            lines += labelled(measure, text, width)
    return lines


def change_texts(changes: Sequence[BaselineChange]) -> list[str]:
    """Write what has changed of one measure: what has vanished, what is new, and what has moved, old → new."""
    texts: list[str] = []
    for change in changes:
        if change.kind != "moved":
            named = format_names(change.elements, WORST_NAMED)
            is_new = "new" if change.kind == "new" else "gone"
            texts.append(f"{len(change.elements)} {is_new}: {named}" if change.elements else f"{is_new} as a whole")
    moved = [change for change in changes if change.kind == "moved"]
    if not moved:
        return texts
    if not moved[0].element:
        return [*texts, f"{moved[0].old_to_new}: {shift_text(moved[0])}"]
    worst = ", ".join(f"{change.element} ({change.old_to_new})" for change in moved[:WORST_NAMED])
    more = ", …" if len(moved) > WORST_NAMED else ""
    return [*texts, f"{len(moved)} of {moved[0].considered} moved, {shift_text(moved[0])}: {worst}{more}"]


def shift_text(change: BaselineChange) -> str:
    """Return ``by +1.55, more than 0.3`` or, for a scale, ``by a factor of 2.1, more than 1.35``."""
    if not math.isfinite(change.shift):
        return "finite in one only"
    if change.scale == "log" and 0 in {change.old, change.new}:
        return "no longer zero" if change.old == 0 else "zero now"
    if change.scale == "log":
        factor, most = (format_number(_exp(abs(value))) for value in (change.shift, change.tolerance))
        return f"{factor} times {'larger' if change.shift > 0 else 'smaller'}, more than {most}"
    return f"by {format_number(change.shift)}, more than {format_number(change.tolerance)}"


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def measured_on(record: CheckRecord) -> str:
    """Return ``12 × GPT2Block, per sample, train mode, float32 on cpu, seeds 0-3, settled after 2``."""
    settled = f"settled after {len(record.seeds)}" if stopped_early(record) else ""
    parts = (
        record.steps,
        record.frame,
        f"{record.mode} mode",
        f"{record.dtype} on {record.device}",
        seeds_text(record),
    )
    return ", ".join([*parts, *([settled] if settled else [])])


def stopped_early(record: CheckRecord) -> bool:
    """Whether fewer seeds than could have been were drawn, as the bounds were settled."""
    return len(record.seeds) < len(record.seeds_requested)


def seeds_text(record: CheckRecord) -> str:
    """Return ``seeds 0-3``, ``seed 5`` or ``seeds 0,3,5``: those that were asked for."""
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
    seeds = _ranges(record.seeds_requested)
    # One number would be how many seeds.
    options = (
        []
        if record.fixed
        else [f"--trainability-seeds={seeds}-{seeds}" if seeds.isdecimal() else f"--trainability-seeds={seeds}"]
    )
    # The CPU, too, which is not the default where there is a GPU; a finished module stays where it is.
    if not (record.fixed and record.device == "cpu"):
        options.append(f"--trainability-device={record.device}")
    return " ".join([record.reproduce, *options])


def violation_lines(verdict: VerdictRecord, *, width: int = 78) -> list[str]:
    """Return value, bound and margin of one verdict that does not hold, and where it fails worst."""
    if verdict.elements == 0:
        return labelled(verdict.measure, f"nothing was measured, {bound_text(verdict)}: no element to judge")
    lines = labelled(
        verdict.measure,
        f"{verdict.value_text}, {bound_text(verdict)}: {_margin_text(verdict)}{marginal_text(verdict)}",
        width,
    )
    if verdict.where:
        if verdict.elements > 1:
            worst = ", ".join(f"{name} {format_number(value, 2)}" for name, value in verdict.worst[:WORST_NAMED])
            lines += labelled("", f"{verdict.violations} of {verdict.elements} outside, worst {worst}", width)
        else:
            lines += labelled("", verdict.where, width)
    return lines


def marginal_text(verdict: VerdictRecord) -> str:
    """Return ``, marginal: about 24 seeds would settle it``, or nothing."""
    if not verdict.marginal:
        return ""
    if verdict.seeds_needed > MOST_SEEDS_NAMED:
        return ", marginal, and so close that no number of seeds would settle it"
    return f", marginal: about {_two_digits(verdict.seeds_needed)} seeds would settle it"


def _two_digits(count: float) -> int:
    """Round up to two significant digits: the spread over a few seeds knows no more."""
    unit: int = 10 ** max(len(str(int(count))) - 2, 0)
    return math.ceil(count / unit) * unit


def bound_text(verdict: VerdictRecord) -> str:
    """Return ``must lie in [-5, 5]``, ``must be ≥ 1e-06`` or ``must be ≤ 0.9``."""
    return str(Bound(verdict.low, verdict.high))


def _margin_text(verdict: VerdictRecord) -> str:
    if math.isnan(verdict.value):
        return "not a number"
    end = verdict.low if verdict.low is not None and verdict.value < verdict.low else verdict.high
    if end is None or math.isinf(verdict.value):
        return "outside"
    if not verdict.unit.startswith("nats") and verdict.value > 0 and end > 0:
        ratio, way = max(verdict.value, end) / min(verdict.value, end), "small" if verdict.value < end else "large"
        by = f"{float(f'{ratio:.2g}'):,.6g} times" if ratio > BARELY else f"{100 * (ratio - 1):.2g} %"
        return f"{by} too {way}"
    return f"{format_number(abs(verdict.value - end), 2)} outside"


def depth_line(record: CheckRecord, width: int) -> str:
    """Draw how the gradient's size changes on its way from the last step to the first."""
    if not record.growth:
        return ""
    room = max((width - 2 - SPARKLINE_WIDTH) // 2, 8)
    first, last = (cut_left(name, room) for name in (record.step_names[0], record.step_names[-1]))
    bars = max(min(width - 2 - len(first) - len(last), SPARKLINE_WIDTH), 8)
    return f"{last} {sparkline(accumulated(record.growth), bars)} {first}"


def cut_left(text: str, width: int) -> str:
    """Shorten a text to its end, which tells names apart."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def accumulated(growth: Sequence[float]) -> list[float]:
    """Return the log gain from the last state to each state before it, beginning with 0 at the last."""
    total, found = 0.0, [0.0]
    for rate in reversed(growth):
        total += rate
        found.append(total)
    return found


def sparkline(values: Sequence[float], width: int = SPARKLINE_WIDTH) -> str:
    """Draw values as bars between their smallest and largest, ``×`` where one is not finite.

    A range of less than one is drawn as if it were one, so that noise does not look like a trend.
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
    """Put a label before a text, wrapped under itself where a width is given; a long label stands on its own line."""
    if not text:
        return []
    label, lines = visible(label), [""]
    for word in visible(text).split(" "):
        if width and lines[-1] and len(lines[-1]) + len(word) + 1 > width - LABEL:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    head = [label] if len(label) >= LABEL else []
    return head + [f"{label if i == 0 and not head else '':<{LABEL - 1}} {line}" for i, line in enumerate(lines)]


def visible(text: str) -> str:
    """Escape what a terminal would obey: names may come from a file that somebody else wrote."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def explain_comparison(op: str, left: Any, right: Any) -> list[str] | None:
    """Say which elements of a profile or spectrum do not satisfy a failing comparison with a number.

    Returns:
        Lines for pytest, or None where its own explanation is as good.
    """
    if isinstance(right, (Profile, Spectrum)):
        op, left, right = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(op, op), right, left
    judge = {"<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__}.get(op)
    if judge is None or not isinstance(left, (Profile, Spectrum)) or not isinstance(right, Real):
        return None
    elements = list(left.values()) if isinstance(left, Profile) else list(left)
    if not elements:
        return [f"{left!r} {op} {right!r}", "there is no element, of which it could hold; is a pattern misspelt?"]
    outside = [e for e in elements if not judge(e.mean, float(right))]
    outside.sort(key=lambda e: e.mean if op in {">", ">="} else -e.mean)
    lines = [
        f"{left!r} {op} {right!r}",
        f"{len(outside)} of {len(elements)} elements are not {op} {right!r}; the worst:",
    ]
    lines += [f"  {e.name}: {e}" for e in outside[:WORST_SHOWN]]
    return lines


_ASCII = str.maketrans(
    {"±": "+-", "≥": ">=", "≤": "<=", "×": "x", "÷": "/", "−": "-", "–": "-", "·": "|", "…": "...", "→": "->", "›": ">"}
    | {"✔": "+", "✘": "x"}
    | dict(zip(BARS, "_.-~=+*#"))
)


def shown_in(text: str, encoding: str) -> str:
    """Return the text as it is where it can be written in an encoding, else in ASCII."""
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        return to_ascii(text)
    return text


def to_ascii(text: str) -> str:
    """Replace every sign that a plain terminal cannot show."""
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")
