"""Values of measures in baselines: which elements count, and from which size. Comparisons are in test_baselines.py."""

from __future__ import annotations

import math

import pytest

from pytest_trainability.checks.baseline_values import EPSILON, NameSet, Series, are_faults, name_changes
from pytest_trainability.checks.shifts import ShiftTest

SAME = ShiftTest([(0, 0), (1, 1)], repeatable=True, tolerance=0.1, error=1e-4)


def test_names_that_have_vanished_come_before_new_ones_and_both_are_sorted() -> None:
    changes = [(c.kind, c.elements) for c in name_changes("parts", {"b", "a"}, {"d", "c"})]
    assert changes == [("vanished", ("a", "b")), ("new", ("c", "d"))]
    assert list(name_changes("parts", (), ())) == []
    (change,) = NameSet(("a", "b")).changes_from(NameSet(("b",)), measure="parts")
    assert (change.kind, change.elements) == ("new", ("a",))


def test_an_element_that_a_seed_lacks_is_not_on_every_seed() -> None:
    assert Series("nats", "linear", {"a": (1.0, None), "b": (1.0, math.nan)}).on_every_seed() == {"b"}


@pytest.mark.parametrize("dtype", sorted(EPSILON))
def test_round_off_is_that_of_the_largest_finite_element(dtype: str) -> None:
    profile = {"a": (1e-9, math.inf), "b": (3.0, None)}
    assert Series("", "log", profile).round_off(dtype) == pytest.approx(30 * EPSILON[dtype])
    assert Series("", "linear", profile).round_off(dtype) == 0
    assert Series("", "log", {"": (3.0, 3.0)}).round_off(dtype) == 0


def test_faults_are_nan_and_infinity_where_they_are_none_of_chance() -> None:
    row = (1.0, math.nan, math.inf, -math.inf, None)
    assert are_faults(row, [True] * 5) == [False, True, True, False, False]
    assert are_faults(row, [False] * 5) == [False] * 5


@pytest.mark.parametrize(("new", "shift"), [(1.05, None), (2.0, math.log(2)), (0.5, -math.log(2))])
def test_a_log_scale_measure_moves_by_its_ratio(new: float, shift: float | None) -> None:
    before, after = (Series("", "log", {"w": (value, value)}) for value in (1.0, new))
    found = after.changes_from(
        before, measure="norm", test=SAME, floors=(0.0, 0.0), faulty=([True] * 2, [True] * 2), in_order=False
    )
    assert [change.shift for change in found] == ([] if shift is None else [pytest.approx(shift)])
