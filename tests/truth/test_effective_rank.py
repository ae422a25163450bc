"""Effective rank: matrices of known singular values, and the law of Marchenko and Pastur for Gaussian states."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn
from towers import F64, gaussian, linear, orthogonal

from pytest_trainability import measure
from pytest_trainability.measures.activations.effective_rank import effective_rank_of


def ranks(model, inputs: Tensor, **options) -> dict[str, float]:
    found = measure(model, inputs, measures=["effective_rank"], **{"seeds": 1, "dtype": F64} | options).effective_rank
    return {name: float(value) for name, value in found.items()}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def with_values(values: Tensor, rows: int, columns: int) -> Tensor:
    """Return a matrix with these singular values and random directions."""
    U, V = (torch.linalg.qr(random(size, len(values), seed=size)).Q for size in (rows, columns))
    return (U * values) @ V.mT


def entropy_rank(values: Tensor) -> float:
    shares = values / values.sum()
    return math.exp(-float((shares * shares.log()).sum()))


# One matrix -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
@pytest.mark.parametrize("rank", [1, 2, 5, 12])
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_equal_singular_values_count_directions(shape, rank, scale):
    # Eigenvalues of the Gram matrix are exact to 1e-15, and those of round-off are left out.
    found = effective_rank_of(scale * with_values(torch.ones(rank, dtype=F64), *shape))
    assert found == pytest.approx(rank, rel=1e-12)


def test_a_geometric_series_of_singular_values():
    values = 0.5 ** torch.arange(8, dtype=F64)
    assert effective_rank_of(with_values(values, 20, 9)) == pytest.approx(entropy_rank(values), rel=1e-12)


def test_small_singular_values_count_as_what_they_are():
    """A value of 1e-6 of the largest is resolved: its share of the entropy is 1.5e-5."""
    values = torch.tensor([1.0, 1e-6], dtype=F64)
    assert effective_rank_of(with_values(values, 7, 5)) == pytest.approx(entropy_rank(values), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_direction_in_a_narrow_type(dtype):
    """Rows that are powers of two times one row have rank 1 without any rounding."""
    row = random(1, 16).to(dtype)
    assert effective_rank_of(torch.tensor([[1.0], [0.25], [-8.0]], dtype=dtype) * row) == pytest.approx(1, abs=1e-12)


def test_matrices_without_a_direction():
    assert math.isnan(effective_rank_of(torch.zeros(3, 4)))
    assert math.isnan(effective_rank_of(torch.tensor([[1.0, math.nan], [0.0, 1.0]])))
    assert math.isnan(effective_rank_of(torch.tensor([[1.0, math.inf], [0.0, 1.0]])))


def marchenko_pastur(rows: int, columns: int) -> float:
    """Return the effective rank of a large Gaussian matrix, from the density of its squared singular values over the rows.

    ``ln rank = ln n + ln E s - E[s ln s] / E s`` for n singular values s of that distribution.
    """
    ratio = columns / rows
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2

    def mean(function) -> float:
        def integrand(x: float) -> float:
            return function(math.sqrt(x)) * math.sqrt((high - x) * (x - low)) / (2 * math.pi * ratio * x)

        return float(quad(integrand, low, high)[0])

    size = mean(lambda s: s)
    return columns * math.exp(math.log(size) - mean(lambda s: s * math.log(s)) / size)


@pytest.mark.parametrize(("rows", "columns"), [(400, 100), (200, 160), (100, 400)])
def test_isotropic_gaussian_numbers(rows, columns):
    expected = marchenko_pastur(max(rows, columns), min(rows, columns))
    # Linear statistics of eigenvalues fluctuate by O(1) in sum, 1/n of the mean, and so does the finite-size correction.
    assert effective_rank_of(random(rows, columns)) == pytest.approx(expected, rel=2 / min(rows, columns))


# States -----------------------------------------------------------------------------------------------------------
def test_an_orthogonal_layer_keeps_the_rank_and_a_projection_takes_it():
    projection = torch.diag((torch.arange(16) < 3).to(F64))
    inputs = torch.linalg.qr(random(40, 16)).Q

    def build() -> nn.Module:
        return nn.Sequential(
            orthogonal(16, 2.0), orthogonal(16, 0.1), linear(projection), linear(torch.eye(16, dtype=F64))
        )

    found = ranks(build, inputs)
    assert list(found) == ["input", "0", "1", "2", "3"]
    assert [found[name] for name in ("input", "0", "1")] == pytest.approx([16, 16, 16], rel=1e-12)
    # Three columns of a matrix with orthonormal columns.
    assert found["2"] == pytest.approx(3, rel=1e-12)
    assert found["3"] == pytest.approx(3, rel=1e-12)


def test_tokens_are_rows():
    """Eight orthogonal tokens in two samples of four have rank 8; a mean over tokens leaves one direction per sample."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear(torch.eye(16, dtype=F64))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).mean(1, keepdim=True).expand(x.shape)

    inputs = torch.eye(16, dtype=F64)[:8].view(2, 4, 16)
    model = nn.Sequential(linear(torch.eye(16, dtype=F64)), Mean(), linear(torch.eye(16, dtype=F64)))
    found = ranks(model, inputs, steps=["0", "1", "2"])
    assert found == pytest.approx({"input": 8, "0": 8, "1": 2, "2": 2}, rel=1e-12)


def test_pixels_are_rows_and_channels_are_columns():
    """A convolution of one pixel from three channels to eight has rank 3, on however many pixels."""

    def build() -> nn.Module:
        up = nn.Conv2d(3, 8, 1, bias=False, dtype=F64)
        across = nn.Conv2d(8, 8, 1, bias=False, dtype=F64)
        with torch.no_grad():
            up.weight.copy_(torch.eye(8, dtype=F64)[:, :3, None, None])
            across.weight.copy_(torch.linalg.qr(random(8, 8)).Q[:, :, None, None])
        return nn.Sequential(up, across)

    pixels = torch.linalg.qr(random(50, 3)).Q.view(2, 5, 5, 3).permute(0, 3, 1, 2)
    found = ranks(build, pixels)
    assert found == pytest.approx({"input": 3, "0": 3, "1": 3}, rel=1e-12)


def test_a_state_of_two_tensors_has_the_average():
    """Two skips pass by the second layer: ranks 4 and 2 of equally many numbers average to 3."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = linear(torch.eye(8, dtype=F64))
            self.b = linear(torch.diag((torch.arange(8) < 2).to(F64)))
            self.c = linear(torch.eye(8, dtype=F64))

        def forward(self, x: Tensor) -> Tensor:
            first = self.a(x)
            return self.c(self.b(first)) + first

    found = ranks(Two, torch.eye(8, dtype=F64)[:4], steps=["a", "b", "c"])
    assert found["a"] == pytest.approx(4, rel=1e-12)
    assert found["b"] == pytest.approx(3, rel=1e-12)


def test_a_state_that_is_changed_in_place_before_it_is_read_counts_as_changed():
    """ReLU in place overwrites what the layer returned; the next layer reads the new values."""

    def build() -> nn.Module:
        half = linear(torch.diag(torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=F64)))
        return nn.Sequential(half, nn.ReLU(inplace=True), linear(torch.eye(4, dtype=F64)))

    found = ranks(build, torch.eye(4, dtype=F64))
    assert found["2"] == pytest.approx(2, rel=1e-12)


def test_attention_without_skips_loses_rank_and_a_skip_keeps_it():
    """Dong, Cordonnier & Loukas, ICML 2021."""

    class Attention(nn.Module):
        def __init__(self, skip: float) -> None:
            super().__init__()
            self.q, self.k, self.v = (gaussian(32, 32, variance=1 / 32) for _ in range(3))
            self.skip = skip

        def forward(self, x: Tensor) -> Tensor:
            return self.skip * x + nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))

    inputs = random(1, 16, 32)
    alone, residual = (
        ranks(lambda skip=skip: nn.Sequential(*[Attention(skip) for _ in range(6)]), inputs, steps=Attention)
        for skip in (0.0, 1.0)
    )
    assert alone["input"] == residual["input"] > 12
    assert alone["5"] < 1.1
    assert residual["5"] > 4
