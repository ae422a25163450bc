"""Numbers that a model's code adds are noted with the module, by the node of the sum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.engine.capture.recorder import capture
from pytest_trainability.engine.runs.constants import ConstantObserver


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        x = 2 + (x - 3)
        x += 4
        return x + self.layer(x)


def test_numbers_are_noted_with_their_sign_and_tensors_are_not() -> None:
    captured = capture(nn.Sequential(Sums()), (torch.randn(2, 3),), {}, instruments=(ConstantObserver,))
    found = captured.watched[ConstantObserver].found
    assert [(constant.path, constant.number) for constant in found.values()] == [("0", -3.0), ("0", 2.0), ("0", 4.0)]


@pytest.mark.parametrize("value", [0.5, 7])
def test_the_module_is_empty_for_the_model_itself(value: float) -> None:
    class Only(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + value

    captured = capture(Only(), (torch.randn(2, 3),), {}, instruments=(ConstantObserver,))
    (constant,) = captured.watched[ConstantObserver].found.values()
    assert (constant.path, constant.number) == ("", value)
