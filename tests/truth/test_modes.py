"""Training against evaluation mode: means over dropout that are known exactly."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import InapplicableError, measure

WIDTH = 8
X = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A step with one factor in training mode, another one in evaluation mode, and a branch that is kept at random."""

    def __init__(self, *, train: float = 1.0, evaluation: float = 1.0, keep: float = 1.0):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.train_factor, self.evaluation_factor, self.keep = train, evaluation, keep

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if not self.training:
            return self.evaluation_factor * y
        return self.train_factor * y * (torch.rand(len(x), 1) < self.keep)


def gaps(model, inputs=X, **options):
    result = measure(model, inputs, steps=options.pop("steps", Block), measures=["mode_gap"], **options)
    return {name: estimate.mean for name, estimate in result.mode_gap.items()}


def test_a_model_without_modes():
    assert gaps(lambda: nn.Sequential(Block(), Block())) == {"input": 0, "0": 0, "1": 0, "output": 0}


@pytest.mark.parametrize("train", [True, False])
def test_another_factor_in_one_step(train):
    found = gaps(lambda: nn.Sequential(Block(), Block(train=0.5), Block()), train=train)
    # Each step starts from the state of evaluation mode. Round-off of float32.
    assert found == {"input": 0, "0": 0, "1": pytest.approx(0.5, abs=1e-6), "2": 0, "output": 0}


def test_stochastic_depth_with_and_without_its_factor():
    found = gaps(lambda: nn.Sequential(Block(keep=0.5, train=2.0), Block(keep=0.5, evaluation=0.5), Block(keep=0.5)))
    # The gap is 0.5. The mean of 32 masks for each of 64 samples has a standard deviation of 0.5 / √2048 = 0.011.
    assert found == {"input": 0, "0": 0, "1": 0, "2": pytest.approx(0.5, abs=0.05), "output": 0}


def test_dropout_before_and_behind_the_steps():
    class Framed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleList(Block() for _ in range(2))

        def forward(self, x):
            x = F.dropout(x, 0.5, self.training)
            for block in self.body:
                x = block(x)
            return x if self.training else x / 2

    assert gaps(Framed) == {"input": 0, "body.0": 0, "body.1": 0, "output": pytest.approx(1.0, abs=1e-6)}


def test_dropout_before_a_nonlinear_function_has_a_gap():
    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(WIDTH))

        def forward(self, x):
            return F.dropout(x * self.weight, 0.5, self.training).square()

    # E[(2 b x)²] = 2 x² for a fair coin b. The mean of 32 draws of 8192 numbers has a standard deviation of 1.4 %: its square is
    # one of products of 8 means, of relative variance (4 / 8 + 2 / 56) Σ x⁸ / (Σ x⁴)² = 0.54 · 105 / 9 / 8192.
    found = gaps(
        lambda: nn.Sequential(Squared()),
        torch.randn(1024, WIDTH, generator=torch.Generator().manual_seed(0)),
        steps=Squared,
    )
    assert found["0"] == pytest.approx(1.0, abs=0.1)


def test_batch_statistics_are_used_in_both_modes():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = gaps(model, 3 * X + 1, steps="layers", train=False)
    assert set(found.values()) == {0.0}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_results_of_zero():
    found = gaps(lambda: nn.Sequential(Block(evaluation=0.0), Block()))
    assert (found["0"], found["1"]) == (math.inf, 0)


def test_along_time_it_does_not_apply():
    with pytest.raises(InapplicableError, match=r"^mode_gap needs steps along depth"):
        gaps(lambda: nn.RNN(3, 3), torch.randn(4, 2, 3), steps="time")
