"""Collecting what the tests measured, in this process or in workers, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..records import CheckRecord

__all__ = ["SUMMARY", "Summary"]


class Summary:
    """Records of all tests by test and measurement; a test that is run again replaces its own."""

    def __init__(self, config: pytest.Config) -> None:
        self._found: dict[tuple[str, str], tuple[dict[str, Any], bool]] = {}
        if not hasattr(config, "workerinput"):
            config.pluginmanager.register(self, "trainability-summary")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the records from a test's report."""
        for plain in getattr(report, "trainability", ()):
            self._found[report.nodeid, plain["name"]] = plain, not report.failed

    def write(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the section, where there is something to tell."""
        if not self._found:
            return
        from ..records import CheckRecord
        from ..report.terminal import section

        checks: list[tuple[CheckRecord, bool]] = [
            (CheckRecord.from_plain(plain), passed) for plain, passed in self._found.values()
        ]
        writer = terminalreporter._tw
        lines = section(
            checks,
            width=writer.fullwidth,
            verbosity=terminalreporter.verbosity,
            encoding=getattr(writer._file, "encoding", None) or "ascii",
        )
        terminalreporter.ensure_newline()
        terminalreporter.section("trainability")
        for line in lines:
            _write(terminalreporter, line)


def _write(terminalreporter: pytest.TerminalReporter, line: Any) -> None:
    terminalreporter.write_line(line.text, **{line.color: True} if line.color else {})


SUMMARY = pytest.StashKey[Summary]()
