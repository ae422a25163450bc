"""Why parameters get no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import TrainabilityFailure, at_most, measure


class Parts(nn.Module):
    """Layers of which one is cut off, or skipped, or run without a graph."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "never":
            return self.third(self.second(x))
        with torch.set_grad_enabled(self.how != "no graph"):
            x = self.first(x)
        return self.third(torch.tanh(self.second(x.detach() if self.how == "detached" else x)))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("never", "first: never run in the forward pass"),
        ("no graph", "first: run without recording a gradient"),
        (
            "detached",
            "the gradient stops in second, or before it; first: run, but their results reach the loss without a",
        ),
    ],
)
def test_the_reason(how: str, says: str) -> None:
    with pytest.raises(TrainabilityFailure) as raised:
        measure(lambda: Parts(how), torch.randn(4, 8), seeds=1).check(unused_parameters=at_most(0))
    assert says in " ".join(str(raised.value).split())
