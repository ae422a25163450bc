"""Measures that are requested together have the values that each has alone: none sees the computations of another one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.errors import InapplicableError
from pytest_trainability.measurement import Measurement
from pytest_trainability.measures import MEASURES
from pytest_trainability.records.estimates import Estimate, Names, Profile, Spectrum

WIDTH, SAMPLES, TOKENS = 6, 4, 5


class Snake(nn.Module):
    """An activation that consists of sums and products."""

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.sin(h) ** 2


class Block(nn.Module):
    """Attention, a feed-forward network, and a mixture of experts with one chosen expert."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.up, self.act, self.down = nn.Linear(WIDTH, WIDTH), Snake(), nn.Linear(WIDTH, WIDTH)
        self.router = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.down(self.act(self.up(x)))
        weights, chosen = self.router(x).softmax(-1).topk(1)
        experts = torch.stack([expert(x) for expert in self.experts], -2)
        return x + weights * experts.gather(-2, chosen[..., None].expand(*x.shape[:-1], 1, WIDTH)).squeeze(-2)


def residual() -> nn.Module:
    return nn.Sequential(*(Block() for _ in range(3)))


def measured(names: list[str]) -> Measurement:
    generator = torch.Generator().manual_seed(0)
    inputs, target = torch.randn(2, SAMPLES, TOKENS, WIDTH, generator=generator).unbind()
    options: dict[str, Any] = {"loss": F.mse_loss, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "seeds": 1}
    options["dtype"] = torch.float64
    return measure(residual, inputs, target=target, steps=Block, measures=names, **options)


def values(found: Any) -> dict[str, float]:
    """Return the values of a measure by name."""
    if isinstance(found, Estimate):
        return {"": found.values[0]}
    if isinstance(found, Profile):
        return {name: estimate.values[0] for name, estimate in found.items()}
    if isinstance(found, Spectrum):
        return {str(number): estimate.values[0] for number, estimate in enumerate(found)}
    assert isinstance(found, Names)
    return dict.fromkeys(found, 1.0)


def found_alone(name: str) -> dict[str, float] | None:
    """Return the values of a measure that is requested alone; None if it does not apply to the model."""
    try:
        return values(getattr(measured([name]), name))
    except InapplicableError:
        return None


def test_measures_do_not_see_each_other():
    alone = {name: found for name in MEASURES if (found := found_alone(name)) is not None}
    assert len(alone) > len(MEASURES) * 0.8
    assert all(alone[name] for name in ("branch_ratio", "saturated_fraction", "attention_entropy", "expert_usage"))
    together = measured(list(alone))
    for name, found in alone.items():
        # Some measures switch fused attention off, and some carry several cotangents at once, which rounds differently.
        assert values(getattr(together, name)) == pytest.approx(found, rel=1e-7, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("other", ["saturated_fraction", "dead_fraction", "sample_similarity", "attention_entropy"])
def test_sums_of_other_measures_are_not_branches(other):
    """Other measures add tensors while they try an activation or observe a tensor."""
    assert values(measured(["branch_ratio", other]).branch_ratio) == values(measured(["branch_ratio"]).branch_ratio)
