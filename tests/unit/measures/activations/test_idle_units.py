"""Why units are dead or saturated, in the words of a failed bound."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pytest_trainability import TrainabilityFailure, at_most, measure

X = torch.linspace(-1.7, 1.7, 128).reshape(16, 8)
"""Of mean 0 and standard deviation 1."""


def layers(change: Callable[[nn.Linear], object], activation: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a factory of two layers of which the first one is changed."""

    def build() -> nn.Module:
        first = nn.Linear(8, 64)
        with torch.no_grad():
            change(first)
        return nn.Sequential(first, activation(), nn.Linear(64, 2))

    return build


def why(build: Callable[[], nn.Module]) -> str:
    with pytest.raises(TrainabilityFailure) as raised:
        measure(build, X, seeds=1).check(saturated_fraction=at_most(0.1))
    return " ".join(str(raised.value).split())


def test_a_bias_that_moves_all_units_is_named() -> None:
    assert "0.bias has mean -5" in why(layers(lambda layer: layer.bias.fill_(-5.0), nn.ReLU))


def test_the_shift_of_a_normalization_is_named() -> None:
    def build() -> nn.Module:
        norm = nn.LayerNorm(64)
        nn.init.constant_(norm.bias, -5.0)
        return nn.Sequential(nn.Linear(8, 64), norm, nn.ReLU(), nn.Linear(64, 2))

    assert "2 reads values of mean -5 and deviation 1: 1.bias, the shift of a normalization, makes them" in why(build)


def test_the_bias_in_front_of_a_normalization_is_not_named() -> None:
    def build() -> nn.Module:
        first, norm = nn.Linear(8, 64), nn.LayerNorm(64)
        nn.init.constant_(first.bias, -5.0)
        nn.init.zeros_(norm.weight)
        return nn.Sequential(first, norm, nn.ReLU(), nn.Linear(64, 2))

    assert "0.bias" not in why(build)


def test_weights_that_are_too_large_are_named_with_the_size_that_fits() -> None:
    # A deviation of 30 times that of PyTorch's weights needs weights of that part of their size.
    text = why(layers(lambda layer: layer.weight.mul_(300), nn.Tanh))
    assert "0.weight has rms " in text and "gives a deviation of 1" in text


def test_dropout_that_keeps_little_is_named() -> None:
    build = layers(lambda layer: layer.bias.fill_(-5.0), lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.9)))
    assert "drops 90 % of the entries: its argument is the share to drop, not to keep" in why(build)


def test_healthy_units_have_no_such_cause() -> None:
    text = why(layers(lambda layer: layer.bias.zero_(), nn.ReLU))
    assert "likely cause" not in text
