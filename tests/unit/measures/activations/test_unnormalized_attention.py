"""Which axis the softmax of attention normalizes, in all ways in which attention is written."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import measure

WIDTH, HEADS, LENGTH = 8, 2, 6
X = torch.randn(3, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


class Mixed(nn.Module):
    """Two layers of attention, which a function computes from queries, keys and values of several heads."""

    def __init__(self, mix: Mix, std: float | None = None) -> None:
        super().__init__()
        self.mix = mix
        self.layers = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        if std is not None:
            for layer in self.layers:
                assert isinstance(layer, nn.Linear)
                nn.init.normal_(layer.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in layer(x).chunk(3, -1))
            x = x + self.mix(q, k, v).transpose(1, 2).flatten(2)
        return x


def listed(mix: Mix, std: float | None = None, x: Tensor = X, **settings: object) -> list[str]:
    return [*measure(lambda: Mixed(mix, std), x, seeds=1, **settings).unnormalized_attention]  # type: ignore[arg-type]


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / math.sqrt(q.shape[-1])


def slots(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores(q, k).softmax(-2)
    return weights / weights.sum(-1, keepdim=True) @ v


def with_mask(dim: int) -> Mix:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        return scores(q, k).masked_fill(later, -math.inf).softmax(dim) @ v

    return mix


def in_float32_with_dropout(dim: int) -> Mix:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = F.softmax(scores(q, k), dim=dim, dtype=torch.float32).to(q.dtype)
        return torch.matmul(F.dropout(weights, 0.5), v)

    return mix


def batched(dim: int) -> Mix:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.reshape(-1, LENGTH, WIDTH // HEADS) for t in (q, k, v))
        weights = torch.baddbmm(torch.zeros(1), q, k.transpose(1, 2), beta=0).softmax(dim)
        return torch.bmm(weights, v).view(-1, HEADS, LENGTH, WIDTH // HEADS)

    return mix


def transposed_scores(dim: int) -> Mix:
    """Scores with the keys first, as in SAGAN, and a product with the values first."""
    return lambda q, k, v: (v.mT @ scores(k, q).softmax(dim)).mT


def named(dim: int) -> Mix:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("bhid, bhjd -> bhij", q, k).softmax(dim)
        return torch.einsum("...ij,...jd->...id", weights, v)

    return mix


BOTH: dict[str, tuple[Callable[[int], Mix], int, int]] = {
    "plain": (lambda dim: lambda q, k, v: scores(q, k).softmax(dim) @ v, -1, -2),
    "over heads": (lambda dim: lambda q, k, v: scores(q, k).softmax(dim) @ v, 3, 1),
    "module": (lambda dim: lambda q, k, v: nn.Softmax(dim)(scores(q, k)) @ v, -1, -2),
    "with a mask": (with_mask, -1, -2),
    "with dropout": (in_float32_with_dropout, 3, 2),
    "batched": (batched, 2, 1),
    "keys first": (transposed_scores, -2, -1),
    "einsum": (named, -1, -2),
    "transposed weights": (lambda dim: lambda q, k, v: scores(k, q).softmax(dim).transpose(2, 3) @ v, -2, -1),
}


@pytest.mark.parametrize("std", [None, 0.0, 3.0], ids=["usual", "zero", "large"])
@pytest.mark.parametrize("name", BOTH)
def test_a_softmax_over_the_keys_is_healthy_and_one_over_another_axis_is_listed(name: str, std: float | None) -> None:
    """Whatever the size of weights: with zeros, all weights are 1/n over both axes. Equal lines of one module are one."""
    mix, right, wrong = BOTH[name]
    assert listed(mix(right), std) == []
    assert len(listed(mix(wrong), std)) == 1


def test_the_line_names_both_axes_as_the_product_reads_them() -> None:
    found = listed(BOTH["plain"][0](-2))
    axes = f"softmax over dimension -2 of 3 × {HEADS} × {LENGTH} × {LENGTH}, product over -1"
    assert found == [f"Mixed: {axes}"]


HEALTHY: dict[str, Mix] = {
    "fused": F.scaled_dot_product_attention,
    "slots": slots,
    "normalized by l1": lambda q, k, v: F.normalize(scores(q, k).softmax(-2), p=1, dim=-1) @ v,
    "linear attention": lambda q, k, v: q.softmax(-1) @ (k.softmax(-2).mT @ v),
    "a product of weights": lambda q, k, v: scores(q, k).softmax(-1) @ (scores(k, q).softmax(-1) @ v),
    "squared weights": lambda q, k, v: (lambda w: w @ w @ v)(scores(q, k).softmax(-1)),
    "two directions": lambda q, k, v: (lambda s: s.softmax(-1) @ v + s.softmax(-2).mT @ v)(scores(q, k)),
    "a sigmoid": lambda q, k, v: scores(q, k).sigmoid() @ v,
    "weights that are masked": lambda q, k, v: (scores(q, k).softmax(-1) * torch.ones(LENGTH, LENGTH).tril()) @ v,
    "keys that are left out": lambda q, k, v: scores(q, k).softmax(-1)[..., 1:] @ v[..., 1:, :],
    "in place": lambda q, k, v: scores(q, k).softmax(-2).detach().mul_(2.0) @ v,
}


@pytest.mark.parametrize("name", HEALTHY)
def test_other_uses_of_softmax_are_healthy(name: str) -> None:
    assert listed(HEALTHY[name]) == []


class TalkingHeads(nn.Module):
    """Attention whose weights are mixed between heads by a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.mixing = nn.Parameter(torch.eye(HEADS) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        weights = torch.einsum("bhij,hg->bgij", scores(q, k).softmax(-1), self.mixing)
        return (weights @ v).transpose(1, 2).flatten(2)


class Routed(nn.Module):
    """A softmax over tokens of what a parameter scores, as in soft mixtures of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.slots, self.expert = nn.Parameter(torch.randn(WIDTH, 4)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        logits = x @ self.slots
        return logits.softmax(-1) @ self.expert(logits.softmax(1).mT @ x)


@pytest.mark.parametrize(
    "build",
    [
        TalkingHeads,
        Routed,
        lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True),
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Softmax(1), nn.Linear(WIDTH, 2)),
    ],
    ids=["talking heads", "routed", "encoder", "a gate over positions"],
)
def test_other_models_are_healthy(build: Callable[[], nn.Module]) -> None:
    assert [*measure(build, X, seeds=1).unnormalized_attention] == []


def test_the_numbers_of_the_model_stay_as_they_are() -> None:
    """Dropout draws the same masks with the measure and without."""
    plain, also = (
        measure(lambda: Mixed(in_float32_with_dropout(-2)), X, seeds=2, measures=measures)
        for measures in (["activation_rms"], ["activation_rms", "unnormalized_attention"])
    )
    assert str(plain.activation_rms) == str(also.activation_rms)
