"""The attributes of a measure: what they may be, and what the decorator makes of a function."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_trainability import UsageError
from pytest_trainability.measures import STATE_RMS, SWEEP, Measure, Need, Stage, declare


def constant(run: Any) -> float:
    """Return one."""
    return 1.0


def test_declare_names_the_measure_for_the_function() -> None:
    declared = declare(
        "scalar",
        unit="nats",
        scale="log",
        needs=[SWEEP, STATE_RMS],
        tolerance=0.3,
        explained_by_growth=-1,
        measured_with="log_gain",
        recorded=["depth"],
    )(constant)
    assert declared == Measure(
        "constant",
        "scalar",
        "nats",
        "log",
        frozenset({SWEEP, STATE_RMS}),
        constant,
        tolerance=0.3,
        explained_by_growth=-1,
        measured_with="log_gain",
        recorded=frozenset({"depth"}),
    )


def test_defaults_ask_for_nothing() -> None:
    plain = declare("scalar")(constant)
    assert (plain.unit, plain.scale, plain.needs, plain.tolerance) == ("", "linear", frozenset(), 0.0)
    assert (plain.explained_by_growth, plain.zero_by_design, plain.measured_with) == (0, "", "")
    assert plain.recorded == frozenset()


def test_a_measure_is_hashable_when_needs_are_a_list() -> None:
    listed: Any = [SWEEP]
    assert len({Measure("constant", "scalar", "", "linear", listed, constant)}) == 1


def test_what_presumes_something_may_only_run_the_model_again() -> None:
    condition: Any = Need("condition", lambda run: True, Stage.RERUN)
    again: Any = Need("again", lambda run: 1.0, Stage.RERUN)
    assert declare("scalar", needs=[again], presumes=condition)(constant).presumes is condition
    with pytest.raises(UsageError, match="presumes requires that all needs have the stage RERUN"):
        declare("scalar", needs=[SWEEP], presumes=condition)(constant)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kind": (
        {"kind": "vector"},
        "Measure 'constant': kind must be one of 'scalar', 'spectrum', 'profile', 'names'. Got 'vector'.",
    ),
    "scale": ({"scale": "decibel"}, "scale must be one of 'linear', 'log'. Got 'decibel'."),
    "explained_by_growth": ({"explained_by_growth": 2}, "explained_by_growth must be one of -1, 0, 1. Got 2."),
    "zero_by_design": (
        {"zero_by_design": "head"},
        "zero_by_design must be one of '', 'gradient', 'ratio', 'update', 'branch'. Got 'head'.",
    ),
    "recorded": ({"recorded": ["width"]}, "recorded must hold 'depth', 'time' or both. Got ['width']."),
    "needs": ({"needs": ["sweep"]}, "needs must hold Need objects, and read must be a function of a Run."),
    "a scalar that is zero by design": (
        {"kind": "scalar", "zero_by_design": "gradient"},
        "zero_by_design needs kind='profile', whose elements are parameters or steps. Got kind='scalar'.",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_an_impossible_attribute_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        declare(**{"kind": "profile", **arguments})(constant)
    assert message in str(refused.value)
    assert str(refused.value).startswith("Measure 'constant': ")


def test_a_reader_that_cannot_be_called_is_refused() -> None:
    reader: Any = 1.0
    with pytest.raises(UsageError, match="read must be a function of a Run"):
        Measure("constant", "scalar", "", "linear", frozenset(), reader)


@pytest.mark.parametrize(
    "changes", [{"kind": "vector"}, {"scale": "logarithmic"}, {"needs": ["sweep"]}, {"read": 1.0}], ids=str
)
def test_a_measure_that_cannot_be_one_is_refused(changes: dict[str, Any]) -> None:
    given: dict[str, Any] = {"kind": "scalar", "scale": "linear", "needs": (), "read": lambda run: 0.0, **changes}
    with pytest.raises(UsageError, match="odd"):
        Measure("odd", unit="", **given)
