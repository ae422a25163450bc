"""The size of states along the chain."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import measure


def scaled(*factors: float) -> nn.Module:
    """Return layers that multiply by constants."""
    layers = [nn.Linear(4, 4, bias=False).double() for _ in factors]
    for layer, factor in zip(layers, factors):
        layer.weight.data.copy_(factor * torch.eye(4))
    return nn.Sequential(*layers)


X = torch.full((3, 4), 2.0, dtype=torch.float64)


def test_the_rms_of_each_state() -> None:
    found = measure(scaled(3.0, -0.5), X).activation_rms
    assert {name: e.mean for name, e in found.items()} == pytest.approx({"input": 2.0, "0": 6.0, "1": 3.0})


def test_the_forward_log_gain_compares_the_last_state_with_the_first() -> None:
    assert measure(scaled(3.0, -0.5), X).forward_log_gain.mean == pytest.approx(math.log(1.5))


@pytest.mark.parametrize(
    ("factors", "inputs", "expected"),
    [((2.0, 0.0), X, -math.inf), ((2.0, 2.0), 0 * X, math.nan), ((2.0, math.nan), X, math.nan)],
    ids=["vanishing", "zero input", "nan"],
)
def test_degenerate_gains(factors: tuple[float, ...], inputs: Tensor, expected: float) -> None:
    found = measure(scaled(*factors), inputs).forward_log_gain.values
    assert found == pytest.approx((expected,), nan_ok=True)


def test_skip_connections_belong_to_the_state() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = scaled(1.0)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    found = measure(nn.Sequential(Residual(), Residual(), Residual()), X).activation_rms
    assert [e.mean for e in found.values()] == pytest.approx([2.0, 4.0, 8.0, 16.0])
