"""Optimizer steps on one batch: updates, and the loss."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import InapplicableError, measure

X = torch.tensor([[1.0]], dtype=torch.float64)
SGD = partial(torch.optim.SGD, lr=0.25)


class Chain(nn.Module):
    """``x · a · b · …`` of scalar factors."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1, 1, bias=False).double() for _ in factors)
        for layer, factor in zip(self.layers, factors):
            nn.init.constant_(layer.weight, factor)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def half_square(output: Tensor) -> Tensor:
    return output.square().sum() / 2


def test_an_update_of_gradient_descent_is_rate_times_gradient() -> None:
    """The loss is ``(2 x)² / 2`` with the gradient 2 at x = 1: the weight 2 changes by 0.25 · 2."""
    found = measure(Chain(2.0), X, loss=half_square, optimizer=SGD).update_ratio
    assert found["layers.0.weight"].mean == pytest.approx(0.25)


def test_a_step_to_infinity_has_no_ratio() -> None:
    found = measure(Chain(2.0), X, loss=half_square, optimizer=partial(torch.optim.SGD, lr=math.inf)).update_ratio
    assert math.isnan(found["layers.0.weight"].mean)


def test_a_zero_parameter_has_no_ratio() -> None:
    assert set(measure(Chain(0.0, 2.0), X, loss=half_square, optimizer=SGD).update_ratio) == {"layers.1.weight"}


def test_the_loss_drop_of_gradient_descent_on_a_quadratic() -> None:
    """Each step multiplies the weight by 1 - 0.25, and the loss by its square."""
    found = measure(Chain(2.0), X, loss=half_square, optimizer=SGD).loss_drop
    assert found.mean == pytest.approx(1 - 0.75**20)


def test_the_loss_drop_is_nan_if_a_step_is_not_finite() -> None:
    found = measure(Chain(2.0), X, loss=half_square, optimizer=partial(torch.optim.SGD, lr=math.inf)).loss_drop
    assert math.isnan(found.mean)


def test_inapplicable_runs_are_refused() -> None:
    with pytest.raises(InapplicableError, match="loss_drop needs a loss"):
        _ = measure(Chain(2.0), X).loss_drop
    frozen = Chain(2.0).requires_grad_(requires_grad=False)
    with pytest.raises(InapplicableError, match="loss_drop needs parameters to train"):
        _ = measure(frozen, X, loss=half_square).loss_drop


def test_the_model_is_left_unchanged() -> None:
    model = Chain(2.0, 0.0)
    measure(model, X, loss=torch.sum, optimizer=SGD, measures=["update_ratio", "waking_step", "loss_drop"])
    assert [float(p.detach()) for p in model.parameters()] == [2.0, 0.0]
    assert all(p.grad is None for p in model.parameters())
