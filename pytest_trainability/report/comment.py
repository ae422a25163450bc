"""The comment on a pull request: only what has changed, the verdict first."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from ..records.session import NOT_MEASURED, SessionChange, SessionRecord
from ..records.text import visible
from .changes import change_lines
from .explain import explain_lines
from .layout import cut_left, cut_right
from .markdown import MARKS, WIDTH, block, cell, code, error_lines, folded, verdict_line

__all__ = ["baseline_changes", "change_text", "comment_text"]

LARGEST = 60_000
"""Largest number of characters. GitHub takes 65,536."""
MOST_ROWS = 10
"""Number of checks that the table and the details show."""
LONGEST_CELL = 300
"""Number of characters of a cell."""
MOST_LINES = 60
"""Number of lines of the details of one check."""
LONGEST_LINE = 200
"""Number of characters of a line of them. Commands and long names exceed the width that lines are wrapped at."""
MOST_TESTS = 10
"""Number of tests that the command to accept names. For more, it is the command for all of them."""


def baseline_changes(session: SessionRecord) -> tuple[SessionChange, ...]:
    """Return the checks of a session that differ from their baselines, and the measurements that could not be made.

    Args:
        session: The session.
    """
    found = [
        SessionChange(check.record.test, check.record.name, "", check.status, baseline.changes, check)
        for check in session.checks
        if (baseline := check.record.baseline) is not None and (baseline.changes or not baseline.holds)
    ]
    errors = [
        SessionChange(error.test, "", "", error.status, error=error) for error in session.errors if not error.expected
    ]
    return (*found, *errors)


def change_text(change: SessionChange) -> str:
    """Return how the status of a check has changed: ``held → failed``, ``new: held`` or ``gone``; the status if it has not."""
    if not change.new:
        return "gone"
    if not change.old:
        return change.new
    return change.new if change.old == change.new else f"{change.old} → {change.new}"


def comment_text(session: SessionRecord, changes: Sequence[SessionChange], *, against: str) -> str:
    """Return the body of a comment.

    Args:
        session: The new session.
        changes: What has changed.
        against: What it has changed against, such as ``the target branch``.

    Returns:
        Markdown of less than 60,000 characters; an empty text if nothing has changed.
    """
    if not changes:
        return ""
    changes = sorted(changes, key=_rank)
    shown = changes[:MOST_ROWS]
    parts = [
        f"### {_verdict(changes)} against {against}",
        "",
        f"All checks: {verdict_line(session)}.",
        "",
        "| | test | what has changed |",
        "|---|---|---|",
        *(f"| {_mark(change)} | {cell(_title(change))} | {_cell_of_changes(change)} |" for change in shown),
    ]
    if len(changes) > len(shown):
        parts += ["", f"and {len(changes) - len(shown)} more"]
    parts += ["", *_accepting(changes)]
    return _within("\n".join(parts), [_details(change) for change in shown])


def _within(head: str, details: Sequence[str]) -> str:
    """Return a body with as many details as fit, and a line if some do not."""
    left_out = "\n\nMore details are in the report of the session."
    text = head[: LARGEST - 2 * len(left_out)]
    for detail in details:
        if detail and len(text) + len(detail) + len(left_out) + 3 > LARGEST:
            return f"{text}{left_out}\n"
        text += f"\n\n{detail}" if detail else ""
    return f"{text.rstrip()}\n"


def _rank(change: SessionChange) -> tuple[bool, bool, bool, bool]:
    """Return a key that sorts what is worse first, then numbers that have moved, then what is better, new or gone."""
    return not change.is_worse, change.new not in {"failed", NOT_MEASURED}, not change.changes, change.is_better


def _verdict(changes: Sequence[SessionChange]) -> str:
    """Return a sentence with the numbers of checks that are worse, changed, better, new and gone."""
    worse = sum(change.is_worse for change in changes)
    better = sum(change.is_better for change in changes)
    gone = sum(not change.new for change in changes)
    other = len(changes) - worse - better - gone
    counts = ((worse, "worse"), (other, "changed"), (better, "better"), (gone, "gone"))
    words = ", ".join(f"{count} {word}" for count, word in counts if count)
    return f"{'✘' if worse else '●'} trainability: {words}"


def _mark(change: SessionChange) -> str:
    if not change.new:
        return "gone"
    if not change.old or change.old == change.new:
        return MARKS[change.new]
    return f"{MARKS[change.old]} → {MARKS[change.new]}"


def _title(change: SessionChange) -> str:
    return cut_left(f"{change.test} ({change.name})" if change.name else change.test, LONGEST_CELL)


def _cell_of_changes(change: SessionChange) -> str:
    """Return the largest change in a cell, and how many more there are."""
    if change.changes:
        lines = [" ".join(line.split()) for line in change_lines(change.changes, 10_000)]
        more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
        return cell(lines[0][:LONGEST_CELL]) + more
    if change.error is not None:
        return cell(error_lines(change.error)[0][:LONGEST_CELL])
    if change.check is not None and (failed := [v for v in change.check.record.verdicts if not v.holds]):
        return cell(f"{failed[0].measure} {failed[0].value_text}"[:LONGEST_CELL])
    if change.check is not None and change.check.failure:
        return cell(change.check.failure[:LONGEST_CELL])
    return ""


def _details(change: SessionChange) -> str:
    """Return the folded details of a change; empty if the table shows everything."""
    lines = change_lines(change.changes, WIDTH, full=True)
    if change.error is not None:
        lines = error_lines(change.error)
    elif change.check is not None and change.check.status == "failed":
        explained = explain_lines(change.check.record, width=WIDTH)
        baseline = change.check.record.baseline
        has_changes = not lines or (baseline is not None and baseline.changes == change.changes)
        lines = explained if has_changes else [*lines, "", *explained]
    return (
        folded(_title(change), block(cut_right(visible(line), LONGEST_LINE) for line in lines[:MOST_LINES]))
        if lines
        else ""
    )


def _accepting(changes: Sequence[SessionChange]) -> Iterator[str]:
    """Yield the command that records the present numbers as the baselines, if some check differs from its baseline."""
    commands = [
        baseline.command
        for change in changes
        if change.check is not None and (baseline := change.check.record.baseline) is not None and not baseline.holds
    ]
    if not commands:
        return
    tests = list(dict.fromkeys(_test_of(command) for command in commands))
    named = " ".join(tests) if len(tests) <= MOST_TESTS and all(tests) else ""
    command = " ".join(part for part in ("pytest", named, "--trainability-baseline=update") if part)
    yield f"If the changes are intended: {code(command)}"


def _test_of(command: str) -> str:
    """Return the test that a command names, quoted for a shell; empty if it names none."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    return shlex.quote(words[1]) if len(words) > 1 else ""
