"""What a baseline says of a gradient that is cut between modules, of another output, and of custom functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import compare, measure

X = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))


class Autoencoder(nn.Module):
    """An encoder whose code is drawn, and a decoder that reads it. The loss also depends on the code without the decoder."""

    def __init__(self, draw: str) -> None:
        super().__init__()
        self.draw = draw
        self.encoder = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12))
        self.decoder = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12))

    def forward(self, x: Tensor) -> Tensor:
        code = self.encoder(x)
        normal = torch.distributions.Normal(code, torch.ones_like(code))
        drawn = normal.rsample() if self.draw == "rsample" else normal.sample()
        return torch.cat([self.decoder(drawn), code], 1)


class Game(nn.Module):
    """A generator and a judge of what it makes, with or without a gradient between them."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.generator = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh())
        self.judge = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        made = self.generator(x)
        return self.judge(made.detach() if self.cut else made)


class Critic(nn.Module):
    """Values with or without a last dimension of one, which a loss broadcasts against returns."""

    def __init__(self, squeezes: bool) -> None:
        super().__init__()
        self.squeezes = squeezes
        self.body = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        value = self.body(x)
        return value.squeeze(-1) if self.squeezes else value


def mean_square(output: Tensor) -> Tensor:
    return output.square().mean()


def against_returns(values: Tensor) -> Tensor:
    return (values - torch.linspace(-1, 1, 16)).square().mean()


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Any, tuple[str, ...]]] = {
    "a draw without gradient": (
        partial(Autoencoder, "rsample"),
        partial(Autoencoder, "sample"),
        mean_square,
        ("gradient path no gradient passes into decoder.0 any longer",),
    ),
    "a detach between two parts": (
        partial(Game, cut=False),
        partial(Game, cut=True),
        mean_square,
        (
            "gradient path no gradient passes into judge.0 any longer",
            "4 parameters get no gradient now: generator.*.bias (2), generator.*.weight (2)",
        ),
    ),
    "a dimension of one": (
        partial(Critic, squeezes=True),
        partial(Critic, squeezes=False),
        against_returns,
        ("output shape (16,) → (16, 1)", "settings Critic: squeeze(body.2, dim=-1) gone"),
    ),
}


@pytest.mark.parametrize(("healthy", "faulty", "loss", "said"), CASES.values(), ids=CASES.keys())
def test_a_change_without_other_operations_is_named(
    healthy: Callable[[], nn.Module], faulty: Callable[[], nn.Module], loss: Any, said: tuple[str, ...]
) -> None:
    old, new = (measure(factory, X, loss=loss, seeds=4, steps=nn.Linear) for factory in (healthy, faulty))
    text = " ".join(str(compare(old, new)).split())
    assert all(sentence in text for sentence in said), text
    assert str(compare(old, old)).endswith("nothing has changed by these tolerances")


def test_a_call_written_in_other_words_is_no_change() -> None:
    """Two constants whose product is the same: no number moves, and constants alone are no change."""

    class Scaled(nn.Module):
        def __init__(self, halves: bool) -> None:
            super().__init__()
            self.halves = halves
            self.layer = nn.Linear(12, 12)
            self.register_buffer("table", torch.ones(12))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + (self.table / 2 if self.halves else self.table * 0.5)

    old, new = (measure(partial(Scaled, halves), X, seeds=4) for halves in (False, True))
    assert not compare(old, new)
