"""A model that is built once, for all questions about its structure."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pytest_trainability.sources.declared import declared_inputs
from pytest_trainability.sources.families import family_of_source
from pytest_trainability.sources.sample import Sample


def test_a_factory_is_called_once_for_all_questions() -> None:
    devices = []

    def build() -> nn.Module:
        layer = nn.Conv2d(3, 3, 3)
        devices.append(layer.weight.device.type)
        return layer

    sample = Sample(build)
    assert devices == []
    assert declared_inputs(sample) is None and family_of_source(sample)[0] == "cnn"
    assert devices == ["meta"]


def test_a_factory_that_needs_numbers_is_called_again() -> None:
    def build() -> nn.Module:
        layer = nn.Linear(3, 3)
        layer.example_input_array = torch.ones(2, int(layer.weight.isfinite().sum()) // 3)
        return layer

    inputs = declared_inputs(Sample(build))
    assert inputs is not None and inputs(torch.Generator()).shape == (2, 3)


def test_what_builds_no_model_has_none() -> None:
    def fails() -> Any:
        raise SystemExit

    assert Sample(fails).model is None and Sample(lambda: 3).model is None


def test_a_module_is_its_own_sample() -> None:
    layer = nn.Linear(3, 3)
    assert Sample(layer).model is layer
    assert Sample(lambda: 1 / 0, layer).model is layer
    sample = Sample(layer)
    assert Sample.of(sample) is sample
