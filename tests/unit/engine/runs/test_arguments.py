"""Validation of single arguments."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from models import FLOATS
from torch import nn

from pytest_trainability.engine.runs.arguments import as_count, as_loss, as_optimizer, refuse_type
from pytest_trainability.errors import UsageError


@pytest.mark.parametrize(
    ("model", "inputs", "settings", "error", "parts"),
    [
        pytest.param(
            models.mlp, FLOATS, {"target": FLOATS}, UsageError, ["a target must come with the loss"], id="target-alone"
        ),
        pytest.param(
            models.mlp, FLOATS, {"loss": 3}, UsageError, ["the loss must be a function", "Got int."], id="loss-number"
        ),
        pytest.param(
            models.mlp, FLOATS, {"exponents": 0}, UsageError, ["exponents must be", "Got 0."], id="no-exponents"
        ),
        pytest.param(
            models.mlp, FLOATS, {"exponents": True}, UsageError, ["exponents must be", "Got True."], id="bool-exponents"
        ),
    ],
)
def test_an_error_says_what_to_do(refused, model, inputs, settings, error, parts) -> None:
    refused(model, inputs, settings, error, parts)


def test_an_argument_of_another_type_is_refused() -> None:
    refuse_type("name", "net", str, "a string")
    refuse_type("name", None, (str, type(None)), "a string")
    with pytest.raises(UsageError, match=r"^name must be a string\. Got 3\.$"):
        refuse_type("name", 3, (str, type(None)), "a string")


@pytest.mark.parametrize(("value", "least"), [(1, 1), (7, 1), (0, 0)])
def test_a_count_is_returned(value: int, least: int) -> None:
    assert as_count("steps", value, least=least) == value


@pytest.mark.parametrize(("value", "least"), [(0, 1), (-1, 0), (1.0, 1), (True, 1), (False, 0), ("1", 1), (None, 1)])
def test_a_count_is_a_whole_number_of_at_least_the_smallest(value: Any, least: int) -> None:
    with pytest.raises(UsageError) as caught:
        as_count("steps", value, least=least)
    assert str(caught.value) == f"steps must be a whole number of at least {least}. Got {value!r}."


def test_the_message_names_other_valid_values() -> None:
    with pytest.raises(UsageError, match="at least 1, or None for all"):
        as_count("exponents", 0, otherwise="or None for all")


def test_a_loss_is_a_function_or_none() -> None:
    assert as_loss(None, None) is None
    assert as_loss(F.mse_loss, None) is F.mse_loss
    assert as_loss(F.mse_loss, FLOATS) is F.mse_loss


def test_an_optimizer_is_made_by_a_function() -> None:
    assert as_optimizer(None) is None
    assert as_optimizer(torch.optim.SGD) is torch.optim.SGD
    finished = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    for wrong, name in ((finished, "SGD"), (0.1, "float")):
        with pytest.raises(
            UsageError, match=f"optimizer must be a function of the parameters that makes one.* Got {name}"
        ):
            as_optimizer(wrong)


def test_a_class_of_losses_is_called_without_arguments() -> None:
    assert isinstance(as_loss(nn.CrossEntropyLoss, None), nn.CrossEntropyLoss)

    class Weighted(nn.Module):
        def __init__(self, weight: float) -> None:
            super().__init__()

    with pytest.raises(UsageError, match=r"^the loss must be a function, or an object such as Weighted\(\.\.\.\)\."):
        as_loss(Weighted, None)
