"""The file of suggestions that ``--trainability-cure=patch`` writes. Source code is never changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ..records.reports import CheckRecord

__all__ = ["FILE", "CureWriter"]

FILE = "trainability-cures.md"


class CureWriter:
    """Collects the cures of failed checks from the test reports, and writes them at the end of the session."""

    def __init__(self, config: pytest.Config) -> None:
        self._path = config.rootpath / FILE
        self._found: dict[str, list[CheckRecord]] = {}
        self._error = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Store the checks of a test that have cures. A test that runs again replaces them."""
        from ..records.reports import CheckRecord

        if report.when == "setup":
            self._found.pop(report.nodeid, None)
        records = [CheckRecord.from_plain(plain) for plain in getattr(report, "trainability", ())]
        cured = [record for record in records if record.cures]
        if cured:
            self._found[report.nodeid] = cured

    def pytest_sessionfinish(self) -> None:
        """Write the file, or remove that of an earlier session if there is nothing to suggest."""
        from ..checks.atomic_files import replace_file
        from ..report.cures import cures_page

        try:
            replace_file(self._path, cures_page([record for records in self._found.values() for record in records]))
        except OSError as error:
            self._error = f"{FILE} could not be written: {error.strerror or error}"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name the file, or say why there is none."""
        if self._error:
            terminalreporter.write_line(self._error, red=True)
        elif self._found:
            count = sum(len(record.cures) for records in self._found.values() for record in records)
            terminalreporter.write_line(f"{count} suggestions written to {FILE}")
