"""Bounds that values over seeds support."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import t

from pytest_trainability.checks.statistics import Level, prediction_interval
from pytest_trainability.checks.suggestions import AT_LEAST, AT_MOST, LEFT_OUT, SHARES, sides_of, supported_ends
from pytest_trainability.measures import MEASURES

LEVEL = Level(0.99)


def of_scalar(values: list[float]) -> list[list[float]]:
    return [[value] for value in values]


def test_two_ends_are_the_prediction_interval_with_the_tolerance_rounded_outwards() -> None:
    values = [-0.31, -0.12, -0.18, -0.05]
    spread = float(np.std(values, ddof=1))
    half = float(t.ppf(0.995, 3)) * spread * math.sqrt(1 + 1 / 4) + 0.3
    found = supported_ends("log_gain", of_scalar(values), sides="both", tolerance=0.3, level=LEVEL)
    assert isinstance(found, tuple)
    low, high = found
    mean = float(np.mean(values))
    assert low is not None and high is not None
    assert low <= mean - half and mean + half <= high
    # Two significant digits.
    assert low == -1.2 and high == pytest.approx(mean + half, abs=0.01)
    assert (low, high) == (float(f"{low:.2g}"), float(f"{high:.2g}"))


def test_one_end_has_the_whole_error() -> None:
    values = [0.2, 0.3, 0.25, 0.28, 0.22]
    _, half = prediction_interval(values, 0.98)
    assert half == pytest.approx(float(t.ppf(0.99, 4)) * float(np.std(values, ddof=1)) * math.sqrt(1.2), rel=1e-12)
    found = supported_ends("excess_loss", of_scalar(values), sides="high", level=LEVEL)
    assert found == (None, math.ceil(100 * (0.25 + half)) / 100)


def test_a_log_scale_measure_is_treated_by_its_logarithms() -> None:
    values = [1e-5, 2e-5, 4e-5]
    mean, half = prediction_interval([math.log(value) for value in values], 0.98)
    found = supported_ends("gradient_norm", of_scalar(values), sides="low", scale="log", tolerance=0.3, level=LEVEL)
    assert isinstance(found, tuple) and found[0] is not None and found[1] is None
    exact = math.exp(mean - half - 0.3)
    assert 0.9 * exact < found[0] <= exact


def test_a_profile_is_bounded_by_the_extreme_elements_of_each_seed() -> None:
    draws = [[1.0, 5.0], [5.2, 1.1], [0.9, 5.1]]
    lows = supported_ends("m", of_scalar([1.0, 1.1, 0.9]), sides="both", level=LEVEL)
    highs = supported_ends("m", of_scalar([5.0, 5.2, 5.1]), sides="both", level=LEVEL)
    assert isinstance(lows, tuple) and isinstance(highs, tuple)
    assert supported_ends("m", draws, sides="both", level=LEVEL) == (lows[0], highs[1])


@pytest.mark.parametrize(
    ("measure", "values", "sides", "scale", "reason"),
    [
        ("log_gain", [1.0, math.nan, 2.0], "both", "linear", "its values are finite on 2 of 3 seeds"),
        ("log_gain", [-math.inf, 1.0, 2.0], "both", "linear", "its values are finite on 2 of 3 seeds"),
        ("gradient_norm", [0.0, 1.0], "low", "log", "its values are finite and positive on 1 of 2 seeds"),
        ("log_gain", [1.0], "both", "linear", "one draw has no spread"),
        ("attention_entropy", [0.1, 0.9], "low", "linear", "they support no positive bound"),
        ("dead_fraction", [0.1, 0.9], "high", "linear", "not below 1, which every model satisfies"),
    ],
)
def test_where_nothing_is_supported_the_reason_is_said(
    measure: str, values: list[float], sides: str, scale: str, reason: str
) -> None:
    found = supported_ends(measure, of_scalar(values), sides=sides, scale=scale, level=LEVEL)  # type: ignore[arg-type]
    assert isinstance(found, str) and reason in found


def test_no_element_supports_nothing() -> None:
    assert supported_ends("gradient_norm", [[], []], sides="low") == "there is nothing to judge"


def test_ranges_beyond_floats_stay_numbers() -> None:
    found = supported_ends("gradient_norm", of_scalar([1e-300, 1e300]), sides="low", scale="log")
    assert isinstance(found, tuple) and found[0] is not None and 0 < found[0] < 1e-300


@pytest.mark.parametrize("count", [3, 8])
def test_another_draw_is_covered_as_often_as_promised(count: int) -> None:
    """The interval covers a further draw with probability 0.9: 5,000 trials are within four standard deviations of it."""
    draws, trials, level = np.random.default_rng(0), 5000, 0.9
    values = draws.normal(size=(trials, count + 1))
    covered = 0
    for row in values:
        mean, half = prediction_interval([float(value) for value in row[:-1]], level)
        covered += abs(float(row[-1]) - mean) <= half
    margin = 4 * math.sqrt(level * (1 - level) / trials)
    assert abs(covered / trials - level) < margin
    assert NormalDist().cdf(4) > 0.9999


def test_sides_follow_from_what_is_unhealthy() -> None:
    assert [sides_of(name, "profile") for name in ("gradient_norm", "dead_fraction", "activation_rms")] == [
        "low",
        "high",
        "both",
    ]
    assert sides_of("unused_parameters", "names") == "high"


def test_the_tables_name_measures_and_no_measure_twice() -> None:
    assert MEASURES.keys() >= AT_LEAST | AT_MOST | LEFT_OUT
    assert not AT_LEAST & AT_MOST and not LEFT_OUT & (AT_LEAST | AT_MOST) and SHARES <= AT_MOST
