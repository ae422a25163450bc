"""Validation of single arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import models
import pytest
import torch
from models import BATCH, WIDTH

from pytest_trainability.errors import TrainabilityError, UsageError

FLOATS = torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH)


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
def test_an_error_says_what_to_do(
    refused: Callable[..., None],
    model: Any,
    inputs: Any,
    settings: dict[str, Any],
    error: type[TrainabilityError] | None,
    parts: Sequence[str],
) -> None:
    refused(model, inputs, settings, error, parts)
