"""Records of a whole session: every check with the outcome of its test, and what could not be measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from .reports import BaselineChange, BaselineSummary, CheckRecord
from .suggestions import TestSuggestions

__all__ = [
    "BAD",
    "NOT_MEASURED",
    "CheckOutcome",
    "ErrorRecord",
    "Outcome",
    "SessionChange",
    "SessionRecord",
    "Status",
    "counts",
    "source_order",
    "status",
]

Outcome = Literal["passed", "failed", "xfailed"]
"""Outcome of a test as far as a check is concerned."""
Status = Literal["held", "marginal", "nothing asserted", "failed", "expected failure", "not measured"]
"""What a report shows for a check, or for a measurement that could not be made. No report judges again."""
NOT_MEASURED: Final = "not measured"
"""Stands for the status of a measurement that could not be made."""
BAD = ("failed", NOT_MEASURED)
"""Statuses that fail a session."""


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """One check and the outcome of its test."""

    record: CheckRecord
    outcome: Outcome
    failure: str = ""
    """First line of pytest's message if the test failed although every bound of the check holds, else empty."""

    @property
    def status(self) -> Status:
        """The status that reports show."""
        return status(self.record, self.outcome)


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """A measurement that could not be made: the test raised an error of this package before there was a value to judge."""

    test: str
    """Node id of the test."""
    error: str
    """Class of the error, such as ``InapplicableError``."""
    message: str
    file: str = ""
    """Path of the test's file, relative to the root of the session."""
    line: int = 0
    """Line of the test, counted from 1; 0 if it is not known."""
    expected: bool = False
    """Whether the test was expected to fail."""

    @property
    def status(self) -> Status:
        """The status that reports show."""
        return "expected failure" if self.expected else NOT_MEASURED


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """Everything that reports of a session show."""

    checks: tuple[CheckOutcome, ...] = ()
    """In the order of the session."""
    errors: tuple[ErrorRecord, ...] = ()
    """In the order of the session. Those of tests that were expected to fail are no failures."""
    baselines: BaselineSummary | None = None
    required: int = 0
    """Number of models that the session had to measure."""
    measured: int = 0
    """Number of models that count for it."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions, platform, devices and command line."""
    created: str = ""
    """Date and time of the end of the session, such as ``2026-11-30T03:50:00+00:00``."""
    exit_status: int = 0
    """Exit status of the session."""
    suggestions: tuple[TestSuggestions, ...] = ()
    """Bounds that the numbers of the tests support, if the session was asked for them."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of checks and of errors by status, those with none included."""
        return counts([*(check.status for check in self.checks), *(error.status for error in self.errors)])

    @property
    def is_bad(self) -> bool:
        """Whether a check has failed, or could not be measured."""
        return any(self.counts[status] for status in BAD)


@dataclass(frozen=True, slots=True)
class SessionChange:
    """A check that differs between two sessions."""

    test: str
    """Node id of the test."""
    name: str
    """Name of the measurement within the test."""
    old: str
    """Status in the old session, or ``not measured``; empty if the old session has no such check."""
    new: str
    """Status in the new session in the same words; empty if the new session has no such check."""
    changes: tuple[BaselineChange, ...] = ()
    """Numbers and names that have changed."""
    check: CheckOutcome | None = None
    """The check in the new session; None if there is none, or it could not be measured."""
    error: ErrorRecord | None = None
    """Why it could not be measured in the new session."""

    @property
    def is_worse(self) -> bool:
        """Whether the check fails, or could not be measured, and did not before."""
        return self.new in BAD and self.old not in BAD

    @property
    def is_better(self) -> bool:
        """Whether the check failed, or could not be measured, and does no longer."""
        return self.old in BAD and self.new not in {*BAD, ""}


_NUMBERS = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)")


def source_order(file: str, line: int, test: str) -> tuple[str, int, list[tuple[float, int, str]]]:
    """Return a key that sorts tests as they stand in the source, and parameters by their numbers.

    >>> sorted(["test_a[10]", "test_a[9]"], key=lambda test: source_order("test_a.py", 1, test))
    ['test_a[9]', 'test_a[10]']
    >>> sorted(["test_a[0.2]", "test_a[0.05]", "test_a[1e-05]"], key=lambda test: source_order("test_a.py", 1, test))
    ['test_a[1e-05]', 'test_a[0.05]', 'test_a[0.2]']

    Args:
        file: File of the test.
        line: Its line.
        test: Its node id.
    """
    # Whole numbers that are too large for a float differ in length, or in their digits.
    parts = enumerate(_NUMBERS.split(test))
    return (
        file,
        line,
        [(float(part) if index % 2 else 0.0, len(part) if index % 2 else 0, part) for index, part in parts],
    )


def status(record: CheckRecord, outcome: Outcome) -> Status:
    """Return the status of a check in reports.

    Args:
        record: The check.
        outcome: Outcome of its test; ``"passed"`` if another check of the test explains that it failed.
    """
    if outcome == "xfailed":
        return "expected failure"
    if outcome == "failed" or not record.holds:
        return "failed"
    if not record.asserts:
        return "nothing asserted"
    return "marginal" if any(verdict.marginal for verdict in record.verdicts) else "held"


def counts(statuses: Iterable[str]) -> dict[str, int]:
    """Return how often each status occurs, those that do not occur included.

    Args:
        statuses: Statuses of checks and errors.
    """
    found: dict[str, int] = dict.fromkeys(get_args(Status), 0)
    for one in statuses:
        found[one] += 1
    return found
