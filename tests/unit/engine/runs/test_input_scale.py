"""Inputs that are not standardized, and tables with large entries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import Measurement, TrainabilityFailure, at_most, measure


def failed(model: object, x: Tensor) -> tuple[Measurement, str]:
    found = measure(model, x, seeds=1)  # type: ignore[arg-type]
    with pytest.raises(TrainabilityFailure) as raised:
        found.check(activation_rms=at_most(20))
    return found, " ".join(str(raised.value).split())


def test_bytes_are_to_be_standardized() -> None:
    # The mean of 0 … 255 is 127.5, the standard deviation sqrt(256² − 1) / sqrt(12) = 73.9, with 1 / (n − 1) 74.0.
    x = torch.arange(256.0).reshape(16, 16)
    found, text = failed(lambda: nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2)), x)
    assert "the inputs have rms 147 (mean 128 and standard deviation 74): standardize them" in text
    assert found.cures()[0].text == "standardize the inputs: (x - 128) / 74"


def test_a_large_embedding_is_named() -> None:
    def build() -> nn.Module:
        table = nn.Embedding(10, 64)
        nn.init.constant_(table.weight, 30.0)
        return nn.Sequential(table, nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))

    found, text = failed(build, torch.arange(10).reshape(2, 5))
    assert "0.weight has rms 30, which the first state inherits" in text
    assert found.cures()[0].text.startswith("nn.init.normal_(model[0].weight, std=1)")
