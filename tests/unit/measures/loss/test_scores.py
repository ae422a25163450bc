"""The cause of a loss above chance: the head, what enters it, or a factor behind it; each brings the loss back."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

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


class Pairs(nn.Module):
    """Compares two views: normalized results of two towers, with similarities that something scales."""

    def __init__(
        self, scaled: Callable[[nn.Module, Tensor], Tensor], start: float = 1.0, *, own_loss: bool = False
    ) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 16))
        self.right = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 16))
        self.start = nn.Parameter(torch.tensor(start))
        self.scaled, self.own_loss = scaled, own_loss

    def forward(self, x: Tensor) -> Any:
        a, b = F.normalize(self.left(x), dim=-1), F.normalize(self.right(x), dim=-1)
        scores = self.scaled(self, a) @ b.T
        return {"loss": F.cross_entropy(scores, torch.arange(len(x)))} if self.own_loss else scores


def failed_pairs(*arguments: Any, **options: Any) -> tuple[Measurement, str]:
    x = torch.randn(32, 24, generator=torch.Generator().manual_seed(0))
    loss = None if options else lambda scores: F.cross_entropy(scores, torch.arange(len(scores)))
    found = measure(lambda: Pairs(*arguments, **options), x, loss=loss, seeds=2)
    with pytest.raises(TrainabilityFailure) as raised:
        found.check(excess_loss=at_most(2))
    return found, " ".join(str(raised.value).split())


def test_a_temperature_whose_logarithm_was_forgotten_is_named_with_the_value_to_write() -> None:
    found, text = failed_pairs(lambda model, a: model.start.exp() * a, 5.0)
    # exp(5) = 148.4, and ln(5) = 1.609.
    assert "start is 5, and its exponential, 148, multiplies them" in text
    assert found.cures()[0].text == "nn.init.constant_(start, 1.61)"


def test_a_parameter_that_divides_is_named() -> None:
    found, text = failed_pairs(lambda model, a: a / model.start, 1e-4)
    assert "start is 0.0001, and divides them" in text
    assert found.cures()[0].text.startswith("nn.init.constant_(start, 0.")
    assert found.cures()[0].after < 2


def test_a_function_of_a_parameter_is_named() -> None:
    _, text = failed_pairs(lambda model, a: a * model.start.exp().clamp(max=1000), 12.0)
    assert "start is 12, and 1e+03, which is computed from it (Exp × Clamp), multiplies them" in text


def test_a_constant_behind_a_normalization_is_named_and_removed() -> None:
    found, text = failed_pairs(lambda _, a: 500 * a)
    assert "Pairs multiplies them by 500" in text
    assert found.cures()[0].text.startswith("remove the factor 500")


def test_the_loss_of_the_model_itself_shows_what_it_reads() -> None:
    _, text = failed_pairs(lambda model, a: model.start.exp() * a, 12.0, own_loss=True)
    assert "start is 12, and its exponential, 1.63e+05, multiplies them" in text


def test_the_head_is_not_blamed_for_what_is_computed_behind_it() -> None:
    """The squares of scores of standard deviation 6 have one of about 36 √2."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))

    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model(head=6.0)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.body(x)
            return scores.square()

    found = measure(Squared, x, loss=F.cross_entropy, target=torch.arange(64) % 10, seeds=2)
    with pytest.raises(TrainabilityFailure) as raised:
        found.check(excess_loss=at_most(2))
    assert "made by Pow of what body.2 returns" in " ".join(str(raised.value).split())
