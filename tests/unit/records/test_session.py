"""Statuses of checks, and their numbers in a session."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_trainability.records.reports import BaselineRecord, CheckRecord, VerdictRecord
from pytest_trainability.records.session import CheckOutcome, Outcome, Status, counts, status

Make = Callable[..., VerdictRecord]


@pytest.mark.parametrize(
    ("outcome", "verdict", "expected"),
    [
        ("passed", {"holds": True, "marginal": False}, "held"),
        ("passed", {"holds": True, "marginal": True}, "marginal"),
        ("passed", {"holds": False}, "failed"),
        ("failed", {"holds": True}, "failed"),
        ("xfailed", {"holds": False}, "expected failure"),
        ("passed", None, "nothing asserted"),
        ("failed", None, "failed"),
    ],
)
def test_the_status_of_a_check(
    make_record: Callable[..., CheckRecord],
    make_verdict: Make,
    outcome: Outcome,
    verdict: dict[str, bool] | None,
    expected: Status,
) -> None:
    verdicts = () if verdict is None else (make_verdict(**verdict),)
    assert status(make_record(*verdicts), outcome) == expected


def test_a_baseline_or_an_assertion_of_the_test_asserts_something(make_record: Callable[..., CheckRecord]) -> None:
    assert status(make_record(baseline=BaselineRecord("same", "a.json", "a")), "passed") == "held"
    assert status(make_record(asserted=True), "passed") == "held"


def test_statuses_that_no_check_has_are_counted_as_zero(make_record: Callable[..., CheckRecord]) -> None:
    found = counts([CheckOutcome(make_record(), "passed"), CheckOutcome(make_record(), "failed")])
    assert found == {"held": 0, "marginal": 0, "nothing asserted": 1, "failed": 1, "expected failure": 0}
