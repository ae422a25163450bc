"""Records of a whole session: every check with the outcome of its test, and what could not be measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .reports import BaselineSummary, CheckRecord

__all__ = ["CheckOutcome", "ErrorRecord", "Outcome", "SessionRecord", "Status", "counts", "status"]

Outcome = Literal["passed", "failed", "xfailed"]
"""Outcome of a test as far as a check is concerned."""
Status = Literal["held", "marginal", "nothing asserted", "failed", "expected failure"]
"""What a report shows for a check; :func:`status` derives it, and no report judges again."""


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """One check and the outcome of its test."""

    record: CheckRecord
    outcome: Outcome

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


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """Everything that reports of a session show."""

    checks: tuple[CheckOutcome, ...] = ()
    """In the order of the session."""
    errors: tuple[ErrorRecord, ...] = ()
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


def counts(checks: Iterable[CheckOutcome]) -> dict[Status, int]:
    """Return the number of checks by status, those with none included."""
    found: dict[Status, int] = {"held": 0, "marginal": 0, "nothing asserted": 0, "failed": 0, "expected failure": 0}
    for check in checks:
        found[check.status] += 1
    return found
