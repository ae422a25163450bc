"""``--trainability-suggest``: the marker of each test that its healthy numbers support, in a section of the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .collected import node_id
from .collection import MARKER, bounds_of, is_bound
from .fixture import MEASUREMENTS
from .gate import TABLE
from .options import SETTINGS

if TYPE_CHECKING:
    from ..measurement import Measurement
    from ..records.suggestions import TestSuggestions

__all__ = ["SuggestionWriter", "suggestions_for"]


def suggestions_for(item: pytest.Item, call: pytest.CallInfo[None]) -> list[dict[str, Any]]:
    """Return the suggestions for a test that has run, as plain data: one for each of its measurements.

    Args:
        item: The test, which still holds its measurements.
        call: The phase that has ended.
    """
    measurements = item.stash.get(MEASUREMENTS, [])
    if not (item.config.stash[SETTINGS].suggest and call.when == "call" and measurements):
        return []
    from ..records.reports import plain

    found: list[dict[str, Any]] = plain([_suggestions(item, m, passed=call.excinfo is None) for m in measurements])
    return found


def _suggestions(item: pytest.Item, measurement: Measurement, *, passed: bool) -> TestSuggestions:
    from ..records.suggestions import TestSuggestions
    from ..records.text import as_code

    own = {name: value for marker in item.own_markers if marker.name == MARKER for name, value in marker.kwargs.items()}
    elsewhere = [name for name in bounds_of(item) if name not in own]
    return TestSuggestions(
        test=node_id(item),
        model=measurement.name,
        seeds=len(measurement.seeds),
        suggestions=measurement.suggestions(elsewhere),
        settings=tuple((name, as_code(value)) for name, value in own.items() if not is_bound(name)),
        passed=passed,
        fixed=measurement.is_fixed,
        table=item.stash.get(TABLE, ""),
    )


class SuggestionWriter:
    """Collects the suggestions from the test reports, and prints them. A test that runs again replaces its own."""

    def __init__(self) -> None:
        self._found: dict[str, list[TestSuggestions]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Store the suggestions of a test's report."""
        from ..records.suggestions import TestSuggestions

        if report.when == "setup":
            self._found.pop(report.nodeid, None)
        sent = getattr(report, "trainability_suggestions", ())
        if sent:
            self._found[report.nodeid] = [TestSuggestions.from_plain(plain) for plain in sent]

    def suggestions(self) -> list[TestSuggestions]:
        """Return the suggestions of all tests, by their names."""
        return [test for _, tests in sorted(self._found.items()) for test in tests]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a marker for each test, or say that no test has measured a model."""
        from ..report.layout import shown_in
        from ..report.suggestions import suggestion_lines

        encoding = getattr(terminalreporter._tw._file, "encoding", None)
        tests = self.suggestions()
        terminalreporter.ensure_newline()
        terminalreporter.section("trainability suggestions")
        for line in suggestion_lines(tests) or ["No test has measured a model: there is nothing to suggest."]:
            terminalreporter.write_line(shown_in(line, encoding))
