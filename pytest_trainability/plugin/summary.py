"""Collecting what the tests measured, in this process or in workers, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .options import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..records.reports import CheckRecord
    from ..report.terminal import Outcome
    from .baseline_writer import BaselineWriter

__all__ = ["Summary"]


class Summary:
    """Records of all tests by test; a test that is run again begins anew."""

    def __init__(self, config: pytest.Config, keeper: BaselineWriter) -> None:
        self._required = config.stash[SETTINGS].require
        self._collect_only = config.option.collectonly
        self._keeper = keeper
        self._found: dict[str, tuple[list[dict[str, Any]], Outcome]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the records from a test's report, and forget those of an earlier attempt when another one begins."""
        if report.when == "setup":
            self._found.pop(report.nodeid, None)
        records = getattr(report, "trainability", ())
        if records:
            xfailed = report.skipped and hasattr(report, "wasxfail")
            self._found[report.nodeid] = records, "failed" if report.failed else "xfailed" if xfailed else "passed"

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a session in which fewer checks ran than are required."""
        if self._missing() and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _missing(self) -> bool:
        return sum(len(records) for records, _ in self._found.values()) < self._required and not self._collect_only

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show one line per check, details of the failures and what was done to the baselines, where there is something."""
        baselines = self._keeper.summary
        if not self._found and not self._missing() and (baselines is None or baselines == type(baselines)()):
            return
        from ..records.reports import CheckRecord
        from ..report.terminal import Line, section
        from ..report.terminal import baselines as lines_of_baselines

        checks = [
            check
            for records, outcome in self._found.values()
            for check in _blamed([CheckRecord.from_plain(plain) for plain in records], outcome)
        ]
        writer = terminalreporter._tw
        width, encoding = writer.fullwidth, getattr(writer._file, "encoding", None) or "ascii"
        lines = section(checks, width=width, verbosity=terminalreporter.verbosity, encoding=encoding) if checks else []
        if baselines is not None:
            lines += lines_of_baselines(baselines, width=width, encoding=encoding)
        if self._missing():
            lines.append(Line(f"{len(checks)} measured, --trainability-require={self._required}: too few", "red"))
        terminalreporter.ensure_newline()
        terminalreporter.section("trainability")
        for line in lines:
            _write(terminalreporter, line)


def _blamed(records: Sequence[CheckRecord], outcome: Outcome) -> list[tuple[CheckRecord, Outcome]]:
    """Say what became of each check of a test: where some do not hold, it failed for them and not for the others."""
    told = any(not record.holds for record in records)
    return [(record, "passed" if told and record.holds else outcome) for record in records]


def _write(terminalreporter: pytest.TerminalReporter, line: Any) -> None:
    terminalreporter.write_line(line.text, **{line.color: True} if line.color else {})
