"""Averages over seeds: intervals are Student's, cover at their level, alone or as a sequence, and keep infinity and NaN."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import count, cycle
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pytest_trainability import UsageError
from pytest_trainability.checks.statistics import (
    CEILING,
    CONFIDENCE,
    DEFAULT_SEEDS,
    Level,
    as_confidence,
    as_seeds,
    estimate,
    seeds_to_settle,
)

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("count", [2, 3, 4, 8, 100])
def test_the_interval_is_that_of_student(count: int, confidence: float) -> None:
    values = np.random.default_rng(count).normal(3.0, 2.0, count)
    e = estimate(values.tolist(), level=Level(confidence))
    low, high = stats.t.interval(confidence, count - 1, loc=values.mean(), scale=stats.sem(values))
    # both are float64 arithmetic on a few numbers; two functions of scipy compute the quantiles
    assert (e.mean, e.low, e.high) == pytest.approx((values.mean(), low, high), rel=1e-9)
    assert e.values == tuple(values)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_the_interval_covers_at_its_level(scale: Any) -> None:
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


def test_log_scale_values_are_averaged_by_their_logarithms() -> None:
    e = estimate([1e-3, 1e-1], scale="log")
    assert e.mean == pytest.approx(1e-2)
    assert e.high / e.mean == pytest.approx(e.mean / e.low)
    logs = estimate([math.log(1e-3), math.log(1e-1)])
    assert (math.log(e.low), math.log(e.high)) == pytest.approx((logs.low, logs.high))
    assert e.values == (1e-3, 1e-1)
    assert e.scale == "log"


def test_a_single_seed_has_no_interval() -> None:
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
def test_infinity_and_nan_are_not_averaged_away(values: list[float], scale: Any, mean: float) -> None:
    e = estimate(values, scale=scale)
    assert e.mean == mean or (math.isnan(e.mean) and math.isnan(mean))
    assert math.isnan(e.low)
    assert math.isnan(e.high)


def test_sums_do_not_lose_small_terms() -> None:
    assert estimate([1e16, 1.0, -1e16]).mean == pytest.approx(1 / 3)


def test_a_wide_log_scale_interval_does_not_overflow() -> None:
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
def test_seeds_are_parsed(given: Any, seeds: tuple[int, ...]) -> None:
    assert as_seeds(given) == seeds


@pytest.mark.parametrize("given", [np.int64(3), np.arange(3), [np.int64(0)]], ids=repr)
def test_numpy_integers_are_seeds(given: Any) -> None:
    """Such as ``seeds=np.arange(8)``."""
    seeds = as_seeds(given)
    assert all(type(seed) is int for seed in seeds)


@pytest.mark.parametrize(
    "given",
    [0, -1, [], "", "0", "a", "1-", "-1", "3-1", "1.5", ",", "1,,2", 1.5, True, [True], [-1], [0.5], [2**63], "0-"],
)
def test_other_values_are_no_seeds(given: Any) -> None:
    with pytest.raises(UsageError, match="seeds must be"):
        as_seeds(given)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (20240101, "A single seed is [20240101]."),
        ("20240101", "A single seed is 20240101-20240101."),
        (" 20240101 ", "A single seed is 20240101-20240101."),
        (10**30, "A single seed is [N]."),
        ("1" * 4000, "A single seed is N-N."),
        (np.int64(10**15), "A single seed is [1000000000000000]."),
        ("0-10000", "Got '0-10000'."),
        ("0-1000000000000000000000000000000", "Got '0-1000000000000000000000000000000'."),
        (f"3,{2**62}-{2**63 - 1}", "in number. Got "),
        (range(10**15), "in number. Got range("),
        (count(), "in number. Got count("),
        (cycle([0]), "in number. Got <itertools.cycle"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_too_many_seeds_are_refused_at_once(given: Any, hint: str) -> None:
    """A date that is meant as a seed, or a list without an end: neither memory nor time is spent on them."""
    with pytest.raises(UsageError, match=r"^seeds must be at most 10,000 in number\. Got ") as caught:
        as_seeds(given)
    assert hint in str(caught.value)


def test_the_largest_number_of_seeds_is_accepted() -> None:
    assert as_seeds(CEILING) == as_seeds(f"0-{CEILING - 1}") == tuple(range(CEILING))


def test_confidence_lies_between_zero_and_one() -> None:
    assert as_confidence("0.9") == 0.9
    assert as_confidence(CONFIDENCE) == CONFIDENCE
    for given in (0, 1, -0.5, 99, "99%", "", None, NAN, [0.9], INF):
        with pytest.raises(UsageError, match=r"confidence must lie between 0 and 1, such as 0\.99\. Got "):
            as_confidence(given)  # type: ignore[arg-type]


def test_equal_log_scale_values_have_exactly_that_mean() -> None:
    """exp(log(2^22)) exceeds 2^22, and a bound of 2^22 would not hold."""
    for power in range(60):
        assert estimate([2.0**power] * 3, scale="log").mean == 2.0**power
    assert math.isnan(estimate([-0.5], scale="log").mean), "a negative value has no logarithm"


# Confidence sequences --------------------------------------------------------------------------------------------------


LONGEST = 64


NINETY = Level(0.9, LONGEST)


def half_widths(level: Level) -> np.ndarray:
    """Half-width in standard deviations of a sample by its size; infinite below two."""
    sizes = np.arange(2, LONGEST + 1)
    quantiles = stats.t.ppf((1 + np.array([level.at(int(n)) for n in sizes])) / 2, sizes - 1)
    return np.concatenate([[np.inf, np.inf], quantiles / np.sqrt(sizes)])


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda g, shape: g.normal(1.0, 2.0, shape), id="normal"),
        # the log gain of a random step is half the logarithm of a chi-square variable, which is skewed
        pytest.param(lambda g, shape: np.log(g.chisquare(16, shape)) / 2, id="log-chi-square"),
    ],
)
def test_the_sequence_covers_at_every_size_at_once(draw: Callable[[np.random.Generator, Any], np.ndarray]) -> None:
    """4,000 sequences of 64 values: at most a tenth may miss the mean at any size, plus four standard deviations."""
    sequences = 4000
    values = draw(np.random.default_rng(3), (sequences, LONGEST))
    mean = draw(np.random.default_rng(4), 10**6).mean()
    half = half_widths(NINETY)
    missed = np.zeros(sequences, dtype=bool)
    for n in range(2, LONGEST + 1):
        head = values[:, :n]
        missed |= np.abs(head.mean(1) - mean) > half[n] * head.std(1, ddof=1)
    alpha = 1 - NINETY.confidence
    assert missed.mean() <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / sequences)
    # and the union bound does not make the intervals useless
    assert missed.mean() > alpha / 10


def test_an_interval_of_fixed_size_would_not_cover_at_every_size() -> None:
    """A planted fault: Student's interval at each size misses the mean far more often than its level."""
    values = np.random.default_rng(3).normal(1.0, 2.0, (2000, LONGEST))
    half = half_widths(Level(0.9))
    missed = np.zeros(len(values), dtype=bool)
    for n in range(2, LONGEST + 1):
        missed |= np.abs(values[:, :n].mean(1) - 1.0) > half[n] * values[:, :n].std(1, ddof=1)
    assert missed.mean() > 0.25


def test_estimate_uses_the_level_of_its_size() -> None:
    values = [1.0, 1.5, 0.7, 1.1]
    sequence = estimate(values, level=Level(0.99, 4))
    fixed = estimate(values, level=Level(0.995))
    assert (sequence.low, sequence.high) == (fixed.low, fixed.high)


@pytest.mark.parametrize("ceiling", [2, 3, 4, 8, 100])
def test_the_error_is_spent_over_all_sizes(ceiling: int) -> None:
    level = Level(0.99, ceiling)
    assert math.fsum(1 - level.at(n) for n in range(2, ceiling + 1)) == pytest.approx(0.01)
    assert 1 - level.at(ceiling) == pytest.approx(0.005 if ceiling > 2 else 0.01)


def test_a_martingale_would_not_be_narrower() -> None:
    """With the half of the error that the looks before the last share, tuned for three seeds.

    The martingale is the scale-invariant likelihood ratio with a Gaussian mixture over the effect (Wang & Ramdas,
    arXiv:2310.03722).
    """
    level = Level(0.99, 8)
    error = (1 - level.confidence) / 2
    c2 = error / math.sqrt(3)
    for n in range(2, 8):
        q = (error**2 * c2 / (n + c2)) ** (1 / n)
        room = (n + c2) * q - c2
        martingale = math.sqrt((1 - q) * (n + c2) / room * (n - 1) / n) if room > 0 else math.inf
        assert stats.t.ppf((1 + level.at(n)) / 2, n - 1) / math.sqrt(n) < martingale


@pytest.mark.parametrize("level", [Level(0.99), Level(0.99, 8)], ids=["fixed", "sequence"])
def test_the_number_of_seeds_that_settles_a_marginal_case(level: Level) -> None:
    values = [4.0, 5.0, 4.4, 4.8]
    e = estimate(values, level=level)
    needed = seeds_to_settle(e, 5.0, level=level)
    spread = float(np.std(values, ddof=1))
    half = [stats.t.ppf((1 + level.up_to(n).at(n)) / 2, n - 1) * spread / math.sqrt(n) for n in (needed - 1, needed)]
    assert half[0] >= 5.0 - e.mean > half[1]


def test_a_level_gets_another_ceiling_only_if_it_has_one() -> None:
    assert Level(0.9, 4).up_to(10) == Level(0.9, 10)
    assert Level(0.9).up_to(10) == Level(0.9)


def test_seeds_beyond_the_ceiling_have_a_ceiling_of_their_own_number() -> None:
    """A sample of 4 that needs more seeds is drawn again with a larger ceiling, whose last look has half of the error."""
    values = [4.0, 5.0, 4.4, 4.8]
    level = Level(0.99, 4)
    needed = seeds_to_settle(estimate(values, level=level), 5.0, level=level)
    spread, distance = float(np.std(values, ddof=1)), 5.0 - float(np.mean(values))

    def half_width(count: int) -> float:
        return float(stats.t.ppf(1 - 0.01 / 4, count - 1)) * spread / math.sqrt(count)

    assert needed > 4
    assert half_width(int(needed) - 1) >= distance > half_width(int(needed))


@pytest.mark.parametrize("elements", [1, 5])
def test_elements_share_the_error_and_keep_the_ceiling(elements: int) -> None:
    shared = Level(0.99, 8).shared(elements)
    assert 1 - shared.confidence == pytest.approx(0.01 / elements)
    assert shared.ceiling == 8


def test_no_number_of_seeds_settles_a_mean_on_the_end() -> None:
    assert seeds_to_settle(estimate([4.0, 6.0]), 5.0, level=Level()) == math.inf


def test_the_distance_of_log_scale_values_is_logarithmic() -> None:
    logs = [math.log(v) for v in (1e-6, 3e-6, 2e-6)]
    linear = seeds_to_settle(estimate(logs), math.log(1e-6), level=Level())
    scaled = seeds_to_settle(estimate([1e-6, 3e-6, 2e-6], scale="log"), 1e-6, level=Level())
    assert scaled == linear


@pytest.mark.parametrize("value", [2.0**22, 0.3, 1.1, 1e-7])
def test_the_geometric_mean_of_equal_values_is_their_value(value: float) -> None:
    """The exponential of a logarithm differs by round-off, and a bound that equals the value would not hold."""
    assert estimate([value] * 3, scale="log").mean == value
