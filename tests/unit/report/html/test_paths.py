"""Paths: what is drawn is what was given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from svg import drawn

from pytest_trainability.report.html.paths import area, dots, line, rectangles, uprights

WHOLE = st.integers(-2000, 2000)
POINTS = st.lists(st.tuples(WHOLE, WHOLE), min_size=1, max_size=20)


@given(POINTS)
def test_a_line_goes_through_its_points(points):
    found = drawn(line(points))
    assert found == [points if len(points) > 1 else points * 2]


@given(POINTS)
def test_dots_lie_at_their_points(points):
    assert [part[0] for part in drawn(dots(points))] == points


@given(st.lists(st.tuples(WHOLE, WHOLE, WHOLE), min_size=2, max_size=9))
def test_an_area_goes_there_and_back(edges):
    there = [(x, one) for x, one, _ in edges]
    back = [(x, other) for x, _, other in reversed(edges)]
    assert drawn(area(edges)) == [there + back]


def test_gaps_separate_lines_and_areas():
    assert drawn(line([None, (0, 1), (1, 2), None, (5, 6), None])) == [[(0, 1), (1, 2)], [(5, 6), (5, 6)]]
    assert len(drawn(area([(0, 1, 2), None, (3, 4, 5)]))) == 2


def test_nothing_draws_nothing():
    assert [line([]), line([None]), dots([]), area([None]), uprights([]), rectangles([])] == [""] * 6


def test_uprights_and_rectangles():
    assert drawn(uprights([(1, 5, 2), (3, -1, 4)])) == [[(1, 5), (1, 2)], [(3, -1), (3, 4)]]
    assert drawn(rectangles([(1, -2, 3, 4)])) == [[(1, -2), (4, -2), (4, 2), (1, 2)]]
