"""Triangular masks, and how targets belong to tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import TrainabilityFailure, measure
from pytest_trainability.measures.activations.token_targets import is_triangular, other_tokens

N = 6
MASKS = {
    "booleans": torch.ones(N, N, dtype=torch.bool).tril(),
    "turned": torch.ones(N, N, dtype=torch.bool).triu(),
    "infinities": torch.full((N, N), -math.inf).triu(1),
    "one late": torch.full((N, N), -math.inf).triu(2),
    "with a slope": torch.arange(N).repeat(N, 1).float().masked_fill(torch.ones(N, N).triu(1).bool(), -math.inf),
    "a window": torch.ones(N, N).tril().triu(-2),
    "for each head": torch.ones(2, 3, N, N).tril(),
}
OTHERS = {
    "the identity": torch.eye(N),
    "ones": torch.ones(N, N),
    "numbers": torch.randn(N, N, generator=torch.Generator().manual_seed(0)),
    "too small": torch.ones(3, 3).tril(),
    "no square": torch.ones(N, N + 1).tril(),
    "a vector": torch.ones(N),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_triangular_mask(mask: Tensor) -> None:
    assert is_triangular(mask)


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_no_triangular_mask(other: Tensor) -> None:
    assert not is_triangular(other)


def test_other_tokens_are_tokens_that_occur() -> None:
    tokens = torch.tensor([[3, 7], [7, 9]])
    others = other_tokens(tokens)
    assert bool((others != tokens).all())
    assert {*others.flatten().tolist()} <= {3, 7, 9}


class Tagger(nn.Module):
    """Scores each token with the mean of all tokens, through a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.head, self.function = nn.Embedding(9, 8), nn.Linear(8, 4), function

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.table(tokens)
        scores: Tensor = self.head(self.function(states + states.mean(1, keepdim=True)))
        return scores.flatten(0, 1)


@pytest.mark.parametrize("function", [lambda x: x * math.nan, lambda x: x / 0], ids=["not a number", "infinite"])
def test_scores_that_are_not_finite_fail_a_preset_with_their_own_message(function: Callable[[Tensor], Tensor]) -> None:
    tokens = torch.arange(16).reshape(2, 8) % 9
    result = measure(lambda: Tagger(function), tokens, seeds=1, target=tokens.flatten() % 4, loss=F.cross_entropy)
    with pytest.raises(TrainabilityFailure, match="nonfinite"):
        result.check(preset="transformer")
