"""The learning rate at which the first step replaces the parameters, and what multiplies the gradient where it is tiny."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from pytest_trainability import TrainabilityFailure, at_least, measure
from pytest_trainability.checks.presets import PRESETS
from pytest_trainability.errors import InapplicableError

X = torch.tensor([[3.0, 4.0]], dtype=torch.float64)


def linear(weight: float = 2.0) -> nn.Module:
    layer = nn.Linear(2, 1, bias=False).double()
    nn.init.constant_(layer.weight, weight)
    return layer


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e12])
def test_a_linear_model_has_the_ratio_of_weight_and_input(scale: float) -> None:
    """``c w · x`` has the gradient ``c x``: the rate is ``‖w‖ / (c ‖x‖) = √8 / (5 c)``, to the precision of float64."""
    found = measure(linear(), X, loss=lambda y: scale * y.sum()).largest_learning_rate.mean
    assert found == pytest.approx(math.sqrt(8) / (5 * scale), rel=1e-12)


def test_all_parameters_count_together() -> None:
    """Weights 2, 2 and a bias 0 with the gradients 3, 4 and 1: √8 / √26."""
    layer = nn.Linear(2, 1).double()
    nn.init.constant_(layer.weight, 2.0)
    nn.init.zeros_(layer.bias)
    layer.frozen = nn.Parameter(torch.full((9,), 1e9), requires_grad=False)
    assert measure(layer, X, loss=Tensor.sum).largest_learning_rate.mean == pytest.approx(math.sqrt(8 / 26), rel=1e-12)


def test_without_a_gradient_every_rate_is_possible() -> None:
    assert measure(linear(), X, loss=lambda y: 0 * y.sum()).largest_learning_rate.mean == math.inf


@pytest.mark.parametrize(("weight", "scale"), [(0.0, 1.0), (2.0, math.inf)], ids=["zero", "not finite"])
def test_zero_parameters_and_infinite_gradients_have_no_rate(weight: float, scale: float) -> None:
    with pytest.raises(InapplicableError, match="largest_learning_rate needs"):
        _ = measure(linear(weight), X, loss=lambda y: scale * y.sum()).largest_learning_rate


# Causes -----------------------------------------------------------------------------------------------------------
class Policy(nn.Module):
    """Returns the log-probability of a target under a Gaussian around the prediction."""

    def __init__(self, deviation: Callable[[Any, Tensor], Tensor], start: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh())
        self.mean, self.spread = nn.Linear(16, 2), nn.Linear(16, 2)
        nn.init.constant_(self.spread.bias, start)
        self.start = nn.Parameter(torch.full((2,), start))
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        normal: Any = Normal(self.mean(h), self.deviation(self, h))
        found: Tensor = normal.log_prob(x[:, :2]).sum(-1)
        return found


def failed(model: Callable[[], nn.Module], loss: Callable[[Tensor], Tensor]) -> tuple[str, list[str]]:
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    found = measure(model, x, loss=loss, seeds=2)
    with pytest.raises(TrainabilityFailure) as raised:
        found.check(largest_learning_rate=PRESETS["mlp"]["largest_learning_rate"])
    return " ".join(str(raised.value).split()), [cure.text for cure in found.cures()]


def negative_mean(log_probability: Tensor) -> Tensor:
    return -log_probability.mean()


def test_the_logarithm_of_a_tiny_deviation_is_named_with_its_value() -> None:
    """A deviation of exp(-20) gives gradients of 1/(2σ²) = exp(40)/2 = 1.18e17."""
    text, cures = failed(lambda: Policy(lambda model, h: model.start.exp().expand(len(h), 2), -20.0), negative_mean)
    assert "Div in Policy multiplies the gradient by 1.18e+17" in text
    assert "its divisor comes from start, which is -20, through Exp × Pow × Mul" in text
    assert cures == ["nn.init.constant_(start, 0)"]


def test_the_bias_of_a_layer_that_computes_a_deviation_is_named() -> None:
    text, _ = failed(lambda: Policy(lambda model, h: model.spread(h).exp(), -20.0), negative_mean)
    assert "its divisor comes from spread.bias, which is -20, through the layer" in text


def test_a_constant_of_the_loss_is_named_without_a_parameter() -> None:
    text, cures = failed(lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh()), lambda y: (1e12 * y.square()).mean())
    assert "Mul in the loss multiplies the gradient by 1e+12" in text
    assert not cures


def test_a_usual_deviation_holds() -> None:
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    found = measure(lambda: Policy(lambda model, h: model.start.exp().expand(len(h), 2), -2.0), x, loss=negative_mean)
    found.check(largest_learning_rate=at_least(1e-3))
