"""The section in the terminal: one line per check, and the details of failures that pytest has not shown."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..records.names import folded
from ..records.reports import BaselineRecord, BaselineSummary, CheckRecord, VerdictRecord
from ..records.session import CheckOutcome, ErrorRecord, SessionRecord, Status
from ..records.text import visible
from .changes import change_lines
from .explain import bound_text, depth_line, explain_lines, failure_lines, marginal_text, seeds_text, stopped_early
from .layout import cut_left, cut_right, labelled, shown_in

__all__ = ["Line", "baselines", "section"]

NARROWEST = 60
"""Smallest width of the layout, in columns."""


Color: TypeAlias = Literal["", "red", "green", "yellow"]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the section and its color."""

    text: str
    color: Color = ""


SIGNS: dict[Status, tuple[str, Color]] = {
    "held": ("✔", "green"),
    "marginal": ("✔", "yellow"),
    "nothing asserted": ("○", "yellow"),
    "failed": ("✘", "red"),
    "expected failure": ("x", "yellow"),
    "not measured": ("!", "red"),
}


def section(
    session: SessionRecord,
    *,
    width: int = 80,
    verbosity: int = 0,
    encoding: str | None = "utf-8",
    explained: Collection[tuple[str, str]] = (),
    errors_explained: bool = False,
) -> list[Line]:
    """Return the lines of the section, without newlines; none for a session without checks and errors.

    Args:
        session: The checks with the outcomes of their tests, and what could not be measured.
        width: Columns of the terminal. Only commands to copy exceed it.
        verbosity: Below 0, only failures and updated baselines are listed. Above 0, every bound, the values of the default
            measures and the growth along the chain are shown as well.
        encoding: Encoding of the terminal. ASCII is used if it is None or cannot represent a line.
        explained: Test and name of each failed check whose explanation pytest has printed, so that it is not repeated.
        errors_explained: Whether pytest has printed the errors.
    """
    width = max(width, NARROWEST)
    listed = [
        check for check in session.checks if verbosity >= 0 or check.status == "failed" or _is_updated(check.record)
    ]
    lines = list(_groups(listed, width, verbosity)) if listed else []
    errors = [error for error in session.errors if verbosity >= 0 or not error.expected]
    lines += _errors(errors, width, explained=errors_explained)
    for check in session.checks:
        if check.status == "failed" and (check.record.test, check.record.name) not in explained:
            lines += _details(check, width, verbosity, traceback=errors_explained)
    if session.checks or session.errors:
        lines.append(_total(session))
    return _encoded(lines, encoding)


def _groups(checks: Sequence[CheckOutcome], width: int, verbosity: int) -> Iterator[Line]:
    """Yield the rows of all checks, grouped by file and conditions under a heading."""
    groups: dict[tuple[str, tuple[str, ...]], list[CheckOutcome]] = {}
    for check in checks:
        key = check.record.test.partition("::")[0], _conditions(check.record)
        groups.setdefault(key, []).append(check)
    columns = _widths([check.record for check in checks], width)
    for (file, conditions), members in sorted(groups.items(), key=lambda group: group[0][0]):
        if any(stopped_early(check.record) for check in members):
            conditions = tuple(f"{c} at most" if c.startswith(("seed", "finished")) else c for c in conditions)
        yield from _heading(file, conditions, width)
        for check in members:
            yield from _row(check, columns, width, verbosity)


def _heading(file: str, conditions: Sequence[str], width: int) -> list[Line]:
    """Return the lines of a heading: file and conditions, broken between two conditions where they do not fit."""
    lines = [cut_left(visible(file), width)]
    for condition in map(visible, conditions):
        if len(lines[-1]) + len(condition) + 3 <= width:
            lines[-1] += f" · {condition}"
        else:
            lines.append(cut_right(f"  {condition}", width))
    return [Line(line) for line in lines]


def _errors(errors: Sequence[ErrorRecord], width: int, *, explained: bool) -> Iterator[Line]:
    """Yield a row for each measurement that could not be made, under the file of its test.

    Args:
        errors: The errors.
        width: Number of columns.
        explained: Whether pytest has printed the errors: then a row holds the beginning of the message, else all of it.
    """
    by_file: dict[str, list[ErrorRecord]] = {}
    for error in errors:
        by_file.setdefault(error.test.partition("::")[0], []).append(error)
    for file, members in by_file.items():
        yield from _heading(file, ["could not be measured"], width)
        for error in members:
            test = error.test.partition("::")[2]
            sign, color = SIGNS[error.status]
            row = f"  {sign} {cut_left(visible(test), width // 2)}  "
            if explained or error.expected:
                yield Line(cut_right(row + visible(f"{error.error}: {error.message}"), width), color)
            else:
                yield Line(row.rstrip(), color)
                yield from (Line("      " + line) for line in labelled(error.error, error.message, width - 6))


def _encoded(lines: Iterable[Line], encoding: str | None) -> list[Line]:
    return [Line(shown_in(line.text, encoding), line.color) for line in lines]


def baselines(summary: BaselineSummary, *, width: int = 80, encoding: str | None = "utf-8") -> list[Line]:
    """Return the lines on the changes that a session made to the baselines, and on problems that it found.

    Args:
        summary: Changes and problems.
        width: Columns of the terminal.
        encoding: Encoding of the terminal. ASCII is used if it is None or cannot represent a line.
    """
    width = max(width, NARROWEST)
    lines = (Line(line, color) for text, color in _messages(summary) for line in labelled("baselines", text, width))
    return _encoded(lines, encoding)


def _messages(summary: BaselineSummary) -> Iterator[tuple[str, Color]]:
    for file, recorded, updated in summary.written:
        counts = [f"{count} {what}" for count, what in ((recorded, "recorded"), (updated, "updated")) if count]
        yield f"{' and '.join(counts)} in {file}: commit it", "green"
    for test in summary.withheld:
        yield f"not recorded, because the test did not pass: {test}", "yellow"
    yield from _unused(summary)
    if summary.stale:
        yield (
            f"recorded with torch {', '.join(summary.stale)}: --trainability-baseline=update records them again",
            "yellow",
        )
    if summary.partial:
        yield f"nothing pruned: not every test has passed ({', '.join(summary.partial)})", "red"
    for error in summary.errors:
        yield error, "red"


def _unused(summary: BaselineSummary) -> Iterator[tuple[str, Color]]:
    """Yield messages on entries and files that no test uses. They are removed, or the option that removes them is named."""
    removed = "removed: " if summary.pruned else ""
    color: Color = "" if summary.pruned else "yellow"
    for file, entry, renamed in summary.unused:
        hint = f"; it has the same numbers as {renamed}: renamed?" if renamed else ""
        yield f"{removed}no test uses {entry} in {file}{hint}", color
    for file in summary.forgotten:
        yield f"{removed}no test module for {file}", color
    if (summary.unused or summary.forgotten) and not summary.pruned and not summary.partial:
        yield "--trainability-prune removes them", ""


def _is_updated(record: CheckRecord) -> bool:
    return record.baseline is not None and record.baseline.status == "updated"


def _conditions(record: CheckRecord) -> tuple[str, ...]:
    if not record.along:
        return "not run", seeds_text(record)
    gradient = [f"gradient of {record.gradient_of}"] if record.gradient_of else []
    return (record.device, record.dtype, record.mode, record.frame, seeds_text(record), *gradient)


def _widths(records: Sequence[CheckRecord], width: int) -> tuple[int, int, int]:
    """Return the widths of the columns test, steps and log gain. They are the same in all groups."""
    gain = max(len(_gain(record)) for record in records)
    left = width - gain - 8
    steps = min(max(len(record.steps) for record in records), max(2 * left // 5, 12))
    return min(max(len(_title(record)) for record in records), left - steps), steps, gain


def _row(check: CheckOutcome, columns: tuple[int, int, int], width: int, verbosity: int) -> Iterator[Line]:
    """Yield a row with sign, test, steps and log gain, and the remarks on the check."""
    record, (sign, color) = check.record, SIGNS[check.status]
    cells = cut_left(_title(record), columns[0]), cut_right(visible(record.steps), columns[1]), _gain(record)
    test, steps, gain = (f"{cell:{align}{size}}" for cell, align, size in zip(cells, "<<>", columns))
    yield Line(f"  {sign} {test}  {steps}  {gain}", color)
    remarks = list(_remarks(check, width - 6, verbosity))
    if verbosity > 0 and len(record.steps) > columns[1]:
        remarks += map(Line, labelled("steps", record.steps, width - 6))
    yield from (Line("      " + remark.text, remark.color) for remark in remarks)


def _remarks(check: CheckOutcome, width: int, verbosity: int) -> Iterator[Line]:
    """Yield the remarks below a row. What the explanation of a failure says is not repeated."""
    record, failed = check.record, check.status == "failed"
    for verdict in record.verdicts:
        if verbosity > 0 or (verdict.holds and verdict.marginal):
            yield from _bound(verdict, width, signed=verbosity > 0)
    if record.baseline is not None:
        yield from map(Line, _baseline(record.baseline, width, verbosity))
    for caution in () if failed else record.cautions:
        yield from (Line(line, "yellow") for line in labelled("note", caution, width))
    if verbosity > 0:
        yield from map(Line, _verbose(record, width, explained=failed))


def _bound(verdict: VerdictRecord, width: int, *, signed: bool) -> Iterator[Line]:
    """Yield the lines on one bound: value, bound and worst element, behind a sign if bounds that fail are listed, too."""
    if verdict.elements == 0:
        text = f"nothing was measured, {bound_text(verdict)}"
    else:
        where = f", worst {verdict.where}" if verdict.where and signed else ""
        text = f"{verdict.value_text}, {bound_text(verdict)}{where}{marginal_text(verdict) if verdict.holds else ''}"
    sign, color = SIGNS["failed" if not verdict.holds else "marginal" if verdict.marginal else "held"]
    label = f"{sign} {verdict.measure}" if signed else verdict.measure
    yield from (Line(line, "" if color == "green" else color) for line in labelled(label, text, width))


def _baseline(baseline: BaselineRecord, width: int, verbosity: int) -> Iterable[str]:
    """Yield lines on a baseline that was recorded or updated, and with ``-v`` on one that is unchanged."""
    if baseline.status == "recorded":
        yield from labelled("baseline", f"recorded: {', '.join(baseline.measures)}", width)
    elif baseline.status == "updated":
        yield from labelled("baseline", "updated" if baseline.changes else "recorded again, nothing has changed", width)
        yield from change_lines(baseline.changes, width, full=verbosity > 0)
    elif baseline.status == "same" and verbosity > 0:
        recorded = f", recorded with {baseline.recorded_with}" if baseline.recorded_with else ""
        yield from labelled("baseline", f"unchanged{recorded}", width)


def _title(record: CheckRecord) -> str:
    """Return the name of the test within its file, and the name of the measurement within the test."""
    test = record.test.partition("::")[2] or record.test
    return visible(f"{test} ({record.name})" if record.name else test)


def _gain(record: CheckRecord) -> str:
    if not record.along:
        return "contract holds" if record.holds else "contract broken"
    return f"log gain {record.log_gain_text}"


def _verbose(record: CheckRecord, width: int, *, explained: bool) -> Iterator[str]:
    """Yield what is shown with ``-v`` only.

    Args:
        record: The record.
        width: Number of columns.
        explained: Whether the explanation of a failure shows the growth along the chain and the notes.
    """
    for measure, value in record.readings:
        yield from labelled(measure, value, width)
    if not explained:
        yield from labelled(f"along {record.along}", depth_line(record, width - 18))
        for note in record.notes:
            yield from labelled("note", note, width)
    for title, *names in record.lists:
        yield from labelled("", f"{title}: {', '.join(folded(names))}", width)
    if stopped_early(record):
        yield from labelled("settled", f"after {len(record.seeds)} of {len(record.seeds_requested)} seeds", width)
    yield from labelled("took", f"{record.seconds:.1f} s")


def _details(check: CheckOutcome, width: int, verbosity: int, *, traceback: bool) -> Iterable[Line]:
    """Yield the explanation of a failed check, under the name of its test.

    Args:
        check: The check.
        width: Number of columns.
        verbosity: Above 0, all elements are listed.
        traceback: Whether pytest has printed what the test failed by.
    """
    record = check.record
    yield Line("")
    yield Line(cut_left(f"{record.test} ({record.name})" if record.name else record.test, width), "red")
    failure = [] if traceback else failure_lines(check, width - 2)
    for text in (*failure, *explain_lines(record, width=width - 2, full=verbosity > 0)):
        yield Line("  " + text)


def _total(session: SessionRecord) -> Line:
    found = session.counts
    seconds = math.fsum(check.record.seconds for check in session.checks)
    further = (
        (found["failed"], "failed"),
        (idle := found["nothing asserted"], "assert nothing" if idle > 1 else "asserts nothing"),
        (found["expected failure"], "expected to fail"),
        (found["not measured"], "could not be measured"),
    )
    holding = f"{found['held'] + found['marginal']} of {len(session.checks) + len(session.errors)} hold"
    parts = [holding, *(f"{count} {what}" for count, what in further if count), f"measured in {seconds:.1f} s"]
    return Line(", ".join(parts), "red" if session.is_bad else "yellow" if found["nothing asserted"] else "green")
