"""A failed check in words and one small picture."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from ..records import CheckRecord, VerdictRecord, format_number, format_with_error

__all__ = ["explain", "sparkline", "to_ascii", "violation_lines"]

BARS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 24


def explain(record: CheckRecord, *, width: int = 80) -> str:
    """Return the message of a failed check: what was claimed, by how much it fails, where, why, and how to repeat it.

    Args:
        record: With at least one verdict that does not hold.
        width: Columns to stay within, where names allow.
    """
    failed = [verdict for verdict in record.verdicts if not verdict.holds]
    claims = f"{len(failed)} of {len(record.verdicts)} bounds" if len(record.verdicts) > 1 else "the bound"
    holds = "do not hold" if len(failed) > 1 else "does not hold"
    lines = [f"{record.model} ({measured_on(record)}): {claims} {holds}"]
    for verdict in failed:
        lines += violation_lines(verdict, width=width - 2)
    lines += _labelled("along depth", _depth_line(record))
    if record.leaves_band:
        lines += _labelled("leaves band", f"at {record.leaves_band}, counted from the output")
    for index, line in enumerate(record.cause):
        lines += _labelled("likely cause" if index == 0 else "", line, width)
    for note in record.notes:
        lines += _labelled("note", note, width)
    if record.test:
        lines += _labelled("reproduce", reproduce_command(record))
    return "\n".join([lines[0], *("  " + line for line in lines[1:])])


def measured_on(record: CheckRecord) -> str:
    """Return ``12 × GPT2Block, per sample, train mode, float32 on cpu, seeds 0-3``."""
    return ", ".join(
        (record.steps, record.frame, f"{record.mode} mode", f"{record.dtype} on {record.device}", seeds_text(record))
    )


def seeds_text(record: CheckRecord) -> str:
    """Return ``seeds 0-3``, ``seed 5`` or ``seeds 0,3,5``."""
    if record.fixed:
        return "finished module"
    return f"seed{'s' if len(record.seeds) > 1 else ''} {_ranges(record.seeds)}"


def _ranges(seeds: Sequence[int]) -> str:
    first, last = seeds[0], seeds[-1]
    if len(seeds) > 1 and tuple(seeds) == tuple(range(first, last + 1)):
        return f"{first}-{last}"
    return ",".join(map(str, seeds))


def reproduce_command(record: CheckRecord) -> str:
    """Return the command that repeats this check alone."""
    options = [] if record.fixed else [f"--trainability-seeds={_ranges(record.seeds)}"]
    if record.device != "cpu":
        options.append(f"--trainability-device={record.device}")
    return " ".join(["pytest", shlex.quote(record.test), *options])


def violation_lines(verdict: VerdictRecord, *, width: int = 78) -> list[str]:
    """Return value, bound and margin of one verdict that does not hold, and where it fails worst."""
    if verdict.elements == 0:
        return _labelled(verdict.measure, f"nothing was measured, {bound_text(verdict)}: no element to judge")
    value, error = format_with_error(verdict.value, verdict.half_width, signed=verdict.unit.startswith("nats"))
    shown = " ".join(part for part in (value, f"± {error}" if error else "", verdict.unit) if part)
    marginal = ", marginal" if verdict.marginal else ""
    lines = _labelled(verdict.measure, f"{shown}   {bound_text(verdict)}   {_margin_text(verdict)}{marginal}")
    if verdict.where:
        count = f"{verdict.violations} of {verdict.elements}" if verdict.elements > 1 else ""
        worst = ", ".join(f"{name} {format_number(value, 2)}" for name, value in _fitting(verdict.worst, width - 34))
        lines += _labelled("", f"{count} outside, worst {worst}" if count else verdict.where)
    return lines


def _fitting(worst: Sequence[tuple[str, float]], width: int) -> Sequence[tuple[str, float]]:
    """Return as many of the worst elements as fit, one at least."""
    count, used = 0, 0
    for name, _ in worst:
        used += len(name) + 12
        if count and used > width:
            break
        count += 1
    return worst[:count]


def bound_text(verdict: VerdictRecord) -> str:
    """Return ``must lie in [-5, 5]``, ``must be ≥ 1e-06`` or ``must be ≤ 0.9``."""
    if verdict.low is None:
        return f"must be ≤ {format_number(verdict.high or 0.0)}"
    if verdict.high is None:
        return f"must be ≥ {format_number(verdict.low)}"
    return f"must lie in [{format_number(verdict.low)}, {format_number(verdict.high)}]"


def _margin_text(verdict: VerdictRecord) -> str:
    if math.isnan(verdict.value):
        return "not a number"
    end = verdict.low if verdict.low is not None and verdict.value < verdict.low else verdict.high
    if end is None or math.isinf(verdict.value):
        return "outside"
    if not verdict.unit.startswith("nats") and verdict.value > 0 and end > 0:
        ratio = max(verdict.value, end) / min(verdict.value, end)
        return f"{format_number(ratio, 2)} times too {'small' if verdict.value < end else 'large'}"
    return f"{format_number(abs(verdict.value - end), 2)} outside"


def _depth_line(record: CheckRecord) -> str:
    """Draw how the gradient's size changes on its way from the last step to the first."""
    if not record.growth:
        return ""
    first, last = record.step_names[0], record.step_names[-1]
    return f"{last} {sparkline(accumulated(record.growth))} {first}"


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


def _labelled(label: str, text: str, width: int = 0) -> list[str]:
    """Put a label before a text, wrapped under itself where a width is given."""
    if not text:
        return []
    lines = [""]
    for word in text.split(" "):
        if width and lines[-1] and len(lines[-1]) + len(word) + 1 > width - 18:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return [f"{label if i == 0 else '':<14}{line}" for i, line in enumerate(lines)]


_ASCII = str.maketrans(
    {"±": "+-", "≥": ">=", "≤": "<=", "×": "x", "−": "-", "–": "-", "✔": "+", "✘": "x", "·": "|", "…": "..."}
    | dict(zip(BARS, "_.-~=+*#"))
)


def to_ascii(text: str) -> str:
    """Replace every sign that a plain terminal cannot show."""
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")
