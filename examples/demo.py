"""Run the examples. The exit status is 0 if exactly those fail that are broken on purpose."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


class Expectation:
    """Compares the failing tests with the tests that are marked as broken on purpose."""

    def __init__(self) -> None:
        self.expected: set[str] = set()
        self.failed: set[str] = set()
        self.passed: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note the tests that must fail."""
        self.expected = {item.nodeid for item in items if item.get_closest_marker("broken_on_purpose")}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the tests that fail, and those that pass."""
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed.add(report.nodeid)


def main() -> int:
    """Run the examples with the arguments of the command line."""
    expectation = Expectation()
    status = pytest.main([str(Path(__file__).parent), "--tb=no", *sys.argv[1:]], plugins=[expectation])
    if status not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        return int(status)
    for name in sorted(expectation.failed - expectation.expected):
        print(f"{name} failed, but must pass")
    for name in sorted(expectation.expected - expectation.failed):
        print(f"{name} passed, but must fail")
    if expectation.failed != expectation.expected or not expectation.passed:
        return 1
    print(
        f"As expected: {len(expectation.passed)} examples hold, and the {len(expectation.failed)} broken ones are red."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
