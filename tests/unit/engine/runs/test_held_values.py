"""Values that leave the autograd graph are repeated in later runs."""

from __future__ import annotations

import pytest
import torch
from custom_functions import Doubled
from torch import Tensor
from torch.autograd import Function

from pytest_trainability.engine.runs.held_values import HeldValues


class Quantized(Function):
    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return g


def both(function, first: Tensor, later: Tensor) -> tuple[HeldValues, Tensor]:
    """Return the held values after two runs, and the result of the later one."""
    held = HeldValues()
    with held.first_run():
        function(first.clone().requires_grad_())
    with held.later_run():
        result = function(later.clone().requires_grad_())
    return held, result


ONE, TWO = torch.ones(3), 2 * torch.ones(3)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.detach(), ONE),
        (lambda x: x * x.detach(), TWO),
        (lambda x: x * x.sum().item(), 3 * TWO),
        (lambda x: x * (x < 2), TWO),
        (lambda x: x + 1 if x.sum() < 4 else x - 1, TWO + 1),
        (lambda x: 3 * x, 3 * TWO),
        (lambda x: Doubled.apply(x), 2 * TWO),
        (lambda x: x.max(dim=0).values, torch.tensor(2.0)),
        (lambda x: torch.zeros(3).copy_(x.detach()), ONE),
    ],
)
def test_only_values_without_a_gradient_are_held(function, expected) -> None:
    held, result = both(function, ONE, TWO)
    assert torch.equal(result.detach(), expected)
    assert not held.differs
    assert not held.quantizes


def test_values_under_no_grad_are_held() -> None:
    def function(x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = torch.zeros(3).add_(x)
        return x * scale

    assert torch.equal(both(function, ONE, TWO)[1], TWO)


def test_a_function_that_is_constant_is_recognized() -> None:
    held, _ = both(Quantized.apply, ONE, ONE + 0.1)
    assert held.quantizes
    # Other values, and equal ones, say nothing.
    assert not both(Quantized.apply, ONE, TWO)[0].quantizes
    assert not both(Quantized.apply, ONE, ONE)[0].quantizes


def test_fake_quantization_is_recognized() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, 0.5, 0, -128, 127)

    assert both(function, ONE, ONE + 0.1)[0].quantizes


def test_other_functions_are_noticed() -> None:
    calls = iter([1, 2])

    def function(x: Tensor) -> Tensor:
        for _ in range(next(calls)):
            x = x + x.detach()
        return x

    assert both(function, ONE, TWO)[0].differs
    shapes = iter([3, 2])
    assert both(lambda x: x[: next(shapes)].detach(), ONE, TWO)[0].differs


def test_custom_functions_are_as_before_afterwards() -> None:
    both(Quantized.apply, ONE, TWO)
    x = ONE.clone().requires_grad_()
    Quantized.apply(x).sum().backward()
    assert torch.equal(x.grad, ONE)
