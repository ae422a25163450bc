"""Permutations of positions and of patches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.measures.activations.order_blindness import cycle, with_patches_moved


@pytest.mark.parametrize("length", [2, 3, 10])
def test_a_cycle_moves_every_position(length):
    order = cycle(length, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == [*range(length)]
    assert not bool((order == torch.arange(length)).any())


def test_a_cycle_is_drawn_on_the_cpu_whatever_the_default_device():
    expected = cycle(10, torch.Generator().manual_seed(0))
    with torch.device("meta"):
        assert torch.equal(cycle(10, torch.Generator().manual_seed(0)), expected)


def test_patches_are_moved_as_a_whole():
    images = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    order = torch.tensor([1, 2, 3, 0])
    found = with_patches_moved(images, (2, 3), order)
    blocks = [(0, 0), (0, 3), (2, 0), (2, 3)]
    for place, source in enumerate(order.tolist()):
        (i, j), (k, m) = blocks[place], blocks[source]
        assert torch.equal(found[..., i : i + 2, j : j + 3], images[..., k : k + 2, m : m + 3])


class Mean(nn.Module):
    """The sum over positions of a layer's result, plus the last position times a factor."""

    def __init__(self, scale: float, last: float) -> None:
        super().__init__()
        self.layer, self.scale, self.last = nn.Linear(5, 5), scale, last

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.scale * (y.sum(1) + self.last * y[:, -1])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_off_is_relative_to_the_output(scale, dtype):
    """Sums in another order are not a change, and a change of a millionth of the output is one, whatever its unit."""
    x = torch.randn(4, 50, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)

    def blindness(last: float) -> float:
        return float(measure(Mean(scale, last).to(dtype), x, measures=["order_blindness"]).order_blindness)

    assert blindness(0.0) == 1.0
    # With 64 units of 1e-7, round-off is less than 1e-5 of the output.
    assert blindness(1.0) < 1 - 1e-3
