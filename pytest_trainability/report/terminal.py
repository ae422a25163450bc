"""The terminal section: one line per check, details of failures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..records.reports import BaselineRecord, BaselineSummary, CheckRecord
from .explain import (
    bound_text,
    change_lines,
    cut_left,
    depth_line,
    explain_lines,
    labelled,
    marginal_text,
    seeds_text,
    shown_in,
    stopped_early,
)

__all__ = ["Line", "Outcome", "baselines", "section"]

NARROWEST = 60

Outcome: TypeAlias = Literal["passed", "failed", "xfailed"]
"""What became of a check: ``failed`` where its test did and no other check of it is to blame."""


Color: TypeAlias = Literal["", "red", "green", "yellow"]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the section and its colour."""

    text: str
    color: Color = ""


def section(
    checks: Sequence[tuple[CheckRecord, Outcome]], *, width: int = 80, verbosity: int = 0, encoding: str = "utf-8"
) -> list[Line]:
    """Lay out the section.

    Args:
        checks: Records, each with what became of it.
        width: Cotangents of the terminal; lines stay within, but for commands to copy.
        verbosity: Below 0 only failures and updated baselines are listed; above 0 every bound and the course along the chain
            is shown, too.
        encoding: Of the terminal; where it cannot show the signs, ASCII is used.

    Returns:
        Lines without newlines.
    """
    width = max(width, NARROWEST)
    groups: dict[tuple[str, str], list[tuple[CheckRecord, Outcome]]] = {}
    for record, outcome in checks:
        if verbosity >= 0 or _is_broken(record, outcome) or _is_updated(record):
            groups.setdefault((record.test.partition("::")[0], _conditions(record)), []).append((record, outcome))
    lines: list[Line] = []
    columns = _widths([record for members in groups.values() for record, _ in members], width) if groups else (0, 0, 0)
    for (file, conditions), members in sorted(groups.items(), key=lambda group: group[0][0]):
        if any(stopped_early(record) for record, _ in members):
            conditions += " at most"
        head = f"{file} · {conditions}"
        lines += (
            [Line(head)] if len(head) <= width else [Line(cut_left(file, width)), Line(_cut_right(conditions, width))]
        )
        lines += _rows(members, columns, width, verbosity)
    for record, outcome in checks:
        if _is_broken(record, outcome):
            lines += _details(record, width)
    lines.append(_total(checks))
    return [Line(shown_in(line.text, encoding), line.color) for line in lines]


def baselines(summary: BaselineSummary, *, width: int = 80, encoding: str = "utf-8") -> list[Line]:
    """Lay out what a session did to the baselines, and what it found there."""
    lines: list[Line] = []

    def tell(text: str, color: Color = "") -> None:
        lines.extend(Line(line, color) for line in labelled("baselines", text, max(width, NARROWEST)))

    for file, recorded, updated in summary.written:
        counts = [f"{count} {what}" for count, what in ((recorded, "recorded"), (updated, "updated")) if count]
        tell(f"{' and '.join(counts)} in {file}: commit it", "green")
    for test in summary.withheld:
        tell(f"not recorded, as it did not pass: {test}", "yellow")
    verb = "removed, " if summary.pruned else ""
    for file, entry, renamed in summary.unused:
        hint = f"; it has the numbers of {renamed}: renamed?" if renamed else ""
        tell(f"{verb}no test asks for {entry} in {file}{hint}", "" if summary.pruned else "yellow")
    for file in summary.forgotten:
        tell(f"{verb}no test module for {file}", "" if summary.pruned else "yellow")
    if (summary.unused or summary.forgotten) and not summary.pruned and not summary.partial:
        tell("--trainability-prune removes them")
    if summary.stale:
        tell(
            f"recorded with torch {', '.join(summary.stale)}: --trainability-baseline=update records them again",
            "yellow",
        )
    if summary.partial:
        tell(f"nothing was pruned, as not every test has told what it needs: {', '.join(summary.partial)}", "red")
    for error in summary.errors:
        tell(error, "red")
    return [Line(shown_in(line.text, encoding), line.color) for line in lines]


def _is_broken(record: CheckRecord, outcome: Outcome) -> bool:
    """A check is good when its bounds hold and its test did not fail for another reason, such as a plain assert."""
    return outcome == "failed" or (outcome == "passed" and not record.holds)


def _is_updated(record: CheckRecord) -> bool:
    return record.baseline is not None and record.baseline.status == "updated"


def _conditions(record: CheckRecord) -> str:
    return " · ".join((record.device, record.dtype, record.mode, record.frame, seeds_text(record)))


def _widths(records: Sequence[CheckRecord], width: int) -> tuple[int, int, int]:
    """Return the widths of the columns test, steps and log gain, the same in all groups."""
    gain = max(len(_gain(record)) for record in records)
    left = width - gain - 8
    steps = min(max(len(record.steps) for record in records), max(2 * left // 5, 12))
    return min(max(len(_title(record)) for record in records), left - steps), steps, gain


def _rows(
    members: Sequence[tuple[CheckRecord, Outcome]], columns: tuple[int, int, int], width: int, verbosity: int
) -> Iterable[Line]:
    """Write test, steps and log gain in columns."""
    for record, outcome in members:
        mark, color = _mark(record, outcome)
        cells = cut_left(_title(record), columns[0]), _cut_right(record.steps, columns[1]), _gain(record)
        test, steps, gain = (f"{cell:{align}{size}}" for cell, align, size in zip(cells, "<<>", columns))
        marginal = [verdict for verdict in record.verdicts if verdict.holds and verdict.marginal]
        yield Line(f"  {mark} {test}  {steps}  {gain}", "yellow" if marginal and color == "green" else color)
        for verdict in marginal:
            text = f"{verdict.value_text}, {bound_text(verdict)}{marginal_text(verdict)}"
            yield from (Line("      " + line, "yellow") for line in labelled(verdict.measure, text, width - 6))
        if record.baseline is not None:
            yield from (Line("      " + text) for text in _baseline(record.baseline, width - 6, verbosity))
        for caution in record.cautions:
            yield from (Line("      " + text, "yellow") for text in labelled("note", caution, width - 6))
        if verbosity > 0:
            yield from (Line("      " + text) for text in _verbose(record, width - 6))


def _mark(record: CheckRecord, outcome: Outcome) -> tuple[str, Color]:
    if outcome == "xfailed":
        return "x", "yellow"
    return ("✘", "red") if _is_broken(record, outcome) else ("✔", "green")


def _baseline(baseline: BaselineRecord, width: int, verbosity: int) -> Iterable[str]:
    """Say what happens to the baseline, old → new, and with ``-v`` also that it is still so."""
    if baseline.status == "recorded":
        yield from labelled("baseline", f"recorded: {', '.join(baseline.measures)}", width)
    elif baseline.status == "updated":
        yield from labelled("baseline", "updated" if baseline.changes else "recorded again, nothing has changed", width)
        yield from change_lines(baseline.changes, width)
    elif baseline.status == "same" and verbosity > 0:
        recorded = f", recorded with {baseline.recorded_with}" if baseline.recorded_with else ""
        yield from labelled("baseline", f"the same{recorded}", width)


def _title(record: CheckRecord) -> str:
    """Return the test's name within its file, and the measurement's within the test."""
    test = record.test.partition("::")[2] or record.test
    return f"{test} ({record.name})" if record.name else test


def _gain(record: CheckRecord) -> str:
    return f"log gain {record.log_gain_text}"


def _verbose(record: CheckRecord, width: int) -> Iterable[str]:
    for verdict in record.verdicts:
        where = f", worst {verdict.where}" if verdict.where else ""
        yield from labelled(verdict.measure, f"{verdict.value_text}, {bound_text(verdict)}{where}", width)
    yield from labelled(f"along {record.along}", depth_line(record, width - 18))
    for note in record.notes:
        yield from labelled("note", note, width)
    if stopped_early(record):
        yield from labelled("settled", f"after {len(record.seeds)} of {len(record.seeds_requested)} seeds", width)
    yield from labelled("took", f"{record.seconds:.1f} s")


def _details(record: CheckRecord, width: int) -> Iterable[Line]:
    """Repeat what the failed check said; a test that failed in a plain assert says it itself."""
    yield Line("")
    yield Line(cut_left(f"{record.test} ({record.name})" if record.name else record.test, width), "red")
    for text in explain_lines(record, width=width - 2):
        yield Line("  " + text)


def _total(checks: Sequence[tuple[CheckRecord, Outcome]]) -> Line:
    expected = sum(outcome == "xfailed" for _, outcome in checks)
    broken = sum(_is_broken(record, outcome) for record, outcome in checks)
    seconds = math.fsum(record.seconds for record, _ in checks)
    xfailed = f", {expected} expected not to" if expected else ""
    text = f"{len(checks) - broken - expected} of {len(checks)} hold{xfailed}, measured in {seconds:.1f} s"
    return Line(text, "red" if broken else "green")


def _cut_right(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
