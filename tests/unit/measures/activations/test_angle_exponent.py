"""Slopes of the logarithms of distances."""

from __future__ import annotations

import math

import pytest

from pytest_trainability.measures.activations.angle_exponent import log_slope

FLOOR = 1e-10


def test_an_exponential_has_its_rate() -> None:
    assert log_slope([0.5 * 3.0**-index for index in range(8)], FLOOR) == pytest.approx(-math.log(3), rel=1e-12)


def test_unknown_distances_keep_their_place() -> None:
    assert log_slope([1.0, math.nan, 4.0], FLOOR) == pytest.approx(math.log(2), rel=1e-12)


def test_round_off_and_what_follows_is_left_out() -> None:
    assert log_slope([1.0, 0.1, 1e-11, 1e-2], FLOOR) == pytest.approx(-math.log(10), rel=1e-12)


@pytest.mark.parametrize("collapsed", [0.0, 1e-11, -1e-16])
def test_a_collapse_in_the_first_step_is_minus_infinity(collapsed: float) -> None:
    assert log_slope([0.5, collapsed, collapsed], FLOOR) == -math.inf
    assert log_slope([math.nan, 0.5, collapsed], FLOOR) == -math.inf


@pytest.mark.parametrize("distances", [[], [0.5], [0.5, math.nan], [0.0, 0.5, 0.5], [math.nan, math.nan]])
def test_no_two_resolved_distances_have_no_slope(distances: list[float]) -> None:
    assert math.isnan(log_slope(distances, FLOOR))
