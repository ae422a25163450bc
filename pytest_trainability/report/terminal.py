"""The section in the terminal: one line per check, and the details of failures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..records.reports import BaselineRecord, BaselineSummary, CheckRecord, VerdictRecord
from ..records.session import ErrorRecord, Outcome, SessionRecord
from ..records.text import visible
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

__all__ = ["Line", "baselines", "section"]

NARROWEST = 60
"""Smallest width of the layout, in columns."""


Color: TypeAlias = Literal["", "red", "green", "yellow"]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the section and its color."""

    text: str
    color: Color = ""


def section(
    session: SessionRecord,
    *,
    width: int = 80,
    verbosity: int = 0,
    encoding: str | None = "utf-8",
) -> list[Line]:
    """Return the lines of the section, without newlines; none for a session without checks and errors.

    Args:
        session: The checks with the outcomes of their tests, and what could not be measured.
        width: Columns of the terminal. Only commands to copy exceed it.
        verbosity: Below 0, only failures and updated baselines are listed. Above 0, every bound and the growth along the chain
            are shown as well.
        encoding: Encoding of the terminal. ASCII is used if it is None or cannot represent a line.
    """
    width = max(width, NARROWEST)
    checks = [(check.record, check.outcome) for check in session.checks]
    listed = [check for check in checks if verbosity >= 0 or _is_broken(*check) or _is_updated(check[0])]
    lines = list(_groups(listed, width, verbosity)) if listed else []
    lines += _errors(session.errors, width)
    for record, outcome in checks:
        if _is_broken(record, outcome):
            lines += _details(record, width, verbosity)
    if checks or session.errors:
        lines.append(_total(checks, len(session.errors)))
    return _encoded(lines, encoding)


def _errors(errors: Sequence[ErrorRecord], width: int) -> Iterator[Line]:
    """Yield a row for each measurement that could not be made, with its error, under the file of its test."""
    files = dict.fromkeys(error.test.partition("::")[0] for error in errors)
    for file in files:
        yield from _heading(file, "could not be measured", width)
        for error in errors:
            where, _, test = error.test.partition("::")
            if where == file:
                name = cut_left(visible(test), width // 2)
                yield Line(_cut_right(visible(f"  ! {name}  {error.error}: {error.message}"), width), "red")


def _groups(checks: Sequence[tuple[CheckRecord, Outcome]], width: int, verbosity: int) -> Iterator[Line]:
    """Yield the rows of all checks, grouped by file and conditions under a heading."""
    groups: dict[tuple[str, str], list[tuple[CheckRecord, Outcome]]] = {}
    for record, outcome in checks:
        groups.setdefault((record.test.partition("::")[0], _conditions(record)), []).append((record, outcome))
    columns = _widths([record for record, _ in checks], width)
    for (file, conditions), members in sorted(groups.items(), key=lambda group: group[0][0]):
        if any(stopped_early(record) for record, _ in members):
            conditions += " at most"
        yield from _heading(file, conditions, width)
        yield from _rows(members, columns, width, verbosity)


def _heading(file: str, conditions: str, width: int) -> list[Line]:
    head = f"{file} · {conditions}"
    return [Line(head)] if len(head) <= width else [Line(cut_left(file, width)), Line(_cut_right(conditions, width))]


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


def _is_broken(record: CheckRecord, outcome: Outcome) -> bool:
    """Whether a bound or the baseline does not hold, or the test failed for another reason, such as a plain assert."""
    return outcome == "failed" or (outcome == "passed" and not record.holds)


def _is_updated(record: CheckRecord) -> bool:
    return record.baseline is not None and record.baseline.status == "updated"


def _conditions(record: CheckRecord) -> str:
    if not record.along:
        return f"not run · {seeds_text(record)}"
    return " · ".join((record.device, record.dtype, record.mode, record.frame, seeds_text(record)))


def _widths(records: Sequence[CheckRecord], width: int) -> tuple[int, int, int]:
    """Return the widths of the columns test, steps and log gain. They are the same in all groups."""
    gain = max(len(_gain(record)) for record in records)
    left = width - gain - 8
    steps = min(max(len(record.steps) for record in records), max(2 * left // 5, 12))
    return min(max(len(_title(record)) for record in records), left - steps), steps, gain


def _rows(
    members: Sequence[tuple[CheckRecord, Outcome]], columns: tuple[int, int, int], width: int, verbosity: int
) -> Iterator[Line]:
    """Yield a row with test, steps and log gain for each check, and the remarks on it."""
    for record, outcome in members:
        mark, color = _mark(record, outcome)
        cells = cut_left(_title(record), columns[0]), _cut_right(record.steps, columns[1]), _gain(record)
        test, steps, gain = (f"{cell:{align}{size}}" for cell, align, size in zip(cells, "<<>", columns))
        yield Line(f"  {mark} {test}  {steps}  {gain}", "yellow" if color == "green" and _marginal(record) else color)
        for remark in _remarks(record, width - 6, verbosity):
            yield Line("      " + remark.text, remark.color)


def _marginal(record: CheckRecord) -> list[VerdictRecord]:
    """Return the marginal verdicts that hold. Those that do not hold are marked in the details."""
    return [verdict for verdict in record.verdicts if verdict.holds and verdict.marginal]


def _remarks(record: CheckRecord, width: int, verbosity: int) -> Iterator[Line]:
    for verdict in _marginal(record):
        text = f"{verdict.value_text}, {bound_text(verdict)}{marginal_text(verdict)}"
        yield from (Line(line, "yellow") for line in labelled(verdict.measure, text, width))
    if record.baseline is not None:
        yield from map(Line, _baseline(record.baseline, width, verbosity))
    for caution in record.cautions:
        yield from (Line(line, "yellow") for line in labelled("note", caution, width))
    if verbosity > 0:
        yield from map(Line, _verbose(record, width))


def _mark(record: CheckRecord, outcome: Outcome) -> tuple[str, Color]:
    if outcome == "xfailed":
        return "x", "yellow"
    return ("✘", "red") if _is_broken(record, outcome) else ("✔", "green")


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


def _verbose(record: CheckRecord, width: int) -> Iterable[str]:
    for verdict in record.verdicts:
        where = f", worst {verdict.where}" if verdict.where else ""
        yield from labelled(verdict.measure, f"{verdict.value_text}, {bound_text(verdict)}{where}", width)
    yield from labelled(f"along {record.along}", depth_line(record, width - 18))
    for note in record.notes:
        yield from labelled("note", note, width)
    for title, *names in record.lists:
        yield from labelled("", f"{title}: {', '.join(names)}", width)
    if stopped_early(record):
        yield from labelled("settled", f"after {len(record.seeds)} of {len(record.seeds_requested)} seeds", width)
    yield from labelled("took", f"{record.seconds:.1f} s")


def _details(record: CheckRecord, width: int, verbosity: int) -> Iterable[Line]:
    """Yield the explanation of a failed check, under the name of its test."""
    yield Line("")
    yield Line(cut_left(f"{record.test} ({record.name})" if record.name else record.test, width), "red")
    for text in explain_lines(record, width=width - 2, full=verbosity > 0):
        yield Line("  " + text)


def _total(checks: Sequence[tuple[CheckRecord, Outcome]], errors: int) -> Line:
    expected = sum(outcome == "xfailed" for _, outcome in checks)
    broken = sum(_is_broken(record, outcome) for record, outcome in checks)
    seconds = math.fsum(record.seconds for record, _ in checks)
    further = [f"{expected} expected to fail"] if expected else []
    further += [f"{errors} could not be measured"] if errors else []
    holding = f"{len(checks) - broken - expected} of {len(checks) + errors} hold"
    return Line(", ".join([holding, *further, f"measured in {seconds:.1f} s"]), "red" if broken or errors else "green")


def _cut_right(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
