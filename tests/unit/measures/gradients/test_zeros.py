"""Parameters that are zero, as the reason why others get no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import TrainabilityFailure, at_most, measure
from pytest_trainability.measures.gradients.zeros import zero_gains, zero_twice


def test_zeros_are_drawn_if_they_are_matrices_and_one_if_they_are_vectors() -> None:
    layer = nn.Linear(16, 4)
    layer.register_parameter("gain", nn.Parameter(torch.zeros(4)))
    cause = zero_twice(["weight", "gain"], layer)
    assert (cause.drawn, cause.deviations, cause.ones) == (("weight",), (0.25,), ("gain",))
    assert cause.is_first and "they multiply" in cause.text


def model() -> nn.Module:
    """Build branches behind normalizations with a gain of zero, and a normalization in front of the head."""
    parts = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    nn.init.zeros_(parts[2].weight)  # type: ignore[arg-type]
    return parts


def test_only_gains_that_are_zero_and_trained_are_named() -> None:
    (cause,) = zero_gains(model())
    assert cause.ones == ("2.weight",) and "2.weight: the gain of a normalization is zero" in cause.text
    parts = model()
    parts.get_parameter("2.weight").requires_grad_(False)
    assert zero_gains(parts) == ()


def squared(y: Tensor) -> Tensor:
    return (y - 1).square().mean()


def test_the_share_without_a_gradient_is_explained_and_cured() -> None:
    result = measure(model, torch.randn(8, 8), seeds=1, loss=squared)
    with pytest.raises(TrainabilityFailure) as raised:
        result.check(untrained_fraction=at_most(0.2))
    assert "2.weight: the gain of a normalization is zero" in " ".join(str(raised.value).split())
    assert [cure.text for cure in result.cures()] == ["nn.init.ones_(model[2].weight)"]
    assert result.cures()[0].after == 0
