"""Verdicts: the point estimate decides, NaN never passes, and the worst element is named."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pytest_trainability import Bound, Estimate, Names, Profile, Spectrum, at_least, at_most, within
from pytest_trainability.checks.statistics import estimate
from pytest_trainability.checks.verdicts import first_outside, judge

NAN, INF = math.nan, math.inf


def one(mean: float, half: float = NAN, **rest: Any) -> Estimate:
    """Return an estimate with this half-width, at 99 % of two values where there is one."""
    spread = half / 63.66
    values = (mean,) if math.isnan(half) else (mean - spread, mean + spread)
    return Estimate(mean=mean, low=mean - half, high=mean + half, values=values, **rest)


def profile(**means: float) -> Profile:
    return Profile({name: one(mean, name=name) for name, mean in means.items()})


@pytest.mark.parametrize(
    ("mean", "bound", "holds", "margin"),
    [
        (1.0, within(3), True, 2.0),
        (-4.0, within(3), False, -1.0),
        (3.0, within(3), True, 0.0),
        (5.0, at_least(2), True, 3.0),
        (5.0, at_most(2), False, -3.0),
        (INF, at_least(2), True, INF),
        (INF, at_most(2), False, -INF),
        (-INF, within(3), False, -INF),
        (NAN, within(3), False, -INF),
        (NAN, at_least(-INF), False, -INF),
        (NAN, at_most(INF), False, -INF),
        (INF, at_most(INF), True, 0.0),
        (-INF, at_least(-INF), True, 0.0),
    ],
)
def test_scalars(mean: float, bound: Bound, holds: bool, margin: float) -> None:
    verdict = judge("log_gain", one(mean), bound)
    assert (verdict.holds, verdict.margin) == (holds, margin)
    assert verdict.violations == (not holds)
    assert verdict.elements == 1
    assert (verdict.low, verdict.high) == (bound.low, bound.high)


def test_the_margin_of_a_scale_is_the_logarithm_of_a_ratio() -> None:
    verdict = judge("gradient_norm", one(1e-9), at_least(1e-6), scale="log")
    assert verdict.margin == pytest.approx(-math.log(1000))
    assert judge("gradient_norm", one(0.0), at_least(1e-6), scale="log").margin == -1e-6
    assert judge("gradient_norm", one(2.0), Bound(1, 8), scale="log").margin == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("half", "bound", "marginal"),
    [
        (0.5, within(1.2), True),
        (0.1, within(1.2), False),
        (0.5, within(0.8), True),
        (NAN, within(1.0), False),
        (0.5, at_least(-1), False),
    ],
)
def test_an_interval_that_straddles_an_end_is_marginal(half: float, bound: Bound, *, marginal: bool) -> None:
    verdict = judge("log_gain", one(1.0, half), bound)
    assert verdict.marginal is marginal
    assert (verdict.seeds_needed > 2) is marginal
    assert verdict.holds is bound.holds(1.0), "the point estimate decides"


def test_a_profile_is_judged_by_its_worst_element() -> None:
    verdict = judge("activation_rms", profile(a=1.0, b=5.0, c=-7.0, d=2.0), within(3))
    assert not verdict.holds
    assert (verdict.where, verdict.value, verdict.margin) == ("c", -7.0, -4.0)
    assert (verdict.violations, verdict.elements) == (2, 4)
    assert verdict.worst == (("c", -7.0), ("b", 5.0))


def test_at_most_five_of_the_worst_are_listed() -> None:
    verdict = judge("x", profile(**{f"p{i}": 10.0 + i for i in range(9)}), within(3))
    assert [name for name, _ in verdict.worst] == ["p8", "p7", "p6", "p5", "p4"]
    assert verdict.violations == 9


def test_nan_is_worse_than_any_number() -> None:
    verdict = judge("x", profile(a=-INF, b=NAN, c=1e300), within(3))
    assert verdict.where in {"a", "b"}
    assert verdict.violations == 3
    assert not judge("x", profile(a=1.0, b=NAN), within(3)).holds
    assert judge("x", profile(a=1.0, b=NAN), within(3)).where == "b"


def test_the_nearest_to_the_bound_is_the_worst_of_a_healthy_profile() -> None:
    verdict = judge("x", profile(a=1.0, b=2.5, c=-2.0), within(3))
    assert verdict.holds
    assert (verdict.where, verdict.margin, verdict.worst) == ("b", 0.5, ())


def test_any_marginal_element_makes_a_profile_marginal() -> None:
    """The worst element may be far outside with certainty, and another one undecided: that is not a sure verdict."""
    values = Profile({"a": one(2.9, 0.01, name="a"), "b": one(2.5, 1.0, name="b")})
    assert judge("x", values, within(3)).marginal


def test_an_empty_profile_does_not_hold() -> None:
    verdict = judge("gradient_norm", Profile(), at_least(0))
    assert not verdict.holds
    assert verdict.elements == 0
    assert math.isnan(verdict.value)


def test_a_spectrum_is_judged_element_by_element() -> None:
    spectrum = Spectrum((one(0.1), one(-0.5), one(-2.0)))
    assert judge("lyapunov_spectrum", spectrum, within(2)).holds
    verdict = judge("lyapunov_spectrum", spectrum, at_least(-1))
    assert (verdict.holds, verdict.value, verdict.violations) == (False, -2.0, 1)


def test_the_worst_exponent_of_a_spectrum_is_named() -> None:
    verdict = judge("lyapunov_spectrum", Spectrum((one(0.1), one(-2.0))), at_least(-1))
    assert "2" in verdict.where


def test_names_are_judged_by_their_number() -> None:
    assert judge("nonfinite", Names((), (0, 0)), at_most(0)).holds
    verdict = judge("nonfinite", Names(("loss", "a", "b", "c"), (4, 4)), at_most(0))
    assert (verdict.holds, verdict.value, verdict.where) == (False, 4.0, "loss, a, b")
    assert not judge("nonfinite", Names(("loss",), (0, 0, 0, 1)), at_most(0)).holds


def test_a_verdict_is_of_the_estimate_that_it_was_given() -> None:
    e = estimate([1.0, 2.0, 3.0], unit="nats")
    verdict = judge("log_gain", e, within(3))
    assert (verdict.value, verdict.value_low, verdict.value_high, verdict.unit) == (e.mean, e.low, e.high, "nats")
    assert verdict.value_text == str(e)


@pytest.mark.parametrize(
    ("growth", "bound", "index"),
    [
        ([1.0, 1.0, 1.0, 1.0], at_most(2.5), 1),
        ([1.0, 1.0, 1.0, 1.0], at_most(4), None),
        ([1.0, 1.0, 1.0, 9.0], at_most(2.5), 3),
        ([-9.0, 0.0, 0.0], at_least(-3), 0),
        ([-2.0, 5.0, -5.0], within(4), 2),
        ([1.0, NAN, 1.0], within(100), 1),
        ([-INF, 0.0], at_least(-100), 0),
        ([], within(1), None),
    ],
)
def test_the_band_is_left_going_backward(growth: list[float], bound: Bound, index: int | None) -> None:
    """The cotangent starts at the last step, so that is where the sum starts."""
    assert first_outside(growth, bound) == index
