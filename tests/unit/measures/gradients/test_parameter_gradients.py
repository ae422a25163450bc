"""Norms of parameter gradients, and parameters without a gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import measure

X = torch.tensor([[3.0, 4.0]], dtype=torch.float64)


class Product(nn.Module):
    """``w · x + b``, whose gradients are x and 1."""

    def __init__(self, *, weight: float = 2.0, bias: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1).double()
        nn.init.constant_(self.layer.weight, weight)
        nn.init.constant_(self.layer.bias, bias)
        self.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def total(output: Tensor) -> Tensor:
    return output.sum()


def test_the_norm_of_a_linear_model_is_that_of_its_input() -> None:
    found = measure(Product(), X, loss=total).gradient_norm
    assert {name: e.mean for name, e in found.items()} == pytest.approx({"layer.weight": 5.0, "layer.bias": 1.0})


def test_the_relative_norm_is_divided_by_the_norm_of_the_parameter() -> None:
    found = measure(Product(), X, loss=total).relative_gradient_norm
    # ‖w‖ = √8, and the bias is zero.
    assert {name: e.mean for name, e in found.items()} == pytest.approx(
        {"layer.weight": 5 / math.sqrt(8), "layer.bias": math.inf}
    )


def test_a_zero_parameter_without_gradient_has_no_relative_norm() -> None:
    found = measure(Product(weight=0.0), 0 * X, loss=lambda output: 0 * output.sum()).relative_gradient_norm
    assert math.isnan(found["layer.weight"].mean)
    assert math.isnan(found["layer.bias"].mean)


def test_unused_parameters_are_listed_and_frozen_ones_are_not() -> None:
    result = measure(Product(), X, loss=total)
    assert list(result.unused_parameters) == ["unused"]
    assert set(result.gradient_norm) == {"layer.weight", "layer.bias"}


def test_a_used_parameter_may_have_a_gradient_of_zero() -> None:
    result = measure(Product(), 0 * X, loss=total)
    assert result.gradient_norm["layer.weight"].mean == 0
    assert list(result.unused_parameters) == ["unused"]


def test_tiny_gradients_do_not_underflow_in_the_norm() -> None:
    """The square of 1e-30 is zero in float32."""
    found = measure(Product().float(), X.float(), loss=lambda output: 1e-30 * output.sum()).gradient_norm
    assert found["layer.weight"].mean == pytest.approx(5e-30, rel=1e-6)


def test_without_a_loss_the_functional_has_unit_norm() -> None:
    """The model has one output: the functional is ± the output."""
    found = measure(Product(), X).gradient_norm
    assert found["layer.weight"].mean == pytest.approx(5.0)
