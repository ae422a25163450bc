"""Norms of many numbers, and of those whose squares float32 cannot hold."""

from __future__ import annotations

import pytest
import torch

from pytest_trainability.engine.linalg.norms import norm


@pytest.mark.parametrize("size", [1, 1000, 1024, 1025, 100_000, 20_000_000])
def test_of_many_numbers_it_is_that_of_float64(size):
    """A sum of squares in float32, one after the other, is a thousandth too small for twenty million."""
    numbers = torch.randn(size, generator=torch.Generator().manual_seed(0))
    expected = float(numbers.double().norm())
    # Blocks are summed in float32, to 1024 roundings at worst and their square root mostly; blocks err independently.
    assert float(norm(numbers)) == pytest.approx(expected, rel=4 * 2**-24, abs=0)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-20, 1e18, 1e30])
def test_at_the_ends_of_float32(scale):
    numbers = torch.linspace(-1, 1, 3000) * scale
    assert float(norm(numbers)) == pytest.approx(float(numbers.double().norm()), rel=2**-24, abs=0)


def test_what_is_not_finite_stays_so():
    numbers = torch.ones(5000)
    numbers[3] = torch.inf
    assert float(norm(numbers)) == torch.inf
    numbers[4] = torch.nan
    assert norm(numbers).isnan()
