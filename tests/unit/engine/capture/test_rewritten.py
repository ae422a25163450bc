"""Parameters that the forward pass writes, with their means before and after."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.engine.capture.recorder import Capture, capture
from pytest_trainability.engine.capture.rewritten import LARGEST_COPY, Rewritten


class Written(nn.Module):
    """Does something to its parameters before it uses them."""

    def __init__(self, write: Callable[[Any], None]) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4))
        self.table = nn.Parameter(torch.ones(LARGEST_COPY + 1))
        self.norm = nn.BatchNorm1d(4)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.write(self)
        found: Tensor = self.norm(x + self.shift) * self.scale * self.table.mean()
        return found


def captured(write: Callable[[Any], None]) -> Capture:
    return capture(Written(write), (torch.randn(8, 4),), {})


@pytest.mark.parametrize(
    "write",
    [lambda model: model.shift.copy_(torch.full((4,), 3.0)), lambda model: model.shift.data.fill_(3.0)],
    ids=["in place", "data"],
)
def test_a_parameter_that_is_written_has_its_means(write: Callable[[Any], None]) -> None:
    assert captured(write).rewritten == {"shift": Rewritten(before=0.0, after=3.0)}


def test_a_parameter_that_is_replaced_by_its_data_has_its_means() -> None:
    def replaced(model: Any) -> None:
        model.scale.data = torch.full((4,), 2.0)

    assert captured(replaced).rewritten == {"scale": Rewritten(before=1.0, after=2.0)}


def test_of_a_large_parameter_the_mean_before_is_not_known() -> None:
    (found,) = captured(lambda model: model.table.mul_(3)).rewritten.items()
    assert found[0] == "table"
    assert math.isnan(found[1].before)
    assert found[1].after == 3.0


@pytest.mark.parametrize(
    "write",
    [lambda model: None, lambda model: model.shift.zero_(), lambda model: model.scale.data.fill_(math.nan).fill_(1.0)],
    ids=["nothing", "the same value", "twice"],
)
def test_parameters_that_keep_their_values_are_not_listed(write: Callable[[Any], None]) -> None:
    """Running statistics are buffers, and change in every forward pass."""
    assert not captured(write).rewritten


def test_a_parameter_that_stays_not_a_number_is_not_listed() -> None:
    model = Written(lambda model: None)
    nn.init.constant_(model.shift, math.nan)
    assert not capture(model, (torch.randn(8, 4),), {}).rewritten


def test_a_lazy_layer_that_is_made_by_the_forward_pass_is_not_listed() -> None:
    assert not capture(nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(2)), (torch.randn(8, 4),), {}).rewritten
