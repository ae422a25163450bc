"""Families of models by their size, for tests of size sweeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Scaled(nn.Module):
    """``factor · x``, by a weight."""

    def __init__(self, factor: float, size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(factor * torch.eye(size))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def scaled(*factors: float) -> nn.Module:
    """Multiply by one factor after the other."""
    return nn.Sequential(*[Scaled(factor) for factor in factors])


def perceptron(width: int) -> nn.Module:
    """Two hidden layers of a width, for inputs of six entries."""
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))


def vectors(generator: torch.Generator) -> Tensor:
    """Draw four inputs of six entries."""
    return torch.randn(4, 6, generator=generator)


ONES = torch.ones(2, 3)
