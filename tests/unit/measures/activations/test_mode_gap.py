"""The norm of a mean, estimated without bias."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_trainability.measures.activations.mode_gap import _relative, gap


def test_equal_estimates_have_their_norm() -> None:
    assert gap(torch.tensor([[3.0, 4.0]] * 8, dtype=torch.float64)) == pytest.approx(5.0)
    assert gap(torch.zeros(8, 2, dtype=torch.float64)) == 0


def test_noise_alone_is_not_significant() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [gap(torch.randn(8, 1000, generator=generator, dtype=torch.float64)) for _ in range(50)]
    assert found.count(0.0) >= 49


def test_noise_adds_no_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, 1000, generator=generator, dtype=torch.float64)
    # The squared norm is 1000; noise of variance 1 would add 1000 / 8. Its standard deviation is about √(4 · 1000 / 8) = 22.
    assert gap(noise + 1) ** 2 == pytest.approx(1000, abs=100)


def test_values_that_are_not_finite() -> None:
    assert math.isnan(gap(torch.full((8, 2), math.nan, dtype=torch.float64)))


def test_a_gap_is_relative_to_the_state() -> None:
    assert _relative([(3.0, 6.0), (4.0, 8.0)]) == pytest.approx(0.5)
    # A state of zeros in evaluation mode, and in training mode as well or not.
    assert _relative([(0.0, 0.0)]) == 0.0
    assert _relative([(1.0, 0.0)]) == math.inf
