"""The largest logit before the softmax: exact scores of one-hot tokens, and one number whichever way attention is computed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn
from towers import F64

from pytest_trainability import at_most, measure

TOKENS, WIDTH = 4, 4


def logits(model, inputs: Tensor, **options) -> dict[str, float]:
    found = measure(model, inputs, seeds=1, measures=["attention_logit_max"], **options).attention_logit_max
    return {name: float(value) for name, value in found.items()}


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


def scaled_before(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return plain(q * math.sqrt(q.shape[-1]) / 2, k, v, mask)


def einsum(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = torch.einsum("bqd,bkd->bqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bqk,bkd->bqd", torch.softmax(scores if mask is None else scores + mask, -1), v)


class Attention(nn.Module):
    """Attention with queries of a matrix, and with the tokens themselves as keys and values."""

    def __init__(self, attend: Callable[..., Tensor], weight: Tensor, mask: Tensor | None = None) -> None:
        super().__init__()
        self.query, self.attend, self.mask = nn.Parameter(weight.clone()), attend, mask

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attend(x @ self.query, x, x, self.mask)


ONE_HOT = torch.eye(TOKENS, WIDTH, dtype=F64)[None]
"""Tokens with q_i·k_j = W_ij: the logits are W / √4."""


def matrix() -> Tensor:
    W = torch.randn(TOKENS, WIDTH, dtype=F64, generator=torch.Generator().manual_seed(0))
    W[3, 0] = -50.0
    return W


def blocks(*attentions: nn.Module) -> nn.Module:
    return nn.Sequential(*attentions, nn.Linear(WIDTH, WIDTH, dtype=F64), nn.Linear(WIDTH, 1, dtype=F64))


@pytest.mark.parametrize("attend", [fused, plain, einsum, scaled_before], ids=lambda f: f.__name__)
def test_the_logits_of_one_hot_tokens_are_the_matrix(attend):
    found = logits(lambda: blocks(Attention(attend, matrix())), ONE_HOT)
    # A product of four numbers, of which three are zero. √4 = 2.
    assert found == pytest.approx({"0": 25.0}, rel=1e-12)


@pytest.mark.parametrize("attend", [fused, plain], ids=lambda f: f.__name__)
def test_masked_keys_do_not_count(attend):
    allowed = torch.ones(TOKENS, TOKENS, dtype=torch.bool)
    allowed[3, 0] = False
    rest = matrix()
    rest[3, 0] = 0
    expected = {"0": float(rest.abs().max()) / 2}
    assert logits(lambda: blocks(Attention(attend, matrix(), allowed)), ONE_HOT) == pytest.approx(expected, rel=1e-12)
    for low in (-math.inf, -1e9, float(torch.finfo(torch.float32).min)):
        added = torch.zeros(TOKENS, TOKENS, dtype=F64).masked_fill(~allowed, low)
        found = logits(lambda added=added: blocks(Attention(attend, matrix(), added)), ONE_HOT)
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("attend", [fused, plain], ids=lambda f: f.__name__)
def test_a_bias_is_a_part_of_the_logits(attend):
    """A distance bias of -8 for each position adds to the logits of 0."""
    place = torch.arange(TOKENS, dtype=F64)
    bias = -8 * (place[:, None] - place).abs()
    found = logits(lambda: blocks(Attention(attend, torch.zeros(TOKENS, WIDTH, dtype=F64), bias)), ONE_HOT)
    assert found == pytest.approx({"0": 8.0 * (TOKENS - 1)}, rel=1e-12)


def test_zero_queries_have_logits_of_zero_and_nan_stays():
    zero = torch.zeros(TOKENS, WIDTH, dtype=F64)
    assert logits(lambda: blocks(Attention(fused, zero)), ONE_HOT) == {"0": 0.0}
    assert math.isnan(logits(lambda: blocks(Attention(fused, zero + math.nan)), ONE_HOT)["0"])


def test_a_query_with_a_single_key_has_a_logit():
    """Its entropy is undefined, and such an attention is no part of that profile."""
    found = logits(lambda: blocks(Attention(plain, 6 * torch.eye(WIDTH, dtype=F64))), ONE_HOT[:, :1])
    assert found == pytest.approx({"0": 3.0}, rel=1e-12)


@pytest.mark.parametrize("attend", [fused, plain, einsum], ids=lambda f: f.__name__)
def test_the_largest_of_random_logits_over_samples(attend):
    x = torch.randn(3, TOKENS, WIDTH, dtype=F64, generator=torch.Generator().manual_seed(1))
    expected = float((x @ matrix() @ x.mT).abs().max()) / 2
    assert logits(lambda: blocks(Attention(attend, matrix())), x) == pytest.approx({"0": expected}, rel=1e-12)


def test_multi_head_attention_of_pytorch_with_and_without_weights():
    """Two heads of width 2, queries and keys of the identity times 6: the scores are 36/√2 on the diagonal."""

    class Block(nn.Module):
        def __init__(self, need_weights: bool) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, 2, bias=False, batch_first=True, dtype=F64)
            self.need_weights = need_weights
            with torch.no_grad():
                identity = torch.eye(WIDTH)
                self.attention.in_proj_weight.copy_(torch.cat([6 * identity, 6 * identity, identity]))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attention(x, x, x, need_weights=self.need_weights)[0]

    for need_weights in (True, False):
        found = logits(lambda n=need_weights: blocks(Block(n)), ONE_HOT)
        assert found == pytest.approx({"0.attention": 36 / math.sqrt(2)}, rel=1e-12)


def test_logits_that_float16_does_not_hold_fail_a_bound_in_float32():
    """The scores of one-hot tokens with queries of 150000 are 75000. Fused attention hides them from other measures."""
    model = blocks(Attention(fused, 150000 * torch.eye(WIDTH, dtype=F64)))
    result = measure(model, ONE_HOT, seeds=1, measures=["attention_logit_max"], dtype="float32")
    assert float(result.attention_logit_max["0"]) == pytest.approx(75000, rel=1e-6)
    with pytest.raises(AssertionError, match="attention_logit_max"):
        result.check(attention_logit_max=at_most(65504))
