"""What the observer notes of the calls of activations. Which functions are activations is tested with the slopes."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from pytest_trainability.engine.capture.recorder import capture
from pytest_trainability.measures.activations.activation_calls import ActivationCall, observe_activations

X = torch.linspace(-2, 2, 24).reshape(6, 4)


def calls(*, reads_inputs: bool) -> list[ActivationCall]:
    torch.manual_seed(0)
    instrument = partial(observe_activations, reads_inputs=reads_inputs)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU())
    found: list[ActivationCall] = capture(model, (X,), {}, instruments=(instrument,)).watched[instrument].found
    return found


def test_what_activations_read_is_known_only_where_it_is_asked() -> None:
    tanh, relu = calls(reads_inputs=True)
    torch.manual_seed(0)
    read = nn.Linear(4, 4)(X).detach().double()
    assert tanh.mean == pytest.approx(float(read.mean()), rel=1e-6)
    assert tanh.deviation == pytest.approx(float(read.std(correction=0)), rel=1e-6)
    assert relu.deviation > 0
    assert all(math.isnan(call.mean) and math.isnan(call.deviation) for call in calls(reads_inputs=False))


def test_all_else_does_not_depend_on_it() -> None:
    for with_inputs, without in zip(calls(reads_inputs=True), calls(reads_inputs=False), strict=True):
        assert (with_inputs.name, with_inputs.shape) == (without.name, without.shape)
        assert (with_inputs.saturated, with_inputs.dead) == (without.saturated, without.dead)
