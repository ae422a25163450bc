"""A draw may leave all of a few units dead by chance: values that explain it, and more units, are no chance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.measures.gradients.few_units import are_few_units


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"down.weight": drawn(4, 64), "down.bias": drawn(4), "up.weight": drawn(64, 4, 1, 1)}, True),
        ({"down.weight": drawn(4, 64), "down.bias": torch.zeros(4), "up.weight": drawn(64, 4)}, True),
        ({"a.weight": drawn(4, 64), "b.weight": drawn(4, 64), "up.weight": drawn(64, 4)}, True),
        # A router whose scores have no effect: no layer behind it is without a gradient.
        ({"router.weight": drawn(4, 64)}, False),
        ({"0.router.weight": drawn(4, 64), "1.router.weight": drawn(4, 64)}, False),
        ({"down.weight": drawn(10, 64)}, False),
        ({"down.weight": drawn(4, 64), "other.weight": drawn(64, 64)}, False),
        ({"down.weight": torch.zeros(4, 64), "up.weight": drawn(64, 4)}, False),
        ({"down.weight": drawn(4, 64), "down.bias": torch.full((4,), -6.0), "up.weight": drawn(64, 4)}, False),
        ({"down.weight": drawn(4, 64), "down.bias": 0.1 * drawn(4) - 6.0, "up.weight": drawn(64, 4)}, False),
    ],
)
def test_parameters_of_few_units(parameters: dict[str, Tensor], expected: bool) -> None:
    assert are_few_units(parameters) is expected


class Excited(nn.Module):
    """A branch with a gate that a few units compute, all of which are dead."""

    def __init__(self, units: int, bias: float = 0.0) -> None:
        super().__init__()
        self.body, self.down, self.up = nn.Linear(16, 16), nn.Linear(16, units), nn.Linear(units, 16)
        with torch.no_grad():
            # The gate reads values of at least 0.
            self.down.weight.abs_().neg_()
            nn.init.constant_(self.down.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).sigmoid()
        return x * self.up(torch.relu(self.down(x))).sigmoid()


def asleep(build: type[nn.Module] | object) -> list[str]:
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    return list(measure(build, x, seeds=1, loss=lambda y: y.square().mean()).asleep_parameters)  # type: ignore[arg-type]


def test_few_dead_units_that_the_gradient_passes_by_are_chance() -> None:
    assert asleep(lambda: Excited(4)) == []


def test_more_dead_units_are_listed() -> None:
    assert asleep(lambda: Excited(12)) == ["down.weight", "down.bias", "up.weight"]


def test_a_bias_that_closes_few_units_is_listed() -> None:
    assert asleep(lambda: Excited(4, bias=-6.0)) == ["down.weight", "down.bias", "up.weight"]


def test_few_dead_units_on_the_only_way_are_listed() -> None:
    def tower() -> nn.Module:
        model = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16))
        with torch.no_grad():
            model[0].weight.zero_().sub_(0.1)  # type: ignore[operator]
            nn.init.zeros_(model[0].bias)  # type: ignore[arg-type]
        return model

    x = torch.rand(8, 16, generator=torch.Generator().manual_seed(0)) + 1
    found = measure(tower, x, seeds=1, loss=lambda y: y.square().mean()).asleep_parameters
    assert list(found) == ["0.weight", "0.bias", "2.weight"]
