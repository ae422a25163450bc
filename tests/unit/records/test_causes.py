"""A cause is plain data that changes nothing unless it says so."""

from __future__ import annotations

from pytest_trainability.checks.remedies import remedies_of_causes
from pytest_trainability.records.causes import CauseRecord


def test_a_cause_without_a_change_suggests_none() -> None:
    assert list(remedies_of_causes([CauseRecord("a reason")])) == []
    assert CauseRecord("a") == CauseRecord("a") and hash(CauseRecord("a")) == hash(CauseRecord("a"))
