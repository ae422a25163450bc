"""Why parameters get no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import TrainabilityFailure, at_most, measure


class Parts(nn.Module):
    """Layers of which one is cut off, or skipped, or run without a graph."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "never":
            return self.third(self.second(x))
        with torch.set_grad_enabled(self.how != "no graph"):
            x = self.first(x)
        return self.third(torch.tanh(self.second(x.detach() if self.how == "detached" else x)))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("never", "first: never run in the forward pass"),
        ("no graph", "first: run without recording a gradient"),
        (
            "detached",
            "the gradient stops between first and second; first: run, but their results reach the loss without a",
        ),
    ],
)
def test_the_reason(how: str, says: str) -> None:
    with pytest.raises(TrainabilityFailure) as raised:
        measure(lambda: Parts(how), torch.randn(4, 8), seeds=1).check(unused_parameters=at_most(0))
    assert says in " ".join(str(raised.value).split())


class Cut(nn.Module):
    """A generator and a judge. The gradient is cut between them, inside a layer of either, or by nothing but the loss."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.generator = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh())
        self.inside = Detach() if where == "inside" else nn.Identity()
        self.judge = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(), nn.Linear(8, 1))
        self.reader = Reader()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        made = self.generator(x)
        if self.where == "left out":
            return self.judge(x), made
        if self.where == "reader":
            return self.reader(made)
        if self.where == "end":
            return self.judge(x) + made.detach().mean()
        return self.judge(self.inside(made) if self.where == "inside" else made.detach())


class Detach(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.detach())


@pytest.mark.parametrize(
    ("where", "says"),
    [
        # The last module without parameters belongs to the part that gets no gradient.
        ("between", "the gradient stops between generator.3 and judge.0; generator.* (2): run"),
        ("inside", "the gradient stops in inside, which gets them"),
        ("reader", "the gradient stops in reader, which gets them"),
        # The judge reads the input.
        ("end", "the gradient stops behind generator.3; generator.* (2): run"),
        ("left out", "generator.* (2): run, but their results reach the loss without a gradient"),
    ],
)
def test_the_place_of_a_cut(where: str, says: str) -> None:
    loss = (lambda output: output[0].square().mean()) if where == "left out" else (lambda y: y.square().mean())
    with pytest.raises(TrainabilityFailure) as raised:
        measure(lambda: Cut(where), torch.randn(4, 8), loss=loss, seeds=1).check(unused_parameters=at_most(0))
    text = " ".join(str(raised.value).split())
    assert says in text
    assert "or before it" not in text
    assert ("the gradient stops" in text) == (where != "left out")
