"""Bounds: their ends, their text, and parsing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pytest_trainability import Bound, BoundError, at_least, at_most, within
from pytest_trainability.checks.bounds import as_bound, parse_bound, parse_bounds

NAN, INF = math.nan, math.inf


def test_bounds_are_closed() -> None:
    assert within(3).holds(3)
    assert within(3).holds(-3)
    assert not within(3).holds(math.nextafter(3, 4))
    assert at_least(0).holds(0)
    assert at_most(0).holds(-0.0)


def test_open_ends_admit_everything_except_nan() -> None:
    assert at_least(0).holds(INF)
    assert at_most(0).holds(-INF)
    for bound in (at_least(-INF), at_most(INF), within(INF), within(-1, 1), Bound(0, None)):
        assert not bound.holds(NAN)


@pytest.mark.parametrize(
    ("bound", "low", "high"),
    [
        (within(0.05), -0.05, 0.05),
        (within(-1, 2), -1, 2),
        (within(0), 0, 0),
        (at_least(1e-6), 1e-6, None),
        (at_most(0.9), None, 0.9),
        (within(2, 2), 2, 2),
    ],
)
def test_ends_of_a_bound(bound: Bound, low: float | None, high: float | None) -> None:
    assert (bound.low, bound.high) == (low, high)


@pytest.mark.parametrize(
    ("bound", "text"),
    [
        (within(5), "must lie in [-5, 5]"),
        (at_least(1e-6), "must be ≥ 1e-06"),
        (at_most(0.9), "must be ≤ 0.9"),
        (at_most(0), "must be ≤ 0"),
        (within(0.0), "must lie in [0, 0]"),
        (at_most(2.3026), "must be ≤ 2.3026"),
    ],
)
def test_the_text_of_a_bound_is_a_requirement(bound: Bound, text: str) -> None:
    assert str(bound) == text


@pytest.mark.parametrize("bound", [within(0.05), within(-1, 2), at_least(1e-6), at_most(0.9), within(-INF, INF)])
def test_the_repr_of_a_bound_is_an_expression(bound: Bound) -> None:
    assert eval(repr(bound), {"within": within, "at_least": at_least, "at_most": at_most, "inf": INF}) == bound


def test_within_accepts_an_open_end_like_a_tuple() -> None:
    """``(3, None)`` means ``[3, ∞)``, and ``within(3, None)`` must not mean ``[-3, 3]``."""
    assert within(3, None) == Bound(3, None)


@pytest.mark.parametrize("number", [np.float64(2.0), np.float32(2.0), np.int64(2)])
def test_a_numpy_number_becomes_a_plain_end(number: Any) -> None:
    """Records are sent to other processes, and execnet sends plain floats only."""
    bound = at_most(number)
    assert bound.high == 2
    assert type(bound.high) in {int, float}


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("[-0.05, 0.05]", Bound(-0.05, 0.05)),
        (" [ -1 ,2 ] ", Bound(-1, 2)),
        ("[1e-6, ]", Bound(1e-6, None)),
        ("[1e-6,]", Bound(1e-6, None)),
        ("[, 3]", Bound(None, 3)),
        ("[None, 3]", Bound(None, 3)),
        ("[-inf, 3]", Bound(-INF, 3)),
        (">= 1e-6", Bound(1e-6, None)),
        (">=1e-6", Bound(1e-6, None)),
        ("<= 0.9", Bound(None, 0.9)),
        ("≤ .9", Bound(None, 0.9)),
        ("≥ -1", Bound(-1, None)),
    ],
)
def test_bounds_are_parsed_from_text(text: str, bound: Bound) -> None:
    assert parse_bound(text) == bound
    assert as_bound(text, measure="log_gain") == bound


@pytest.mark.parametrize(
    "text",
    ["", "3", "0, 1", "(0, 1)", "[0 1]", "[0, 1, 2]", "> 3", ">= ", "=< 3", "[0, 1", ">= 1 2", "[0; 1]", ">= None"],
)
def test_other_text_is_not_a_bound(text: str) -> None:
    with pytest.raises(BoundError):
        parse_bound(text)


@pytest.mark.parametrize(
    ("value", "bound"),
    [((None, 3), Bound(None, 3)), ([0, 1], Bound(0, 1)), (within(1), Bound(-1, 1)), ((0.5, None), Bound(0.5, None))],
)
def test_pairs_are_bounds(value: Any, bound: Bound) -> None:
    assert as_bound(value, measure="log_gain") == bound


@pytest.mark.parametrize("value", [3, 0.5, True, None, {}, (1,), (1, 2, 3), {1, 2}, "log_gain", ("a", 1), (1, [2])])
def test_other_values_are_not_bounds(value: Any) -> None:
    with pytest.raises(BoundError, match=re.compile(r"^the marker of x: .*log_gain", re.DOTALL)):
        as_bound(value, measure="log_gain", where="the marker of x")


@pytest.mark.parametrize(
    "line",
    [
        "log_gain = [-3, 3]",
        "log_gain=[-3, 3]",
        "log_gain [-3, 3]",
        "  log_gain   =   [ -3 , 3 ]",
    ],
)
def test_a_line_may_have_an_equals_sign_and_spaces(line: str) -> None:
    assert parse_bounds([line], where="tox.ini") == {"log_gain": Bound(-3, 3)}


def test_every_line_is_a_bound() -> None:
    lines = ["lyapunov_max = [-0.05, 0.05]", "gradient_norm >= 1e-6", "dead_fraction = <= 0.9"]
    assert parse_bounds(lines, where="tox.ini") == {
        "lyapunov_max": within(0.05),
        "gradient_norm": at_least(1e-6),
        "dead_fraction": at_most(0.9),
    }


def test_several_lines_for_a_measure_must_all_hold() -> None:
    assert parse_bounds(["log_gain >= -3", "log_gain <= 3"], where="tox.ini") == {"log_gain": Bound(-3, 3)}
    assert parse_bounds(["log_gain = [-3, 9]", "log_gain = [-9, 3]"], where="tox.ini") == {"log_gain": Bound(-3, 3)}


def test_lines_that_exclude_each_other_are_refused() -> None:
    message = (
        "tox.ini: log_gain has several bounds that cannot hold together: the lower end of a bound must not exceed the "
        "upper one. Got [3, -3]. Swap them."
    )
    with pytest.raises(BoundError, match=f"^{re.escape(message)}$"):
        parse_bounds(["log_gain >= 3", "log_gain <= -3"], where="tox.ini")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Bound(10**400, None),
        lambda: within(10**400),
        lambda: at_most(-(10**400)),
        lambda: as_bound((None, 10**400), measure="log_gain"),
        lambda: as_bound(10**400, measure="log_gain"),
        lambda: as_bound(10**10_000, measure="log_gain"),
    ],
)
def test_a_number_too_large_for_a_float_is_no_end_of_a_bound(make: Callable[[], Bound]) -> None:
    with pytest.raises(BoundError, match="bound") as caught:
        make()
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("text", ["[" + " " * 20_000, "[" + " " * 20_000 + "," + " " * 20_000, ">=" + " " * 20_000])
def test_long_texts_are_refused_at_once(text: str) -> None:
    """With a pattern that can match spaces in several ways, the first text would take hours."""
    with pytest.raises(BoundError, match="a bound must be written as"):
        parse_bound(text)
    with pytest.raises(BoundError):
        parse_bounds([f"log_gain = {text}"], where="here")


def test_patterns_select_what_a_bound_judges() -> None:
    bound = at_least(1e-6, matching=("*.weight", "head.*"), excluding="*.norm.*")
    assert (bound.matching, bound.excluding) == (("*.weight", "head.*"), ("*.norm.*",))
    assert bound.selection == "only *.weight, head.*, without *.norm.*"
    assert repr(bound) == "at_least(1e-06, matching=('*.weight', 'head.*'), excluding='*.norm.*')"
    assert eval(repr(bound)) == bound
    assert within(3, excluding="*.bias").excluding == at_most(3, excluding=["*.bias"]).excluding == ("*.bias",)
    assert at_least(1e-6).selection == ""


@pytest.mark.parametrize("given", [3, "", ("*.bias", 3), {"*.bias"}])
def test_a_pattern_must_be_a_string(given: Any) -> None:
    with pytest.raises(
        BoundError, match=r"^excluding= of a bound must be a pattern of names, such as '\*\.bias', or several\."
    ):
        at_least(1e-6, excluding=given)


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        (">= 1e-6 excluding *.bias", at_least(1e-6, excluding="*.bias")),
        ("[0, 1] matching *.weight , head.*", within(0, 1, matching=("*.weight", "head.*"))),
        ("<= 2 matching a.* excluding *.bias, *.norm.*", at_most(2, matching="a.*", excluding=("*.bias", "*.norm.*"))),
    ],
)
def test_patterns_follow_a_bound_that_is_written_as_text(text: str, bound: Bound) -> None:
    assert parse_bound(text) == bound


def test_bounds_on_different_elements_are_not_joined() -> None:
    message = "tox.ini: gradient_norm has several bounds that cannot hold together: they judge different elements."
    with pytest.raises(BoundError, match=f"^{re.escape(message)}"):
        parse_bounds(["gradient_norm >= 1 excluding *.bias", "gradient_norm <= 3"], where="tox.ini")
    joined = parse_bounds(["gradient_norm >= 1 excluding *.bias", "gradient_norm <= 3 excluding *.bias"], where="")
    assert joined == {"gradient_norm": within(1, 3, excluding="*.bias")}


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("within(3)", within(3)),
        (" within(-1, 2) ", within(-1, 2)),
        ("at_least(1e-6, excluding='*.bias')", at_least(1e-6, excluding="*.bias")),
        ("at_most(inf, matching=['a', 'b'])", at_most(math.inf, matching=["a", "b"])),
    ],
)
def test_a_bound_is_written_as_in_python(text: str, bound: Bound) -> None:
    assert parse_bound(text) == bound
    assert parse_bounds([f"log_gain = {text.strip()}"], where="ini") == {"log_gain": bound}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("withn(3)", "Did you mean 'within'?"),
        ("within()", "the ends of a bound must be numbers"),
        ("within(x)", "its arguments must be numbers"),
        ("at_least(2, 3)", "at_least() does not take these arguments"),
        ("within(2, 1)", "the lower end of a bound must not exceed the upper one"),
        ("print(3)", "unknown function 'print'"),
    ],
)
def test_other_calls_are_no_bounds(text: str, said: str) -> None:
    with pytest.raises(BoundError) as caught:
        parse_bound(text)
    assert said in str(caught.value)
