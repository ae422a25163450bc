"""Measures that are asked for together have the numbers that each has alone: none sees what another one computes."""

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
    """An activation that is made of sums and products itself."""

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.sin(h) ** 2


class Block(nn.Module):
    """Attention, a feed-forward network, and experts of which one is chosen."""

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


def asked(names: list[str]) -> Measurement:
    generator = torch.Generator().manual_seed(0)
    inputs, target = torch.randn(2, SAMPLES, TOKENS, WIDTH, generator=generator).unbind()
    options: dict[str, Any] = {"loss": F.mse_loss, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "seeds": 1}
    options["dtype"] = torch.float64
    return measure(residual, inputs, target=target, steps=Block, measures=names, **options)


def values(found: Any) -> dict[str, float]:
    """Return what a measure found, by name."""
    if isinstance(found, Estimate):
        return {"": found.values[0]}
    if isinstance(found, Profile):
        return {name: estimate.values[0] for name, estimate in found.items()}
    if isinstance(found, Spectrum):
        return {str(number): estimate.values[0] for number, estimate in enumerate(found)}
    assert isinstance(found, Names)
    return dict.fromkeys(found, 1.0)


def found_alone(name: str) -> dict[str, float] | None:
    """Return what a measure finds that nobody else is asked with; None where it does not apply."""
    try:
        return values(getattr(asked([name]), name))
    except InapplicableError:
        return None


def test_measures_do_not_see_each_other():
    alone = {name: found for name in MEASURES if (found := found_alone(name)) is not None}
    assert len(alone) > len(MEASURES) * 0.8
    assert all(alone[name] for name in ("branch_ratio", "saturated_fraction", "attention_entropy", "expert_usage"))
    together = asked(list(alone))
    for name, found in alone.items():
        # To the last bit, but that some attend without a fused kernel, and some carry several cotangents at once.
        assert values(getattr(together, name)) == pytest.approx(found, rel=1e-7, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("other", ["saturated_fraction", "dead_fraction", "sample_similarity", "attention_entropy"])
def test_sums_of_others_are_no_branches(other):
    """Those that are made while an activation is tried, or a tensor is looked at."""
    assert values(asked(["branch_ratio", other]).branch_ratio) == values(asked(["branch_ratio"]).branch_ratio)
