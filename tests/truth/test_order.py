"""Models that do not know the order of their input, and linear ones whose dependence on it is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import InapplicableError, measure

VOCAB, LENGTH, WIDTH = 11, 7, 16
IDS = torch.randint(VOCAB, (4, LENGTH), generator=torch.Generator().manual_seed(0))


class Reader(nn.Module):
    """Tokens plus positions, a transformer layer, and a result by position or for the whole sequence."""

    def __init__(self, std: float, *, pooled: bool = False):
        super().__init__()
        self.table = nn.Embedding(VOCAB, WIDTH)
        self.positions = nn.Parameter(std * torch.randn(LENGTH, WIDTH))
        self.body = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True)
        self.pooled = pooled

    def forward(self, ids: Tensor) -> Tensor:
        x = self.body(self.table(ids) + self.positions)
        return x.mean(1) if self.pooled else x


def blindness(model, inputs=IDS, **options):
    return measure(model, inputs, measures=["order_blindness"], **options).order_blindness.mean


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_positions_of_zero(pooled, train):
    assert blindness(lambda: Reader(0.0, pooled=pooled), train=train) == 1
    assert blindness(lambda: Reader(1.0, pooled=pooled), train=train) < 0.9


def test_a_model_that_adds_positions_only():
    """The change of the output is that of the positions, and the content is that of the samples."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.scale = torch.arange(LENGTH) / 10

        def forward(self, x):
            return self.weight * x + self.scale[:, None]

    x = torch.zeros(2, LENGTH, 1)
    x[1] = 1.0
    found = blindness(lambda: nn.Sequential(Sum()), x, steps=Sum)
    # A cycle of 7 positions moves each by at most 6: the change is at most 0.6, and the samples differ by 1.
    assert 0.4 <= found < 1


def test_an_output_of_its_positions_alone():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(LENGTH, 3))

        def forward(self, x):
            return 0 * x + self.weight

    assert math.isnan(blindness(Fixed, torch.randn(2, LENGTH, 3)))


@pytest.mark.parametrize("std", [0.0, 1.0])
def test_patches_of_images(std):
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, WIDTH, 2, stride=2)
            self.positions = nn.Parameter(std * torch.randn(12, WIDTH))
            self.body = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True) for _ in range(2))

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2) + self.positions
            for layer in self.body:
                x = layer(x)
            return x.mean(1)

    found = blindness(Patches, torch.randn(4, 3, 6, 8))
    # Sums in another order: a few millionths.
    assert (found == pytest.approx(1, abs=1e-5)) == (std == 0)


def test_explicit_positions_stay_where_they_are():
    class Explicit(Reader):
        def forward(self, ids, position_ids):
            return self.body(self.table(ids) + self.positions[position_ids])

    inputs = {"ids": IDS, "position_ids": torch.arange(LENGTH).expand(4, LENGTH)}
    assert blindness(lambda: Explicit(1.0), inputs) < 0.9


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (lambda: nn.Linear(4, 4), torch.randn(3, 4)),
        (lambda: nn.Conv2d(3, 3, 3), torch.randn(3, 3, 8, 8)),
        (lambda: Reader(1.0), IDS[:1]),
    ],
)
def test_inputs_without_positions(model, inputs):
    with pytest.raises(
        InapplicableError, match=r"^order_blindness needs two samples or more, and an input of positions"
    ):
        blindness(model, inputs)
