"""Averages over seeds: the interval is Student's, covers as often as it says, and hides nothing that is not finite."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pytest_trainability import UsageError
from pytest_trainability.checks.statistics import CONFIDENCE, DEFAULT_SEEDS, Level, as_confidence, as_seeds, estimate

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("count", [2, 3, 4, 8, 100])
def test_the_interval_is_students(count: int, confidence: float) -> None:
    values = np.random.default_rng(count).normal(3.0, 2.0, count)
    e = estimate(values.tolist(), level=Level(confidence))
    low, high = stats.t.interval(confidence, count - 1, loc=values.mean(), scale=stats.sem(values))
    # both are double arithmetic on a handful of numbers; the quantiles come from two roots of scipy
    assert (e.mean, e.low, e.high) == pytest.approx((values.mean(), low, high), rel=1e-9)
    assert e.values == tuple(values)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_the_interval_covers_as_often_as_it_says(scale: Any) -> None:
    """4000 draws: the share of intervals that cover has a standard deviation of 0.0047; four of them are allowed."""
    generator = random.Random(7)
    draws, confidence, covered = 4000, 0.9, 0
    for _ in range(draws):
        values = [generator.gauss(1.0, 0.5) for _ in range(4)]
        if scale == "log":
            e = estimate([math.exp(v) for v in values], scale="log", level=Level(confidence))
            covered += e.low <= math.exp(1.0) <= e.high
        else:
            e = estimate(values, level=Level(confidence))
            covered += e.low <= 1.0 <= e.high
    assert covered / draws == pytest.approx(confidence, abs=4 * math.sqrt(confidence * (1 - confidence) / draws))


def test_a_scale_is_averaged_by_its_logarithm() -> None:
    e = estimate([1e-3, 1e-1], scale="log")
    assert e.mean == pytest.approx(1e-2)
    assert e.high / e.mean == pytest.approx(e.mean / e.low)
    logs = estimate([math.log(1e-3), math.log(1e-1)])
    assert (math.log(e.low), math.log(e.high)) == pytest.approx((logs.low, logs.high))
    assert e.values == (1e-3, 1e-1)
    assert e.scale == "log"


def test_one_seed_has_no_interval() -> None:
    e = estimate([2.0])
    assert e.mean == 2.0
    assert math.isnan(e.low)
    assert math.isnan(e.high)


def test_equal_values_have_an_interval_of_length_zero() -> None:
    e = estimate([2.0] * 4)
    assert (e.mean, e.low, e.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("values", "scale", "mean"),
    [
        ([-INF, 1.0], "linear", -INF),
        ([INF, 1.0], "linear", INF),
        ([INF, -INF], "linear", NAN),
        ([NAN, 1.0], "linear", NAN),
        ([NAN, -INF], "linear", NAN),
        ([0.0, 1.0], "log", 0.0),
        ([0.0, 0.0], "log", 0.0),
        ([INF, 1.0], "log", INF),
        ([0.0, INF], "log", NAN),
        ([-1.0, 1.0], "log", NAN),
        ([NAN, 1.0], "log", NAN),
    ],
)
def test_what_is_not_finite_is_not_averaged_away(values: list[float], scale: Any, mean: float) -> None:
    e = estimate(values, scale=scale)
    assert e.mean == mean or (math.isnan(e.mean) and math.isnan(mean))
    assert math.isnan(e.low)
    assert math.isnan(e.high)


def test_sums_do_not_lose_small_terms() -> None:
    assert estimate([1e16, 1.0, -1e16]).mean == pytest.approx(1 / 3)


def test_a_wide_interval_of_a_scale_does_not_overflow() -> None:
    e = estimate([1e-300, 1e300], scale="log")
    assert e.mean == pytest.approx(1.0)
    assert (e.low, e.high) == (0.0, INF)


@pytest.mark.parametrize(
    ("given", "seeds"),
    [
        (None, tuple(range(DEFAULT_SEEDS))),
        (3, (0, 1, 2)),
        ([0, 3, 5], (0, 3, 5)),
        (range(2, 4), (2, 3)),
        ("8", tuple(range(8))),
        (" 2 ", (0, 1)),
        ("0-3", (0, 1, 2, 3)),
        ("5-5", (5,)),
        ("0,3,5-6", (0, 3, 5, 6)),
        ("0, 3", (0, 3)),
        ("7,7", (7,)),
        ([1, 1, 0], (1, 0)),
        ([2**63 - 1], (2**63 - 1,)),
    ],
)
def test_seeds_are_read(given: Any, seeds: tuple[int, ...]) -> None:
    assert as_seeds(given) == seeds


@pytest.mark.parametrize("given", [np.int64(3), np.arange(3), [np.int64(0)]], ids=repr)
def test_whole_numbers_of_numpy_are_seeds(given: Any) -> None:
    """``seeds=np.arange(8)`` is a list of whole numbers to whoever writes it."""
    seeds = as_seeds(given)
    assert all(type(seed) is int for seed in seeds)


@pytest.mark.parametrize(
    "given",
    [0, -1, [], "", "0", "a", "1-", "-1", "3-1", "1.5", ",", "1,,2", 1.5, True, [True], [-1], [0.5], [2**63], "0-"],
)
def test_nothing_else_is_a_seed(given: Any) -> None:
    with pytest.raises(UsageError, match="seeds must be"):
        as_seeds(given)


def test_confidence_lies_between_zero_and_one() -> None:
    assert as_confidence("0.9") == 0.9
    assert as_confidence(CONFIDENCE) == CONFIDENCE
    for given in (0, 1, -0.5, 99, "99%", "", None, NAN, [0.9], INF):
        with pytest.raises(UsageError, match=r"confidence must lie between 0 and 1, such as 0\.99\. Got "):
            as_confidence(given)  # type: ignore[arg-type]


def test_equal_values_of_a_scale_have_that_mean_exactly() -> None:
    """Of 2^22 the exponential of the logarithm is more: a bound of 2^22 would not hold."""
    for power in range(60):
        assert estimate([2.0**power] * 3, scale="log").mean == 2.0**power
    assert math.isnan(estimate([-0.5], scale="log").mean), "a negative value is on no scale"
