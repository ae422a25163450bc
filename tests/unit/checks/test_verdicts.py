"""Verdicts: the point estimate decides, NaN never passes, the worst element is named, and clear cases are settled soon."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pytest_trainability import Bound, Estimate, Names, Profile, Spectrum, at_least, at_most, within
from pytest_trainability.checks.statistics import Level, estimate
from pytest_trainability.checks.verdicts import first_outside, is_settled, judge

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
def test_verdict_and_margin_of_a_scalar(mean: float, bound: Bound, holds: bool, margin: float) -> None:
    verdict = judge("log_gain", one(mean), bound)
    assert (verdict.holds, verdict.margin) == (holds, margin)
    assert verdict.violations == (not holds)
    assert verdict.elements == 1
    assert (verdict.low, verdict.high) == (bound.low, bound.high)


def test_the_margin_of_a_log_scale_measure_is_the_log_of_a_ratio() -> None:
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


def test_all_elements_outside_are_listed() -> None:
    verdict = judge("x", profile(**{f"p{i}": 10.0 + i for i in range(9)}), within(3))
    assert [name for name, _ in verdict.worst] == [f"p{i}" for i in range(8, -1, -1)]
    assert verdict.violations == 9


def test_nan_is_worse_than_any_number() -> None:
    verdict = judge("x", profile(a=-INF, b=NAN, c=1e300), within(3))
    assert verdict.where in {"a", "b"}
    assert verdict.violations == 3
    assert not judge("x", profile(a=1.0, b=NAN), within(3)).holds
    assert judge("x", profile(a=1.0, b=NAN), within(3)).where == "b"


def test_a_verdict_says_on_how_many_seeds_a_value_is_finite() -> None:
    some, none = (estimate(values, name=name) for values, name in (((1.0, NAN, NAN), "a"), ((NAN, NAN), "b")))
    verdict = judge("x", Profile({"a": some, "b": none}), within(3))
    assert verdict.finite == "finite on 1 of 3 seeds"
    assert verdict.worst_finite == ("finite on 1 of 3 seeds", "")
    assert judge("x", none, within(3)).finite == ""


def test_the_worst_element_of_a_healthy_profile_is_nearest_to_the_bound() -> None:
    verdict = judge("x", profile(a=1.0, b=2.5, c=-2.0), within(3))
    assert verdict.holds
    assert (verdict.where, verdict.margin, verdict.worst) == ("b", 0.5, ())


def test_any_marginal_element_makes_a_profile_marginal() -> None:
    """The worst element may be clearly inside while another one is undecided."""
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


def test_the_number_of_names_is_judged() -> None:
    assert judge("nonfinite", Names((), (0, 0)), at_most(0)).holds
    verdict = judge("nonfinite", Names(("loss", "a", "b", "c"), (4, 4)), at_most(0))
    assert (verdict.holds, verdict.value, verdict.where) == (False, 4.0, "loss, a, b, …")
    assert verdict.names == ("loss", "a", "b", "c")
    assert not judge("nonfinite", Names(("loss",), (0, 0, 0, 1)), at_most(0)).holds


def test_a_verdict_has_the_values_of_its_estimate() -> None:
    e = estimate([1.0, 2.0, 3.0], unit="nats")
    verdict = judge("log_gain", e, within(3))
    assert (verdict.value, verdict.value_low, verdict.value_high, verdict.unit) == (e.mean, e.low, e.high, "nats")
    assert verdict.value_text == f"{e}, mean within [-3.73, 7.73]", "the interval decides"
    assert judge("log_gain", e, within(99)).value_text == str(e)


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
def test_the_accumulated_gain_leaves_the_band_in_backward_order(
    growth: list[float], bound: Bound, index: int | None
) -> None:
    """The cotangent starts at the last step, and so does the sum."""
    assert first_outside(growth, bound) == index


# Settled verdicts ------------------------------------------------------------------------------------------------------


def first_settled(values: Sequence[float], bound: Bound, level: Level) -> int | None:
    for n in range(1, len(values) + 1):
        if is_settled(estimate(values[:n], level=level), bound, level=level):
            return n
    return None


ALWAYS = Level(0.99, 8)


@pytest.mark.parametrize(("mean", "bound"), [(-14.4, within(5)), (0.2, within(20)), (-60.0, at_least(-5))])
def test_a_clear_case_is_settled_after_two_or_three_seeds(mean: float, bound: Bound) -> None:
    generator = np.random.default_rng(0)
    found = [first_settled(generator.normal(mean, 0.1, 8).tolist(), bound, ALWAYS) for _ in range(200)]
    assert set(found) <= {2, 3}


def test_a_close_case_is_not_settled() -> None:
    """The mean is on the end of the bound, so that either verdict is wrong. 1 % may be settled, over all looks."""
    generator = np.random.default_rng(1)
    found = [first_settled(generator.normal(5.0, 1.0, 8).tolist(), within(5), ALWAYS) for _ in range(1000)]
    wrong = sum(n is not None for n in found)
    assert wrong <= 10 + 4 * math.sqrt(10)


def test_one_seed_settles_only_infinity_nan_and_log_scale_zero() -> None:
    assert not is_settled(estimate([0.0], level=ALWAYS), within(5), level=ALWAYS)
    assert is_settled(estimate([-math.inf], level=ALWAYS), within(5), level=ALWAYS)
    assert is_settled(estimate([math.nan], level=ALWAYS), within(5), level=ALWAYS)
    # the logarithm of a zero gradient is not finite, and no other seed averages it away
    assert is_settled(estimate([0.0], scale="log", level=ALWAYS), at_least(1e-6), level=ALWAYS)


def test_the_same_value_twice_settles() -> None:
    assert is_settled(estimate([3.0, 3.0], level=ALWAYS), within(5), level=ALWAYS)
    assert is_settled(estimate([5.0, 5.0], level=ALWAYS), within(5), level=ALWAYS)
    assert is_settled(estimate([7.0, 7.0], level=ALWAYS), within(5), level=ALWAYS)


def sampled(*elements: Sequence[float]) -> Profile:
    return Profile({f"w{i}": estimate(values, level=ALWAYS, name=f"w{i}") for i, values in enumerate(elements)})


TIGHT_IN, LOOSE_IN, TIGHT_OUT = (0.0, 0.001, 0.002), (0.0, 1.0, -1.0), (9.0, 9.001, 9.002)


def test_a_profile_is_settled_when_every_element_is_inside_or_one_is_outside() -> None:
    assert is_settled(sampled(TIGHT_IN, TIGHT_IN), within(5), level=ALWAYS)
    assert not is_settled(sampled(TIGHT_IN, LOOSE_IN), within(5), level=ALWAYS)
    assert is_settled(sampled(LOOSE_IN, TIGHT_OUT), within(5), level=ALWAYS)


def test_one_of_many_elements_must_lie_further_outside() -> None:
    """The element outside was selected among all, so that each gets a share of the error."""
    barely = (6.0, 6.01, 6.02)
    alone = estimate(barely, level=ALWAYS)
    assert alone.low > 5.7
    bound = at_most(alone.low - 0.01)
    assert is_settled(sampled(barely), bound, level=ALWAYS)
    assert not is_settled(sampled(barely, *[LOOSE_IN] * 99), bound, level=ALWAYS)


def test_a_failure_on_every_seed_is_settled_where_each_seed_alone_is_enough() -> None:
    wide = sampled((0.2, 1.5, 0.1))
    assert judge("x", wide, at_most(0.05), level=ALWAYS).marginal
    assert not judge("x", wide, at_most(0.05), level=ALWAYS, by_seed=True).marginal
    # One seed inside: the mean decides.
    assert judge("x", sampled((0.2, 1.5, 0.0)), at_most(0.05), level=ALWAYS, by_seed=True).marginal
