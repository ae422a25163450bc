"""The description of a measurement: notes, calls that are left out, and facts about steps."""

from __future__ import annotations

import models
import pytest
import torch
from models import BATCH, WIDTH
from torch import Tensor, nn

from pytest_trainability import measure

FLOATS = torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH)


def test_a_chain_of_one_step_has_a_note() -> None:
    """A single layer has a gain, and no depth."""
    result = measure(lambda: nn.Linear(WIDTH, WIDTH), FLOATS, seeds=1)
    assert len(result.steps) == 1
    assert any("one step only" in note for note in result.notes)
    assert result.log_gain.mean == pytest.approx(float(result.lyapunov_max))


def test_a_finished_module_has_a_note() -> None:
    """More seeds would repeat the same weights."""
    result = measure(models.mlp(), FLOATS, seeds=5)
    assert result.seeds == (0,)
    assert any("one draw of its weights" in note for note in result.notes)


def test_calls_before_a_detach_are_named() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            for index, layer in enumerate(self.layers):
                x = layer(x.detach() if index == 3 else x).tanh()
            return x

    result = measure(Cut, torch.randn(2, 4), seeds=1)
    assert result.steps.description.startswith("2 × Linear")
    assert result.steps.left_out == "4 × Linear (layers)"
    assert list(result.unused_parameters)[:2] == ["layers.0.weight", "layers.0.bias"]


def test_the_spread_of_a_steps_weights() -> None:
    """The spread of the weights, not their size: constant ones have none, and complex ones have one, too."""

    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3, 3), 1 + 1j))

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(torch.complex64) @ self.weight).real

    def constant() -> nn.Module:
        layers = [nn.Linear(3, 3), nn.Linear(3, 3)]
        nn.init.constant_(layers[0].weight, 0.5)
        return nn.Sequential(*layers, Complex())

    facts = measure(constant, torch.randn(2, 3), seeds=1)._seed_runs.common.facts
    assert [fact.weight_std == 0 for fact in facts] == [True, False, True]


def test_a_stem_before_the_first_block_is_named() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(x).relu()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.blocks = nn.Sequential(*[Block() for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(self.stem(x))

    result = measure(Net, torch.randn(2, 3, 8, 8), seeds=1)
    assert result.steps.description == "3 × Block"
    assert "layers with weights before the chain: stem.0" in result.notes
    whole = measure(Net, torch.randn(2, 3, 8, 8), seeds=1, steps="layers")
    assert not any("before the chain" in note for note in whole.notes)
