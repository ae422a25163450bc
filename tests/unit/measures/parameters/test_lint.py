"""The measure of unusual initial values: its lines, and its place in every preset."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.checks.presets import PRESETS
from pytest_trainability.engine.runs.run import with_dependencies
from pytest_trainability.measures.parameters.initial_values import DESCRIPTION
from pytest_trainability.measures.parameters.lint import UNUSUAL


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(16), nn.Linear(16, 16)
        nn.init.normal_(self.norm.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x))


def test_lines_name_the_parameter_and_the_reason() -> None:
    (line,) = measure(Net, torch.randn(4, 16), seeds=1).unusual_parameters
    assert line.startswith("norm.weight: the gain of a normalization is drawn around 0 (std 0.0")


def test_every_preset_allows_none() -> None:
    assert {bounds["unusual_parameters"].high for bounds in PRESETS.values()} == {0}


def test_the_description_is_provided_before_it_is_read() -> None:
    assert with_dependencies(frozenset({UNUSUAL})) == {UNUSUAL, DESCRIPTION}
