"""Statuses of checks, and their numbers in a session."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_trainability.records.reports import BaselineRecord, CheckRecord, VerdictRecord
from pytest_trainability.records.session import (
    CheckOutcome,
    ErrorRecord,
    Outcome,
    SessionRecord,
    Status,
    counts,
    source_order,
    status,
)

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


@pytest.mark.parametrize(
    "names",
    [
        ["a[9]", "a[10]"],
        ["a[1e-05]", "a[0.0001]", "a[0.05]", "a[0.2]", "a[1.0]", "a[3]"],
        ["a[2-0.5]", "a[10-0.25]", "a[10-0.5]"],
        ["a[9" + "0" * 400 + "]", "a[1" + "0" * 401 + "]"],
        ["a", "b1", "b2x", "b3"],
    ],
)
def test_parameters_are_in_the_order_of_their_numbers(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(backwards, key=lambda name: source_order("test_a.py", 1, name)) == names


def test_statuses_that_nothing_has_are_counted_as_zero() -> None:
    none = {"held": 0, "marginal": 0, "nothing asserted": 0, "failed": 0, "expected failure": 0, "not measured": 0}
    assert counts([]) == none
    assert counts(["failed", "nothing asserted", "failed"]) == {**none, "failed": 2, "nothing asserted": 1}


def test_a_session_is_bad_if_a_check_failed_or_an_unexpected_error_occurred(
    make_record: Callable[..., CheckRecord],
) -> None:
    held, failed = CheckOutcome(make_record(asserted=True), "passed"), CheckOutcome(make_record(), "failed")
    error, expected = (ErrorRecord("t", "ModelError", "no", expected=each) for each in (False, True))
    assert [SessionRecord(*items).is_bad for items in (((held,), (expected,)), ((failed,),), ((), (error,)))] == [
        False,
        True,
        True,
    ]
    counted = SessionRecord((held, failed), (error, expected)).counts
    assert (counted["held"], counted["failed"], counted["not measured"], counted["expected failure"]) == (1, 1, 1, 1)
