"""The norm of a mean, estimated without bias."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import measure
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


@pytest.mark.parametrize(("dropout", "passes"), [(0.5, 1 + 32), (0.0, 2)])
def test_the_mean_is_taken_over_32_draws(dropout: float, passes: int) -> None:
    """Up to two passes show whether the modes differ at all."""
    modes = Counter[bool]()

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            modes[self.training] += 1
            return F.dropout(self.linear(x), dropout, self.training)

    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    measure(nn.Sequential(Step()), inputs, steps=Step, train=False, seeds=1, measures=["mode_gap"])
    # The measured pass is one in evaluation mode.
    assert modes == {True: passes, False: 2}
