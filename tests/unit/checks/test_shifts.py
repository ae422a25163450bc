"""The test of a shift: pairs, two samples, faults, and shares of finite seeds. Baselines use it in test_baselines.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from scipy.stats import fisher_exact, ttest_1samp, ttest_ind

from pytest_trainability.checks.shifts import Sample, ShiftTest

NAN, INF = math.nan, math.inf
A = (0.31, -0.52, 0.04, 0.77, -0.23, -0.61, 0.42, -0.18)
B = (1.12, 0.73, 1.31, 0.22, 1.48, 0.93, 0.61, 1.84)


def sample(values: Sequence[float | None], *faults: int) -> Sample:
    """Return the values of seeds, some of which are faults."""
    return Sample(values, [seed in faults for seed in range(len(values))])


def pairs(count: int) -> list[tuple[int, int]]:
    return [(i, i) for i in range(count)]


def paired(old: Sequence[float | None], new: Sequence[float | None], error: float, **options) -> float | None:
    return ShiftTest(pairs(len(old)), False, 0.1, error, **options).shift(sample(old), sample(new))


def unpaired(old: Sequence[float | None], new: Sequence[float | None], error: float) -> float | None:
    return ShiftTest((), False, 0.1, error).shift(sample(old), sample(new))


def test_pairs_are_compared_by_the_t_test_of_their_differences() -> None:
    p = ttest_1samp([b - a for a, b in zip(A, B)], 0).pvalue
    assert paired(A, B, 1.01 * p) == pytest.approx(sum(B) / 8 - sum(A) / 8)
    assert paired(A, B, 0.99 * p) is None


def test_samples_of_one_size_are_compared_by_welchs_test() -> None:
    """With equal sizes, the degrees of freedom are below the cap."""
    p = ttest_ind(A, B, equal_var=False).pvalue
    assert unpaired(A, B, 1.01 * p) == pytest.approx(sum(B) / 8 - sum(A) / 8)
    assert unpaired(A, B, 0.99 * p) is None


def test_a_repeatable_shift_needs_the_tolerance_alone() -> None:
    exact = ShiftTest(pairs(2), repeatable=True, tolerance=0.1, error=0.0)
    assert exact.shift(sample([0.0, 0.0]), sample([0.2, 0.3])) == pytest.approx(0.25)
    assert exact.shift(sample([0.0, 0.0]), sample([0.1, 0.1])) is None
    # One seed alone may have passed a kink.
    assert exact.shift(sample([0.0, 0.0]), sample([0.0, 9.0])) is None


def test_elements_share_the_probability_of_a_false_alarm() -> None:
    test = ShiftTest((), False, 0.1, 0.01)
    assert test.for_each_of(5).error == pytest.approx(0.002)
    assert test.for_each_of(0).error == 0.01


def test_a_fault_on_one_side_alone_is_a_change() -> None:
    for test in (ShiftTest(pairs(2), True, 0.1, 0.0), ShiftTest((), False, 0.1, 0.0)):
        assert math.isnan(test.shift(sample([1.0, 1.0]), sample([1.0, NAN], 1)))
        assert math.isnan(test.shift(sample([1.0, NAN], 1), sample([1.0, 1.0])))
        assert test.shift(sample([1.0, NAN], 1), sample([1.0, NAN], 1)) is None


def test_only_the_seeds_of_pairs_are_compared() -> None:
    """Also their faults: that of a seed without a partner says nothing."""
    test = ShiftTest([(1, 0)], True, 0.1, 0.0)
    assert test.shift(sample([NAN, 1.0], 0), sample([1.0, 5.0])) is None
    assert test.shift(sample([1.0, 2.0]), sample([3.0])) == pytest.approx(1.0)


def test_of_a_derived_quantity_one_seed_may_become_infinite() -> None:
    old, one, two = (1.0, 1.0, 1.0), (1.0, 1.0, -INF), (1.0, -INF, -INF)
    assert paired(old, one, 1e-4, derived=True) is None
    assert math.isnan(paired(old, two, 1e-4, derived=True))
    assert math.isnan(paired(old, one, 1e-4))
    assert math.isnan(paired(old[:1], one[2:], 1e-4, derived=True))


@pytest.mark.parametrize("dead", [3, 5])
def test_shares_of_finite_seeds_are_compared_by_fishers_test(dead: int) -> None:
    new = [1.0] * (8 - dead) + [-INF] * dead
    p = fisher_exact([[8, 0], [8 - dead, dead]]).pvalue
    assert math.isnan(unpaired([1.0] * 8, new, 1.01 * p))
    assert unpaired([1.0] * 8, new, 0.99 * p) is None


def test_numbers_whose_squares_overflow_have_changed() -> None:
    assert math.isnan(paired([0.0, 0.0], [1e200, -1e300], 1e-4))
    assert math.isnan(unpaired([0.0, 1.0], [1e200, -1e300], 1e-4))


@pytest.mark.parametrize("new", [[None, None], [-INF, -INF]])
def test_without_numbers_on_a_side_there_is_no_shift(new: list[float | None]) -> None:
    assert unpaired([-INF, -INF], new, 1e-4) is None
    assert paired([-INF, -INF], new, 1e-4) is None
