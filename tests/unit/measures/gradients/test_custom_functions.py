"""Presets ask for the backward pass of custom functions, except of those that exist for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import TrainabilityFailure, measure


class Square(torch.autograd.Function):
    """Squares, with a backward pass that is right times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.factor * 2 * x * gradient, None


class Reverse(torch.autograd.Function):
    """Reverses the gradient by design."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Act(nn.Module):
    def __init__(self, factor: float | None) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return Reverse.apply(x) if self.factor is None else Square.apply(x, self.factor)


def checked(factor: float | None) -> str:
    """Return what the report of a preset says; empty if all holds."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), Act(factor), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    found = measure(build, torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), seeds=1)
    try:
        found.check(preset="mlp")
    except TrainabilityFailure as failure:
        return " ".join(str(failure).split())
    return ""


def test_a_wrong_factor_is_named_with_the_function() -> None:
    text = checked(3.0)
    assert "backward_error" in text
    assert "the backward pass of Square in 2 is not the derivative of the forward pass" in text
    assert "autograd's derivative is 3 times the finite difference" in text


@pytest.mark.parametrize("factor", [1.0, None], ids=["right", "reversed by design"])
def test_right_gradients_and_reversed_ones_hold(factor: float | None) -> None:
    assert checked(factor) == ""
