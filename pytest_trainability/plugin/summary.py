"""The terminal section: the records of all tests, measured in this process or in xdist workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .options import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ..records.reports import CheckRecord
    from ..records.session import CheckOutcome, Outcome, SessionRecord
    from .baseline_writer import BaselineWriter

__all__ = ["SUMMARY", "Summary"]

LONGEST_MESSAGE = 300
"""Number of characters to which the message of a failure is shortened."""


class Summary:
    """Collects the records of all tests from their reports, and prints them. A test that runs again replaces its records."""

    def __init__(self, config: pytest.Config, writer: BaselineWriter) -> None:
        self._required = config.stash[SETTINGS].require
        self._collect_only = config.option.collectonly
        self._writer = writer
        self._found: dict[str, tuple[list[CheckRecord], Outcome]] = {}
        self._errors: dict[str, dict[str, Any]] = {}
        """Error by test, of tests that could not measure."""
        self._explained: dict[str, list[tuple[str, str]]] = {}
        """Test and name of each measurement whose failure is explained in the traceback of a report."""
        self._measured: dict[str, int] = {}
        """Number of models by test, for the required number."""
        self._excused: set[str] = set()
        """Tests that skip or are expected to fail."""
        self._failures: dict[str, str] = {}
        """First line of pytest's message by test that failed."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Store the records of a test's report; discard those of an earlier attempt."""
        if report.when == "setup":
            for known in (self._found, self._errors, self._measured, self._explained, self._failures):
                known.pop(report.nodeid, None)
            self._excused.discard(report.nodeid)
        if report.failed:
            self._failures.setdefault(report.nodeid, _message(report))
        expected = hasattr(report, "wasxfail")
        xfailed = report.skipped and expected
        if report.skipped or expected:
            self._excused.add(report.nodeid)
        for test, name in getattr(report, "trainability_explained", ()):
            self._explained.setdefault(report.nodeid, []).append((test, name))
        if (report.failed or xfailed) and hasattr(report, "trainability_error"):
            self._errors[report.nodeid] = {**report.trainability_error, "expected": xfailed}
        sent = getattr(report, "trainability", ())
        if sent:
            from ..records.reports import CheckRecord

            records = [CheckRecord.from_plain(plain) for plain in sent]
            before: Outcome = self._found.get(report.nodeid, ((), "passed"))[1]
            outcome: Outcome = "failed" if report.failed else "xfailed" if xfailed else before
            self._found[report.nodeid] = records, outcome
            # A model counts if its test could have failed the session: not one that skips or is expected to fail, and not one
            # of which the test has judged nothing.
            asserting = sum(record.asserts for record in records)
            self._measured[report.nodeid] = 0 if report.nodeid in self._excused else asserting

    def keep(self, item: pytest.Item, records: Iterable[CheckRecord]) -> None:
        """Store the records of a test that Ctrl-C has ended. It has no report."""
        if found := list(records):
            self._found[item.nodeid] = found, "passed"

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a session that has measured fewer models than required."""
        if self._missing() and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _missing(self) -> bool:
        return sum(self._measured.values()) < self._required and not self._collect_only

    def session_record(self) -> SessionRecord:
        """Return everything that reports show. Baselines are known once the writer of baselines has finished the session."""
        from ..records.session import ErrorRecord, SessionRecord

        checks = [
            check
            for test, (records, outcome) in self._found.items()
            for check in _blamed(records, outcome, self._failures.get(test, ""), is_error=test in self._errors)
        ]
        errors = [ErrorRecord(**plain) for plain in self._errors.values()]
        measured = sum(self._measured.values())
        return SessionRecord(tuple(checks), tuple(errors), self._writer.summary, self._required, measured)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print one line per check, the details of failures, and the changes to baselines, unless there is nothing to print."""
        baselines = self._writer.summary
        if (
            not self._found
            and not self._errors
            and not self._missing()
            and (baselines is None or baselines == type(baselines)())
        ):
            return
        from ..report.terminal import Line, section
        from ..report.terminal import baselines as lines_of_baselines

        writer = terminalreporter._tw
        width, encoding = writer.fullwidth, getattr(writer._file, "encoding", None)
        session = self.session_record()
        shows_tracebacks = _shows_tracebacks(terminalreporter.config)
        lines = section(
            session,
            width=width,
            verbosity=terminalreporter.verbosity,
            encoding=encoding,
            explained={check for checks in self._explained.values() for check in checks if shows_tracebacks},
            errors_explained=shows_tracebacks,
        )
        if baselines is not None:
            lines += lines_of_baselines(baselines, width=width, encoding=encoding)
        if self._missing():
            count = session.counts["nothing asserted"]
            idle = f" ({count} with nothing asserted)" if count else ""
            lines.append(
                Line(f"{session.measured} measured{idle}, --trainability-require={self._required}: too few", "red")
            )
        terminalreporter.ensure_newline()
        terminalreporter.section("trainability")
        for line in lines:
            _write(terminalreporter, line)


def _shows_tracebacks(config: pytest.Config) -> bool:
    """Return whether pytest prints whole messages of failures. With ``--tb=line`` it does since one of the versions 9."""
    hiding = {"no"} if pytest.version_tuple >= (9, 2) else {"no", "line"}
    return config.option.tbstyle not in hiding and not config.option.no_summary


SUMMARY = pytest.StashKey[Summary]()


def _blamed(
    records: Sequence[CheckRecord], outcome: Outcome, failure: str, *, is_error: bool
) -> Iterator[CheckOutcome]:
    """Yield each check of a test with its outcome, and with what the test failed by if no bound explains it.

    If some checks do not hold, or the test raised an error of this package, the failure is theirs and not the others'.
    """
    from ..records.session import CheckOutcome

    explained = is_error or any(not record.holds for record in records)
    for record in records:
        own: Outcome = "passed" if explained and record.holds else outcome
        yield CheckOutcome(record, own, failure if own == "failed" and record.holds else "")


def _message(report: pytest.TestReport) -> str:
    """Return the first line of pytest's message on a failure."""
    place = getattr(report.longrepr, "reprcrash", None)
    text = str(report.longrepr or "") if place is None else str(place.message)
    return text.strip().partition("\n")[0][:LONGEST_MESSAGE]


def _write(terminalreporter: pytest.TerminalReporter, line: Any) -> None:
    terminalreporter.write_line(line.text, **{line.color: True} if line.color else {})
