"""The cause of a loss above chance: the head, what enters it, or a factor behind it; each brings the loss back."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import Measurement, TrainabilityFailure, at_most, measure


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def model(head: float, factor: float = 1.0, stream: float = 1.0) -> nn.Module:
    """Build a model whose scores have the standard deviation ``head * factor * stream``."""
    last = nn.Linear(64, 10)
    nn.init.normal_(last.weight, std=head / 8)
    nn.init.zeros_(last.bias)
    first = nn.Linear(64, 64)
    nn.init.orthogonal_(first.weight)
    return nn.Sequential(Times(stream), first, last, Times(factor))


def failed(**scales: float) -> tuple[Measurement, str]:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    target = torch.arange(64) % 10
    found = measure(lambda: model(**scales), x, loss=F.cross_entropy, target=target, seeds=2)
    with pytest.raises(TrainabilityFailure) as raised:
        found.check(excess_loss=at_most(2))
    return found, " ".join(str(raised.value).split())


def test_the_head_is_named_with_the_scale_that_it_needs() -> None:
    found, text = failed(head=8.0)
    # Weights of rms 1 give scores of standard deviation 8. 640 weights and 640 scores know each of them to a tenth.
    named = re.search(r"2.weight has rms (\S+) over 64 inputs; an rms of (\S+) gives", text)
    assert named is not None
    assert [float(number) for number in named.groups()] == pytest.approx([1, 1 / 8], rel=0.1)
    assert found.cures()[0].text.startswith("nn.init.normal_(model[2].weight, std=0.1")
    assert found.cures()[0].after < 1


def test_a_large_stream_is_named() -> None:
    _, text = failed(head=1.0, stream=10.0)
    assert "2 reads inputs of rms" in text


def test_a_factor_behind_the_head_is_named() -> None:
    found, text = failed(head=1.0, factor=20.0)
    assert "3 multiplies what 2 returns by 20" in text
    assert any(cure.text == "remove the factor 20 in 3" for cure in found.cures())
