"""Measures that do not apply to a model say what they need."""

from __future__ import annotations

import models
import pytest
from models import FLOATS, WIDTH
from torch import nn

from pytest_trainability import measure
from pytest_trainability.errors import InapplicableError, UsageError


def test_loss_gain_without_a_loss_is_refused() -> None:
    """A random functional has many cotangents, and none of them is special."""
    with pytest.raises(UsageError, match="loss_log_gain needs a loss"):
        _ = measure(models.mlp, FLOATS, seeds=1).loss_log_gain


def test_a_loss_is_required_by_one_measure_or_by_several() -> None:
    result = measure(models.mlp, FLOATS, seeds=1)
    with pytest.raises(InapplicableError, match=r"^loss_drop needs a loss\. Hand one in: loss=F\.cross_entropy"):
        _ = result.loss_drop
    with pytest.raises(InapplicableError, match=r"^initial_loss and excess_loss need a loss\."):
        _ = result.initial_loss


def test_parameters_are_required_by_measures_of_training() -> None:
    frozen = models.mlp().requires_grad_(requires_grad=False)
    with pytest.raises(
        InapplicableError, match=r"^sharpness needs parameters to train\. Sequential has none that require grad"
    ):
        _ = measure(frozen, FLOATS, loss=lambda y: y.square().mean()).sharpness


def test_a_factory_is_required_by_measures_that_build_the_model_again() -> None:
    finished = measure(models.mlp(), FLOATS)
    with pytest.raises(
        InapplicableError, match=r"^uninitialized_parameters builds the model again, and needs a factory\. A "
    ):
        _ = finished.uninitialized_parameters
    assert measure(models.mlp, FLOATS, seeds=1).uninitialized_parameters is not None


def test_a_requirement_that_is_met_does_not_matter() -> None:
    loss = measure(lambda: nn.Linear(WIDTH, 1), FLOATS, seeds=1, loss=lambda y: y.sum() * 0 + 3.0).initial_loss
    assert float(loss) == 3.0
