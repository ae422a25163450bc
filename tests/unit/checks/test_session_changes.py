"""What differs between two sessions: statuses, numbers by the rules of baselines, and checks that are new or gone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from reported import ENVIRONMENT, GAIN, RATES, broken, check, session, verdict

from pytest_trainability.checks.session_changes import session_changes
from pytest_trainability.records.session import CheckOutcome, ErrorRecord, SessionChange, SessionRecord
from pytest_trainability.records.values import ElementRecord, ModuleRecord, TensorRecord, ValueRecord

TOLERANCES = {"log_gain": 0.3, "growth_rate": 0.1}
TEST = "tests/test_a.py::test_tower"


def gain(*values: float) -> ValueRecord:
    return replace(GAIN, elements=(ElementRecord("", sum(values) / len(values), 0.0, 0.0, values),))


def green(*values: ValueRecord, **changes: Any) -> CheckOutcome:
    return check("passed", verdict(), values=values or (GAIN, RATES), **changes)


def changes(old: SessionRecord, new: SessionRecord) -> tuple[SessionChange, ...]:
    return session_changes(old, new, TOLERANCES)


def moved(old: CheckOutcome, new: CheckOutcome, environment: dict[str, str] | None = None) -> list[str]:
    """Return the measures that have changed between two sessions of one check."""
    after = session(new, environment={**ENVIRONMENT, **(environment or {})})
    return [part.measure for change in changes(session(old), after) for part in change.changes]


def test_equal_sessions_do_not_differ() -> None:
    assert changes(session(green(), broken()), session(green(), broken())) == ()


def test_statuses_and_errors_are_compared() -> None:
    error = ErrorRecord(TEST, "ModelError", "no")
    cases = [
        (session(green()), session(broken(TEST)), "held", "failed"),
        (session(broken(TEST)), session(green()), "failed", "held"),
        (session(green()), session(errors=(error,)), "held", "not measured"),
        (session(errors=(error,)), session(green()), "not measured", "held"),
        (session(), session(green()), "", "held"),
        (session(green()), session(), "held", ""),
    ]
    for old, new, before, after in cases:
        (change,) = changes(old, new)
        assert (change.test, change.old, change.new) == (TEST, before, after)
        assert change.is_worse == (after in {"failed", "not measured"})
        assert change.is_better == (before in {"failed", "not measured"})
    assert changes(session(errors=(error,)), session(errors=(error,))) == ()


def test_on_the_same_weights_the_tolerance_decides() -> None:
    assert moved(green(gain(1.0, 2.0)), green(gain(1.2, 2.2))) == []
    assert moved(green(gain(1.0, 2.0)), green(gain(1.4, 2.4))) == ["log_gain"]


@pytest.mark.parametrize("other", [{}, {"torch": "2.6.0"}], ids=["one place", "another torch"])
def test_on_other_weights_chance_decides(other: dict[str, str]) -> None:
    """A spread between seeds as large as the shift is no change, and one that is much smaller is."""
    drawn = TensorRecord("{0,2}.weight", 2, (8, 8), 0.21, 0.0, "")
    wide, near = gain(0.0, 4.0, 2.0, 1.0), gain(1.0, 5.0, 3.0, 2.0)
    assert moved(green(wide), green(near, tensors=(drawn,)), other) == []
    narrow, far = gain(0.0, 0.01, 0.02, 0.01), gain(9.0, 9.01, 9.02, 9.01)
    assert moved(green(narrow), green(far, tensors=(drawn,)), other) == ["log_gain"]


def test_initial_values_that_chance_does_not_explain_have_changed() -> None:
    doubled = TensorRecord("{0,2}.weight", 2, (8, 8), 0.4, 0.0, "")
    assert moved(green(), green(tensors=(doubled,))) == ["initial values"]
    with_bias = (TensorRecord("0.bias", 1, (8,), 0.0, 0.0, ""),)
    ones = (TensorRecord("0.bias", 1, (8,), 1.0, 1.0, ""),)
    assert moved(green(tensors=with_bias), green(tensors=ones)) == ["initial values"]


def test_modules_are_compared() -> None:
    modules = (ModuleRecord("", "Sequential", 1), ModuleRecord("{0,2}", "Conv2d", 2))
    assert moved(green(), green(modules=modules)) == ["modules"]


def test_a_measure_that_only_one_session_has_read_is_no_change() -> None:
    """It says something about the test, and nothing about the model."""
    assert moved(green(), green(GAIN)) == []
    assert moved(green(GAIN), green()) == []


def test_checks_of_one_name_are_compared_in_their_order() -> None:
    (change,) = changes(session(green(), green()), session(green(), broken(TEST)))
    assert (change.old, change.new) == ("held", "failed")


def test_contracts_without_a_chain_are_compared_by_status() -> None:
    contract = {"along": "", "step_names": (), "growth": (), "modules": (), "tensors": (), "frame": "", "dtype": ""}
    old, new = (check(o, verdict(holds=o == "passed"), values=(), **contract) for o in ("passed", "failed"))
    (change,) = changes(session(old), session(new))
    assert (change.old, change.new, change.changes) == ("held", "failed", ())
