"""Charts: the places of values, seeds, bands, bounds and baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from documents import profile
from documents import spectrum as of_numbers
from svg import drawn

from pytest_trainability.report.html import charts
from pytest_trainability.report.html.axes import axis_of
from pytest_trainability.report.html.charts import Chart, Limits, course, gradients, heat_strip, interval, spectrum
from pytest_trainability.report.html.tables import Element, values_of

NAMES = ["a", "b", "c", "d"]


def path(chart: Chart, style: str) -> str:
    return "".join(one.path for one in chart.series if one.style == style)


def growth(rates: Mapping[str, list[float]]) -> dict[str, Element]:
    return {name: Element(sum(row) / len(row), seeds=tuple(row)) for name, row in rates.items()}


def the_course(rates, *, old=None, limits=None, leaves=None) -> Chart:
    return course(NAMES, growth(rates), growth(old or {}), limits=limits, leaves=leaves, along="depth")


def test_the_course_accumulates_from_the_last_state():
    """Growth of 1, 2, 3 and 4 nats: 10, 9, 7, 4 and 0 nats before and behind the steps."""
    chart = the_course({"a": [1.0], "b": [2.0], "c": [3.0], "d": [4.0]})
    axis = axis_of([0.0, 10.0], span=1.0)
    places = zip([0, 250, 500, 750, 1000], [10.0, 9.0, 7.0, 4.0, 0.0], strict=True)
    assert drawn(path(chart, "median")) == [[(x, axis.place(value)) for x, value in places]]
    assert path(chart, "seed") == "", "a single seed is the median"


def test_seeds_are_thin_lines_around_the_median_and_the_band():
    """Three seeds that gain 1, 2 and 6 nats per step: the median is the second one, and the band is narrower than the seeds."""
    chart = the_course({name: [1.0, 2.0, 6.0] for name in NAMES})
    axis = axis_of([0.0, 24.0], span=1.0)
    assert [part[0] for part in drawn(path(chart, "seed"))] == [(0, axis.place(v)) for v in (4.0, 8.0, 24.0)]
    assert drawn(path(chart, "median"))[0][0] == (0, axis.place(8.0))
    # 5 and 95 % lie a tenth of the way from the outer seeds to the middle one.
    edges = drawn(path(chart, "band"))[0]
    assert edges[0] == (0, axis.place(24.0 - 1.6)) and edges[-1] == (0, axis.place(4.0 + 0.4))


def test_the_bound_is_shaded_and_the_first_step_outside_marked():
    chart = the_course({name: [-3.0] for name in NAMES}, limits=Limits(-5.0, 5.0), leaves=2)
    axis = axis_of([-12.0, 0.0, -5.0, 5.0], span=1.0)
    assert {y for _, y in drawn(path(chart, "bound"))[0]} == {axis.place(5.0), axis.place(-5.0)}
    assert [(mark.percent, mark.text) for mark in chart.marks] == [(50.0, "leaves the bound at c")]
    assert chart.description.endswith("before the first, bound [-5, 5]. It leaves the bound at c.")


def test_a_bound_far_away_does_not_flatten_the_course():
    chart = the_course({name: [0.1] for name in NAMES}, limits=Limits(-1000.0, None))
    ys = [y for _, y in drawn(path(chart, "median"))[0]]
    assert max(ys) - min(ys) > 300
    assert all(y < 0 or y > 1000 for _, y in drawn(path(chart, "bound"))[0]), "no edge where there is none"


def test_the_baseline_is_drawn_on_the_same_axis():
    chart = the_course({name: [1.0] for name in NAMES}, old={name: [2.0] for name in NAMES})
    axis = axis_of([0.0, 8.0], span=1.0)
    assert drawn(path(chart, "old"))[0][0] == (0, axis.place(8.0))
    assert drawn(path(chart, "median"))[0][0] == (0, axis.place(4.0))


def test_not_finite_steps_interrupt_the_course():
    chart = the_course({"a": [1.0, 1.0], "b": [math.nan, 1.0], "c": [1.0, 1.0], "d": [1.0, 1.0]})
    assert [x for x, _ in drawn(path(chart, "median"))[0]] == [500, 750, 1000]
    assert [part[0][0] for part in drawn(path(chart, "odd"))] == [0, 250]
    assert [tick.text for tick in chart.ticks if tick.text == "nan"] == ["nan"]


def test_states_lie_behind_their_steps_and_the_input_before_the_first():
    values = values_of([profile("activation_rms", {n: [1.0] for n in ["input", *NAMES]}, "step")])["activation_rms"]
    chart = charts.profile(values, None, ["input", *NAMES], "steps", None)
    assert [x for x, _ in drawn(path(chart, "median"))[0]] == [0, 250, 500, 750, 1000]
    of_steps = values_of([profile("branch_ratio", {n: [1.0] for n in NAMES}, "step")])["branch_ratio"]
    chart = charts.profile(of_steps, None, NAMES, "steps", None)
    assert [x for x, _ in drawn(path(chart, "median"))[0]] == [125, 375, 625, 875]


def test_names_without_a_value_are_gaps():
    values = values_of([profile("entropy", {"a": [1.0], "c": [2.0], "d": [3.0]}, "step")])["entropy"]
    chart = charts.profile(values, None, NAMES, "steps", Limits(0.0, None))
    assert [[x for x, _ in part] for part in drawn(path(chart, "median"))] == [[125, 125], [625, 875]]
    assert path(chart, "odd") == "", "a missing value is no NaN"
    assert chart.description == "3 values from 1 to 3, bound ≥ 0."


def test_gradients_and_weights_share_one_logarithmic_axis():
    found = [{"a": 1e-6, "b": 1e-3}, {"a": 1e-4}, {"a": 0.02, "b": 0.0}, {"b": 0.5}]
    chart = gradients(["a", "b"], found, None)
    axis = axis_of([1e-6, 1e-3, 1e-4, 0.02, 0.0, 0.5], log=True)
    places = {
        "dot norm": [(250, 1e-6), (750, 1e-3)],
        "ring norm": [(250, 1e-4)],
        "dot rms": [(250, 0.02)],
        "ring rms": [(750, 0.5)],
    }
    for style, points in places.items():
        assert [part[0] for part in drawn(path(chart, style))] == [(x, axis.place(v)) for x, v in points]
    assert [part[0][0] for part in drawn(path(chart, "low"))] == [750], "a weight of zeros"
    assert {one.label for one in chart.legend} >= {"gradient norm", "gradient norm, baseline", "zero or negative"}


def test_a_spectrum_shows_seeds_intervals_and_baseline():
    now, old = (
        values_of([of_numbers("lyapunov_spectrum", rows)])["lyapunov_spectrum"]
        for rows in ([[1.0, 3.0], [0.0, 0.0]], [[5.0]])
    )
    chart = spectrum(now, old, Limits(None, 4.0))
    axis = axis_of([1.0, 3.0, 0.0, 5.0, 4.0])
    assert [part[0] for part in drawn(path(chart, "dot norm"))] == [(250, axis.place(2.0)), (750, axis.place(0.0))]
    assert [part[0] for part in drawn(path(chart, "ring norm"))] == [(250, axis.place(5.0))]
    assert drawn(path(chart, "span"))[0] == [(250, axis.place(3.0)), (250, axis.place(1.0))]
    assert {axis.place(4.0)} < {y for _, y in drawn(path(chart, "bound"))[0]}


@pytest.mark.parametrize(
    ("mean", "low", "high", "limits", "inside"),
    [
        (0.5, 0.4, 0.6, Limits(0.0, 1.0), True),
        (-23.0, -24.0, -22.0, Limits(-5.0, 5.0), False),
        (1e-9, 1e-10, 1e-8, Limits(1e-6, None), False),
        (7.0, math.nan, math.nan, Limits(None, 7.0), True),
        (math.inf, math.nan, math.nan, Limits(None, 7.0), False),
        (math.nan, math.nan, math.nan, Limits(-5.0, 5.0), False),
        (0.0, 0.0, 0.0, Limits(0.0, 0.0), True),
    ],
)
@pytest.mark.parametrize("log", [False, True])
def test_an_estimate_lies_inside_its_bound_where_it_holds(mean, low, high, limits, inside, log):
    series = {one.style: one.path for one in interval(Element(mean, low, high), limits, log=log).series}
    xs = [x for x, _ in drawn(series["bound"])[0]]
    at = drawn(series["dot norm"] if math.isfinite(mean) else series["odd"])[0][0][0]
    assert (min(xs) <= at <= max(xs)) == inside
    assert 0 <= at <= 1000


def test_open_ends_of_a_bound_reach_the_edge():
    series = {one.style: one.path for one in interval(Element(1.0), Limits(0.0, None), log=False).series}
    assert max(x for x, _ in drawn(series["bound"])[0]) > 1000
    assert len(drawn(series["ends"])) == 1


def test_bars_of_the_heat_strip_point_where_gradients_go():
    strip = {one.style: drawn(one.path) for one in heat_strip([0.5, -1.0, 0.0, math.nan], 1.0)}
    grows, shrinks = strip["grows"][0], strip["shrinks"][0]
    assert (min(y for _, y in grows), max(y for _, y in grows)) == (250, 500)
    assert (min(y for _, y in shrinks), max(y for _, y in shrinks)) == (500, 1000)
    assert grows[0][0] == 0 and shrinks[0][0] == 250 and strip["broken"][0][0] == (750, 0)
    assert heat_strip([], 1.0) == ()


def test_limits_as_text():
    assert [Limits(*ends).text for ends in ((-5.0, 5.0), (1e-6, None), (None, 0.9), (None, None))] == [
        *("[-5, 5]", "≥ 1e-06", "≤ 0.9", "")
    ]
    assert Limits(-0.1, None).times(10).low == -1.0
