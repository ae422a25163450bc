"""The entropy of expert choices, and the recognition of routers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.measures.activations.routing import usage_entropy


@pytest.mark.parametrize(
    ("counts", "tokens", "expected"),
    [
        ([5, 5, 5, 5], 20, 1.0),
        ([20, 0, 0, 0], 20, 0.0),
        ([10, 10, 0, 0], 20, 0.5),
        # Two experts per token: all choose the same two, or each expert gets as many.
        ([20, 20, 0, 0], 20, 0.0),
        ([10, 10, 10, 10], 20, 1.0),
        ([0, 0, 0, 0], 20, math.nan),
        ([0, 0], 0, math.nan),
        # Every token chooses all experts.
        ([20, 20], 20, math.nan),
    ],
)
def test_usage_entropy(counts: list[int], tokens: int, expected: float) -> None:
    found = usage_entropy(torch.tensor(counts), tokens)
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


class Mixture(nn.Module):
    """Four experts, of which each token chooses two."""

    def __init__(self, *, gated: bool = True, used: bool = True) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.experts = nn.Parameter(torch.randn(4, 8, 8) / 3)
        self.gated, self.used = gated, used

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        values, indices = scores.topk(2, dim=-1)
        weights = values.softmax(-1) if self.gated else values
        if not self.used:
            return x + scores.sum()
        mixed = torch.einsum("bi,bkij->bkj", x, self.experts[indices])
        return x + (weights.unsqueeze(-1) * mixed).sum(1)


def usage(**options: bool) -> dict[str, float]:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    result = measure(lambda: nn.Sequential(*[Mixture(**options) for _ in range(3)]), x, seeds=1, steps=Mixture)
    return {name: e.mean for name, e in result.expert_usage.items()}


def test_a_router_is_named_for_its_module_and_counted_once() -> None:
    found = usage()
    assert list(found) == ["0", "1", "2"]
    assert all(0 < value <= 1 for value in found.values())


def test_a_collapsed_router_has_an_entropy_of_zero() -> None:
    def collapsed() -> nn.Module:
        model = nn.Sequential(*[Mixture() for _ in range(3)])
        for mixture in model:
            nn.init.constant_(mixture.router.bias[0:2], 100.0)
        return model

    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    result = measure(collapsed, x, seeds=1, steps=Mixture)
    assert [e.mean for e in result.expert_usage.values()] == [0, 0, 0]


def test_choices_without_gate_or_effect_are_not_routers() -> None:
    assert usage(gated=False) == {}
    assert usage(used=False) == {}
