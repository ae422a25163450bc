"""The entropy of attention weights: masks, parts, and names."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.measures.activations import attention
from pytest_trainability.measures.activations.attention import Entropy, entropy_of

F64 = torch.float64


def test_uniform_scores_have_an_entropy_of_one() -> None:
    for value in (0.0, 3.0, -50.0):
        assert entropy_of("", torch.full((2, 3, 4), value, dtype=F64)).mean == 1.0


def test_one_dominant_key_has_an_entropy_of_zero() -> None:
    scores = torch.tensor([[1000.0, 0.0, 0.0]], dtype=F64)
    assert entropy_of("", scores[None]).mean == 0.0


def test_the_entropy_of_two_keys() -> None:
    p = 0.8
    scores = torch.tensor([[[math.log(p), math.log(1 - p)]]], dtype=F64)
    expected = -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)
    assert entropy_of("", scores).mean == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("low", [-math.inf, torch.finfo(F64).min, -1e9, -1e4])
def test_masked_keys_do_not_count(low: float) -> None:
    scores = torch.tensor([[0.0, 0.0, low], [0.0, low, low]], dtype=F64)
    found = entropy_of("", scores[None])
    # The second query has a single key.
    assert (found.mean, found.count) == (1.0, 1)


def test_a_moderate_bias_is_not_a_mask() -> None:
    scores = torch.tensor([[[0.0, -100.0]]], dtype=F64)
    assert entropy_of("", scores).count == 1


def test_no_query_with_a_choice_gives_nan() -> None:
    assert math.isnan(Entropy("").mean)
    assert math.isnan(entropy_of("", torch.zeros(1, 3, 1)).mean)


def test_a_query_with_nan_is_not_masked() -> None:
    assert math.isnan(entropy_of("", torch.tensor([[[math.nan, 0.0]]])).mean)


@pytest.mark.parametrize("at_once", [1, 7, 2**23])
def test_parts_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    scores = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    expected = entropy_of("", scores).mean
    monkeypatch.setattr(attention, "AT_ONCE", at_once)
    assert entropy_of("", scores).mean == pytest.approx(expected, rel=1e-14)


class Attend(nn.Module):
    """A projection, fused attention and attention in plain operations, both with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.layer(x)
        fused = F.scaled_dot_product_attention(q, x, x)
        weights = (q @ x.transpose(-2, -1) / 8**0.5).softmax(-1)
        return x + fused + weights @ x


def test_fused_and_plain_attention_have_the_same_entropy_and_numbered_names() -> None:
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    result = measure(lambda: nn.Sequential(Attend(), Attend(), Attend()), x, dtype="float64", seeds=1)
    found = {name: e.mean for name, e in result.attention_entropy.items()}
    names = list(found)
    assert len(names) == 6
    assert [name.partition(" ")[0].partition("[")[0] for name in names] == ["0", "0", "1", "1", "2", "2"]
    values = list(found.values())
    assert values[0::2] == pytest.approx(values[1::2], rel=1e-12)
    assert all(0 < value < 1 for value in values)


def test_a_softmax_that_multiplies_nothing_is_not_attention() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * (x @ x.transpose(-2, -1)).softmax(-1).sum(-1, keepdim=True)

    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    assert len(measure(lambda: nn.Sequential(Gate(), Gate(), Gate()), x, seeds=1).attention_entropy) == 0
