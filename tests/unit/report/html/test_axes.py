"""Axes: where values lie, and which ticks are labelled."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from pytest_trainability.report.html.axes import SIZE, Axis, axis_of, number


@pytest.mark.parametrize(("given", "value"), [(1, 1.0), ("inf", math.inf), ("-inf", -math.inf), (0.5, 0.5)])
def test_numbers_of_the_document(given, value):
    assert number(given) == value
    assert math.isnan(number("nan")) and math.isnan(number(None))


@pytest.mark.parametrize("log", [False, True])
def test_places_keep_the_order_and_lie_inside(log):
    values = [1e-9, 3e-4, 0.1, 5.0, 200.0]
    axis = axis_of(values, log=log)
    places = [axis.place(value) for value in values]
    assert places == sorted(places, reverse=True)
    assert min(places) > 0 and max(places) < SIZE


def test_a_logarithmic_axis_is_even_in_decades():
    axis = axis_of([1e-4, 1e4], log=True)
    places = [axis.place(10.0**k) for k in range(-4, 5)]
    distances = {a - b for a, b in pairwise(places)}
    assert len(distances) == 1 or max(distances) - min(distances) == 1, "equal up to rounding"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_values_lie_beyond_all_others(value):
    axis = axis_of([1.0, 2.0, value])
    others = axis.place(1.0), axis.place(2.0)
    assert axis.place(value) < min(others) if value == math.inf else axis.place(value) > max(others)
    labels = [tick.text for tick in axis.ticks() if tick.percent == pytest.approx(axis.place(value) / 10)]
    assert labels == [str(value)]


def test_zero_has_no_place_on_a_logarithmic_axis():
    axis = axis_of([0.0, 1.0, 10.0], log=True)
    assert not axis.shows(0.0)
    assert axis.place(0.0) > axis.place(1.0)
    assert axis.below == "0"


@pytest.mark.parametrize(
    "values", [[], [0.0], [3.0, 3.0], [1e300, -1e300], [1.7e308, -1.7e308], [5e-324], [math.nan], [1e-300, 1e300]]
)
@pytest.mark.parametrize("log", [False, True])
def test_any_values_have_an_axis(values, log):
    axis = axis_of(values, log=log)
    assert math.isfinite(axis.low) and math.isfinite(axis.high) and axis.low < axis.high
    assert all(0 <= axis.place(value) <= SIZE for value in [*values, math.nan, math.inf])
    assert all(0 <= tick.percent <= 100 for tick in axis.ticks())
    assert len(axis.ticks()) <= 12


def test_noise_does_not_look_like_a_trend():
    axis = axis_of([1.0, 1.001], span=1.0)
    assert axis.high - axis.low == pytest.approx(1.0)


def test_ticks_are_round_numbers_at_their_places():
    axis = Axis(-23.0, 5.0)
    assert [tick.text for tick in axis.ticks()] == ["-20", "-10", "0"]
    assert all(tick.percent == pytest.approx(axis.place(float(tick.text)) / 10) for tick in axis.ticks())
    assert [tick.text for tick in Axis(-6.0, 2.0, log=True).ticks()] == ["10⁻⁶", "10⁻⁴", "0.01", "1", "100"]
    assert [tick.text for tick in Axis(-1.2, 0.1, log=True).ticks()] == ["0.1", "0.2", "0.5", "1"]


def test_an_axis_passes_what_lies_beyond_its_ends():
    axis = Axis(0.0, 1.0)
    assert [axis.passes(value) for value in (-0.1, 0.0, 1.0, 1.1, math.nan)] == [True, False, False, True, True]
