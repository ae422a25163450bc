"""Start here: the gradient of plain towers shrinks with depth, and two remedies.

Run this file with `pytest examples/test_1_towers.py`, add `-v` to see every bound.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import Measurement, at_least, within

DEPTH, WIDTH = 40, 128


def tanh_tower() -> nn.Module:
    """Return 40 tanh layers at the edge of chaos: weights of variance 1 / fan-in, and zero biases."""
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        linear = nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(linear.weight, std=1 / math.sqrt(WIDTH))
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """`x + tanh(W x) / sqrt(depth)`: a perturbation of the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.tanh = nn.Tanh()
        nn.init.normal_(self.linear.weight, std=1 / math.sqrt(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.tanh(self.linear(x)) / math.sqrt(DEPTH)


def residual_tower() -> nn.Module:
    """Return the same tower with residual connections."""
    return nn.Sequential(*[Residual() for _ in range(DEPTH)])


def sigmoid_tower() -> nn.Module:
    """Return 20 sigmoid layers with PyTorch's default initialization."""
    return nn.Sequential(*[layer for _ in range(20) for layer in (nn.Linear(WIDTH, WIDTH), nn.Sigmoid())])


# One bound, in the marker. The test fails if the bound does not hold for the models that it measures.
@pytest.mark.trainability(lyapunov_max=within(0.1))
def test_edge_of_chaos(trainability):
    trainability(tanh_tower, torch.randn(8, WIDTH))


# The numbers in plain asserts.
def test_skips_flatten(trainability):
    """The exponents of a residual tower are perturbations of those of the identity, which are all 0 (Borkar 2026)."""
    plain: Measurement = trainability(tanh_tower, torch.randn(8, WIDTH), exponents=8, name="plain")
    residual: Measurement = trainability(residual_tower, torch.randn(8, WIDTH), exponents=8, name="residual")

    def spread(tower: Measurement) -> float:
        return tower.lyapunov_spectrum[0] - tower.lyapunov_spectrum[-1]

    residual.check(lyapunov_spectrum=within(0.05), gradient_norm=at_least(1e-4))
    assert spread(residual) < spread(plain) / 2


def test_sigmoid_keeps_a_quarter(trainability):
    """The slope of a sigmoid is at most 1/4. So 20 layers keep less than 0.25^20 of the gradient."""
    tower = trainability(sigmoid_tower, torch.randn(8, WIDTH))
    assert tower.log_gain < 20 * math.log(0.25)


# A failing test.
@pytest.mark.broken_on_purpose
@pytest.mark.trainability(log_gain=within(5), gradient_norm=at_least(1e-6))
def test_sigmoid_tower(trainability):
    trainability(sigmoid_tower, torch.randn(8, WIDTH))
