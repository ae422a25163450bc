"""Least-squares lines over the size and over its logarithm."""

from __future__ import annotations

import math

import pytest

from pytest_trainability.checks.statistics import estimate
from pytest_trainability.scaling.fits import fit, is_linear_in_size, misfit, ordinates, why_no_slope


def test_ordinates_are_logarithms_of_log_scale_values_by_seed() -> None:
    log = [estimate(values, scale="log") for values in ((1.0, math.e), (math.e**2, 1.0))]
    assert ordinates(log) == [(0.0, pytest.approx(2.0)), (pytest.approx(1.0), 0.0)]
    linear = [estimate(values) for values in ((1.0, -2.0), (0.0, 3.0))]
    assert ordinates(linear) == [(1.0, 0.0), (-2.0, 3.0)]


def test_ordinates_of_values_without_a_logarithm() -> None:
    ((zero, negative),) = ordinates([estimate([0.0], scale="log"), estimate([-1.0], scale="log")])
    assert zero == -math.inf and math.isnan(negative)


def test_the_line_through_three_points() -> None:
    # ȳ = 7/3: Σ (x - 1)(y - ȳ) = 4/3 + 8/3 = 4 over Σ (x - 1)² = 2; residuals 1/3, -2/3, 1/3.
    x, y = [0.0, 1.0, 2.0], [1.0, 1.0 + 2 / 3, 5.0 - 2 / 3]
    assert fit(x, [0.0, 1.0, 5.0]) == pytest.approx(2.5)
    assert misfit(x, [0.0, 1.0, 5.0]) == pytest.approx((1 / 2) ** 2 + 1 + (1 / 2) ** 2)
    assert fit(x, y) == pytest.approx((y[2] - y[0]) / 2)
    assert misfit(x, [1.0, 3.0, 5.0]) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_has_no_slope(bad: float) -> None:
    assert math.isnan(fit([0.0, 1.0, 2.0], [0.0, bad, 2.0]))


def test_a_slope_of_large_numbers_does_not_cancel() -> None:
    """A mean of 1e15 leaves a slope of one exact."""
    assert fit([1.0, 2.0, 3.0], [1e15, 1e15 + 1, 1e15 + 2]) == 1.0


SIZES = [1, 2, 4]
# Any three values are a line over the size, plus a multiple of (2, -3, 1), which is orthogonal to constants and to the size. The
# same holds over the logarithm with (1, -2, 1). Values (0, a, 1) have residuals of squares 14 c² with c = (1 - 3a) / 14 there,
# and 6 d² with d = (1 - 2a) / 6 here, so that their ratio is 3 (1 - 3a)² / (7 (1 - 2a)²).


def ratio(a: float) -> float:
    return 3 * (1 - 3 * a) ** 2 / (7 * (1 - 2 * a) ** 2)


@pytest.mark.parametrize("a", [0.0, 0.1, 0.2, 0.3, 0.4, 1.0])
def test_the_ratio_of_misfits_is_known(a: float) -> None:
    y = [0.0, a, 1.0]
    assert misfit(SIZES, y) / misfit([math.log(size) for size in SIZES], y) == pytest.approx(ratio(a))


@pytest.mark.parametrize(("a", "linear"), [(0.155, False), (0.165, True), (1 / 3, True), (0.5, False), (0.0, False)])
def test_a_line_over_the_size_must_leave_a_quarter_of_the_squares_or_less(a: float, linear: bool) -> None:
    """The ratios of the first two, 0.257 and 0.243, lie on either side of a quarter."""
    assert is_linear_in_size(SIZES, [0.0, a, 1.0]) is linear


def test_values_that_are_both_lines_count_as_linear() -> None:
    assert is_linear_in_size(SIZES, [1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("values", "scale", "word"),
    [
        ((1.0, 2.0), "log", ""),
        ((0.0, -2.0), "linear", ""),
        ((1.0, 0.0), "log", "zero"),
        ((1.0, math.nan), "log", "not a number"),
        ((math.inf, math.nan), "linear", "not a number"),
        ((1.0, -math.inf), "linear", "infinite"),
        ((0.0, math.inf), "log", "infinite"),
    ],
)
def test_the_word_for_a_value_without_slope(values: tuple[float, ...], scale: str, word: str) -> None:
    assert why_no_slope(estimate(values, scale=scale)) == word  # type: ignore[arg-type]
