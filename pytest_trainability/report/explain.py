"""Text for a failed check: the bounds that do not hold, where and why, and how to repeat the check."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import itemgetter

from ..checks.bounds import Bound
from ..records.names import alike, and_more
from ..records.reports import CheckRecord, VerdictRecord
from ..records.session import CheckOutcome
from ..records.text import format_names, format_number, visible
from .changes import baseline_headline, baseline_lines, change_lines
from .layout import LABEL_WIDTH, SPARKLINE_WIDTH, WORST_NAMED, cut_left, labelled, shown_in, sparkline

__all__ = [
    "bound_text",
    "change_lines",
    "cut_left",
    "depth_line",
    "explain",
    "explain_baseline",
    "explain_lines",
    "failure_lines",
    "headline",
    "labelled",
    "marginal_text",
    "reproduce_command",
    "seeds_text",
    "shown_in",
    "stopped_early",
]

SEEDS_WIDTH = 12
"""Number of characters above which a list of seeds is summarized."""
MOST_SEEDS_NAMED = 10_000
"""Number of seeds above which a marginal verdict is not worth settling."""
SHORTEST_NAME = 12
"""Number of characters to which the name of an element is shortened at most."""
LARGEST_PERCENTAGE = 1.05
"""Largest ratio that is shown in percent."""


def explain(record: CheckRecord, *, width: int = 80, full: bool = False) -> str:
    """Return the message of a failed check: first the shortest true sentence, then where and why it fails, and how to repeat it.

    Args:
        record: Record with at least one verdict that does not hold.
        width: Number of columns to wrap at. Long names and commands exceed it.
        full: Whether all elements are listed, instead of the first ones.
    """
    return _message(headline(record, width=width), record, explain_lines(record, width=width - 2, full=full), width)


def explain_baseline(record: CheckRecord, *, width: int = 80, full: bool = False) -> str:
    """Return the message of a measurement that differs from its baseline or has none.

    Args:
        record: Record with a baseline that does not hold.
        width: Number of columns to wrap at. Long names and commands exceed it.
        full: Whether all elements are listed, instead of the first ones.
    """
    assert record.baseline is not None
    lines = baseline_lines(record.baseline, steps=record.step_names, width=width - 2, full=full)
    lines += [*_cause_lines(record, width - 2), *_note_lines(record, width - 2)]
    return _message(baseline_headline(record.baseline), record, lines, width)


def _message(head: str, record: CheckRecord, lines: Sequence[str], width: int) -> str:
    lines = [*labelled("measured", measured_on(record), width - 2), *lines]
    return "\n".join([visible(head), *("  " + line for line in lines)])


def headline(record: CheckRecord, *, width: int = 80) -> str:
    """Return the shortest true sentence about a check that does not hold, such as ``log_gain -23.0 must lie in [-5, 5]``.

    Args:
        record: Record with a verdict or a baseline that does not hold.
        width: Number of columns to which names are shortened.
    """
    failed = [verdict for verdict in record.verdicts if not verdict.holds]
    if not failed:
        assert record.baseline is not None, "the record does not hold"
        return baseline_headline(record.baseline)
    first, *others = failed
    named = f"; {' and '.join(v.measure for v in others)} {'fail' if len(others) > 1 else 'fails'}, too"
    more = "" if not others else named if len(_sentence(first, 0)) + len(named) <= width else f"; {len(others)} more"
    return _sentence(first, width - len(more)) + more


def _sentence(verdict: VerdictRecord, width: int) -> str:
    """Return the sentence about one verdict; the name of its worst element is shortened to the width."""
    bound = bound_text(verdict)
    if verdict.elements == 0:
        return f"{verdict.measure}: nothing was measured, {bound}"
    if verdict.finite and math.isnan(verdict.value):
        return f"{verdict.measure} is {verdict.finite}, {bound}"
    value = f"{verdict.measure} {_outside_text(verdict)}"
    room = max(width - len(value) - len(bound) - 4, SHORTEST_NAME)
    return f"{value} ({_where(verdict, room)}) {bound}" if verdict.where else f"{value} {bound}"


def _where(verdict: VerdictRecord, room: int) -> str:
    """Return the name of the worst element, shortened to its end, or as many of the first names of a list as fit."""
    if not verdict.names:
        return cut_left(verdict.where, room)
    plain = [name.partition(": ")[0] for name in verdict.names]
    texts = [verdict.where, *(format_names(verdict.names, most) for most in (2, 1)), format_names(plain, 1)]
    return next((text for text in texts if len(text) <= room), cut_left(texts[-1], room))


def _outside_text(verdict: VerdictRecord) -> str:
    """Return a value outside its bound with three digits, or with as many as show that it lies outside."""
    value = verdict.value
    if not math.isfinite(value) or value.is_integer():
        return format_number(value)
    texts = (f"{value:#.{digits}g}".rstrip(".") for digits in range(3, 18))
    return next(text for text in texts if not Bound(verdict.low, verdict.high).holds(float(text)))


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
    lines += _note_lines(record, width)
    if record.reproduce:
        lines += labelled("reproduce", reproduce_command(record))
    return lines


def failure_lines(check: CheckOutcome, width: int) -> list[str]:
    """Return labelled lines on what the test of a check failed by; none if the bounds of the check explain it.

    Args:
        check: The check.
        width: Number of columns to wrap at.
    """
    return labelled("failed by", check.failure, width)


def _note_lines(record: CheckRecord, width: int) -> list[str]:
    """Return labelled lines on the limits of the measurement.

    An output that is not finite is a caution where the test passes, and the likely cause where it fails.
    """
    cautions = (caution for caution in record.cautions if caution not in record.cause)
    return [line for note in (*cautions, *record.notes) for line in labelled("note", note, width)]


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


def measured_on(record: CheckRecord) -> str:
    """Return ``Tower: 12 × GPT2Block, per sample, train mode, float32 on cpu, seeds 0-3, settled after 2``."""
    parts = [
        f"{record.model}: {record.steps}" if record.model else record.steps,
        record.frame,
        f"{record.mode} mode",
        f"{record.dtype} on {record.device}",
        *([f"gradient of {record.gradient_of}"] if record.gradient_of else []),
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
    more = ", …" if len(groups) > WORST_NAMED else ""
    return f"{verdict.violations} of {verdict.elements} outside, worst {', '.join(texts)}{more}"


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


def accumulated(growth: Sequence[float]) -> list[float]:
    """Return the log gain from the last state to each state before it, in nats; it starts with 0 at the last state."""
    total, found = 0.0, [0.0]
    for rate in reversed(growth):
        total += rate
        found.append(total)
    return found
