"""What follows from the moments of a tensor."""

from __future__ import annotations

import math

import pytest

from pytest_trainability.records.tensors import TensorStatistics


def test_sizes_follow_from_the_moments() -> None:
    """The entries are -1, 1, 1, 7 and one that is not finite."""
    found = TensorStatistics(5, 1, 0, mean=2.0, variance=9.0, fourth=177.0, low=-1.0, high=7.0)
    assert (found.finite, found.std, found.largest) == (4, 3.0, 7.0)
    assert found.rms == pytest.approx(math.sqrt(13))
    assert found.kurtosis == pytest.approx(177 / 81)
    assert not found.is_constant


def test_the_largest_magnitude_may_be_negative() -> None:
    assert TensorStatistics(2, 0, 0, 0.0, 4.0, 16.0, -3.0, 1.0).largest == 3


def test_a_constant_has_no_kurtosis() -> None:
    found = TensorStatistics(3, 0, 0, 2.0, 0.0, 0.0, 2.0, 2.0)
    assert found.is_constant
    assert (found.rms, found.std) == (2.0, 0.0)
    assert math.isnan(found.kurtosis)
    assert not TensorStatistics(3, 1, 0, 2.0, 0.0, 0.0, 2.0, 2.0).is_constant


def test_a_variance_whose_square_underflows_has_no_kurtosis() -> None:
    assert math.isnan(TensorStatistics(2, 0, 0, 0.0, 1e-170, 0.0, -1e-85, 1e-85).kurtosis)
