"""Nodes whose backward pass returns zeros, as the reason why parameters get no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  its own name

from pytest_trainability import TrainabilityFailure, at_most, measure

X = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))


class Rounded(torch.autograd.Function):
    """Rounding to signs whose backward pass keeps the gradient inside an interval, or outside of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inside: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.inside = inside
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * ((x.abs() <= 1) if ctx.inside else (x.abs() > 1)), None


class Quantized(nn.Linear):
    """A layer whose weights are rounded before use."""

    def __init__(self, rounded: Callable[[Tensor], Tensor]) -> None:
        super().__init__(16, 16)
        self.rounded = rounded

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.rounded(self.weight), self.bias)


def net(rounded: Callable[[Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), Quantized(rounded), Quantized(rounded), nn.Linear(16, 1))


def why(rounded: Callable[[Tensor], Tensor]) -> str:
    with pytest.raises(TrainabilityFailure) as raised:
        measure(lambda: net(rounded), X, seeds=2, loss=lambda y: y.square().mean()).check(asleep_parameters=at_most(0))
    return " ".join(str(raised.value).split())


# Fewer than ten units may be dead by chance.
def test_the_custom_function_is_named_with_the_parameters() -> None:
    said = "Rounded.backward returns zeros for *.weight (2), although the gradient that arrives is not zero"
    assert said in why(lambda w: Rounded.apply(w, False))


def test_an_operation_of_pytorch_is_named_with_its_module() -> None:
    text = why(torch.sign)
    for index in (1, 2):
        said = f"Sign in {index} (Quantized) passes no gradient for {index}.weight, although the gradient that arrives"
        assert said in text


def test_a_backward_pass_that_returns_the_gradient_is_not_named() -> None:
    result = measure(lambda: net(lambda w: Rounded.apply(w, True)), X, seeds=2, loss=lambda y: y.square().mean())
    assert not result.asleep_parameters.names
