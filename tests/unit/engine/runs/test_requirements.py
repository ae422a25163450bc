"""Measures that do not apply to a model say what they need."""

from __future__ import annotations

import models
import pytest
import torch
from models import BATCH, WIDTH

from pytest_trainability import measure
from pytest_trainability.errors import UsageError

FLOATS = torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH)


def test_loss_gain_without_a_loss_is_refused() -> None:
    """A random functional has no cotangent of its own."""
    with pytest.raises(UsageError, match="loss_log_gain needs a loss"):
        _ = measure(models.mlp, FLOATS, seeds=1).loss_log_gain
