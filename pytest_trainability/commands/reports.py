"""Commands on reports that ``--trainability-json`` has written: show, html, merge, compare, comment."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import DIFFERS, Subparsers, declared, emit, say, write
from .baselines import UNCHANGED, add_root, compare_folder
from .tolerances import add_tolerances, tolerances_of

if TYPE_CHECKING:
    from ..records.session import SessionChange, SessionRecord

__all__ = ["comment", "compare", "declare", "html", "merge", "show"]

LARGEST_WIDTH = 120
"""Largest number of columns of a printed report."""


def declare(commands: Subparsers) -> None:
    """Declare the commands."""
    text = "Print the section of the terminal again. Exit status 1 if something has failed or could not be measured."
    command = declared(commands, "show", text, "show report.json -v", show)
    _add_reports(command)
    command.add_argument(
        "-v", "--verbose", action="count", default=0, help="Every bound and the growth along the chain."
    )
    command.add_argument("-q", "--quiet", action="count", default=0, help="Failures only.")

    text = "Write a report, or several ones together, as one page."
    command = declared(commands, "html", text, "html report.json -o report.html", html)
    _add_reports(command)
    _add_output(command, "The page (default: the name of the first report with the suffix .html).")

    text = "Merge the reports of several jobs. A later run of a test replaces an earlier one in the same environment."
    command = declared(commands, "merge", text, "merge shard-1.json shard-2.json -o report.json", merge)
    _add_reports(command)
    _add_output(command, "The merged report.", required=True)

    text = (
        "Print what differs between two reports, or between a folder of measured numbers and the committed baselines, "
        "old → new. Exit status 1 if anything does."
    )
    command = declared(commands, "compare", text, "compare main.json branch.json", compare)
    help_ = "The old report; or, alone, a folder written by --trainability-measured."
    command.add_argument("old", type=Path, metavar="OLD", help=help_)
    command.add_argument("new", type=Path, nargs="?", default=None, metavar="NEW", help="The new report.")
    add_root(command)
    add_tolerances(command)

    text = "Print the body of a comment on a pull request: only what has changed. It is empty if nothing has."
    command = declared(commands, "comment", text, "comment main.json branch.json -o comment.md", comment)
    help_ = (
        "The report of the target branch, then that of this branch; or this one alone, for changes of its baselines."
    )
    command.add_argument("reports", type=Path, nargs="+", metavar="REPORT", help=help_)
    _add_output(command, "The file (default: the terminal).")
    add_tolerances(command)


def _add_reports(command: argparse.ArgumentParser) -> None:
    help_ = "A file written by --trainability-json or merge. Several ones are merged."
    command.add_argument("reports", type=Path, nargs="+", metavar="REPORT", help=help_)


def _add_output(command: argparse.ArgumentParser, text: str, *, required: bool = False) -> None:
    command.add_argument("-o", "--output", type=Path, default=None, required=required, metavar="FILE", help=text)


def _read(paths: list[Path]) -> dict[str, Any]:
    """Return one report of one or several files."""
    from ..report.document import read_document
    from ..report.merging import merged

    found = [read_document(path) for path in paths]
    return found[0] if len(found) == 1 else merged(found)


def _output(options: argparse.Namespace) -> Path:
    """Return the file to write.

    Raises:
        UsageError: It is one of the reports that are read.
    """
    from ..errors import UsageError

    path: Path = options.output or options.reports[0].with_suffix(".html")
    if path.resolve() in {report.resolve() for report in options.reports}:
        msg = f"-o must name another file than the reports. {path} is one of them."
        raise UsageError(msg)
    return path


def show(options: argparse.Namespace) -> int:
    """Print a report as the terminal shows its session."""
    session = _session(_read(options.reports))
    for line in section_lines(session, options.verbose - options.quiet):
        say(line)
    return DIFFERS if session.is_bad else 0


def _session(found: dict[str, Any]) -> SessionRecord:
    from ..report.session import session_of

    return session_of(found)


@contextmanager
def _consistent() -> Iterator[None]:
    """Turn the error of a report whose values contradict each other, which a schema cannot see, into one line.

    Raises:
        ReportError: The values contradict each other.
        TrainabilityError: It was raised inside, and passes unchanged.
    """
    from ..errors import ReportError, TrainabilityError

    try:
        yield
    except TrainabilityError:
        raise
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        msg = f"the report cannot be used: its values contradict each other. {type(error).__name__}: {error}."
        raise ReportError(msg) from None


def section_lines(session: SessionRecord, verbosity: int) -> list[str]:
    """Return the lines that the terminal section of a session has, as wide as the terminal."""
    from ..report.terminal import baselines, section

    layout: dict[str, Any] = {
        "width": min(shutil.get_terminal_size().columns, LARGEST_WIDTH),
        "encoding": getattr(sys.stdout, "encoding", None),
    }
    with _consistent():
        lines = section(session, verbosity=verbosity, **layout)
        lines += [] if session.baselines is None else baselines(session.baselines, **layout)
    return [line.text for line in lines] or ["nothing was measured"]


def html(options: argparse.Namespace) -> int:
    """Write a report as a page."""
    from ..report.formats import html_text

    path = _output(options)
    found = _read(options.reports)
    with _consistent():
        text = html_text(found)
    write(path, text)
    say(f"{path} written")
    return 0


def merge(options: argparse.Namespace) -> int:
    """Write one report of several."""
    from ..report.document import read_document, rendered
    from ..report.merging import merged

    path = _output(options)
    write(path, rendered(merged([read_document(report) for report in options.reports])))
    say(f"{path} written")
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print what differs between two reports, or between measured numbers and the committed baselines."""
    if options.new is None:
        if options.old.is_file():
            from ..errors import UsageError

            msg = (
                f"{options.old} must be followed by a second report, or be a folder written by --trainability-measured."
            )
            raise UsageError(msg)
        return compare_folder(argparse.Namespace(**{**vars(options), "measured": options.old}))
    old, new = (_session(_read([path])) for path in (options.old, options.new))
    changes = _changes(old, new, options)
    with _consistent():
        for change in changes:
            _print(change)
    if not changes:
        say(UNCHANGED)
    return DIFFERS if changes else 0


def _changes(old: SessionRecord, new: SessionRecord, options: argparse.Namespace) -> tuple[SessionChange, ...]:
    """Return what differs between two sessions."""
    from ..checks.session_changes import session_changes

    tolerances = tolerances_of(options)
    with _consistent():
        return session_changes(old, new, tolerances)


def _print(change: SessionChange) -> None:
    from ..report.changes import change_lines
    from ..report.comment import change_text

    name = f" ({change.name})" if change.name else ""
    status = change_text(change) if change.old else f"new: {change.new}"
    say(f"{change.test}{name}: {status}")
    for line in change_lines(change.changes, shutil.get_terminal_size().columns - 2):
        say(f"  {line}")
    if change.error is not None:
        say(f"  {change.error.error}: {change.error.message}")


def comment(options: argparse.Namespace) -> int:
    """Print or write the body of a comment on a pull request.

    Returns:
        Exit status 0.

    Raises:
        UsageError: There are more than two reports.
    """
    from ..errors import UsageError
    from ..report.comment import baseline_changes, comment_text

    if len(options.reports) > 2:
        msg = f"comment must get one report or two. Got {len(options.reports)}. Merge the reports of one branch first."
        raise UsageError(msg)
    new = _session(_read(options.reports[-1:]))
    old = _session(_read(options.reports[:1])) if len(options.reports) == 2 else None
    changes = baseline_changes(new) if old is None else _changes(old, new, options)
    with _consistent():
        text = comment_text(new, changes, against="the baselines" if old is None else "the target branch")
    if options.output is None:
        emit(text)
    else:
        write(_output(options), text)
    return 0
