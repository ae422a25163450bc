"""Graded products: singular values over thousands of nats, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from matrices import gaussian, rotation
from torch import Tensor

from pytest_trainability.engine.linalg.graded_products import BLOCK, NARROW, RANGE, Graded, log_singular_values

F64 = torch.float64


@pytest.mark.parametrize(
    "logs",
    [
        pytest.param([0.0, -1.0, -2.0, -3.0], id="ordinary"),
        pytest.param([0.0, 0.0, 0.0, 0.0], id="equal"),
        pytest.param([1e4, 1e4, 0.0, 0.0, -1e4, -1e4 - 1e-3], id="pairs far apart"),
        pytest.param([-30.0 * i for i in range(60)], id="evenly over 1800 nats"),
        pytest.param([-5.0 * (i // 3) for i in range(180)], id="triples over 300 nats"),
        pytest.param([-2.0 * i for i in range(400)], id="many over 800 nats"),
    ],
)
def test_singular_values_of_scaled_orthogonal_rows(logs: list[float]) -> None:
    """diag(e^d) times an orthogonal matrix has the singular values e^d, whatever their range and order."""
    order = torch.randperm(len(logs), generator=torch.Generator().manual_seed(1))
    d = torch.tensor(logs, dtype=F64)
    found = log_singular_values(Graded(d[order][None], rotation(len(logs), 2)[None]))[0]
    # To eps of the logarithm itself, and of each value.
    assert torch.allclose(found, d, rtol=4e-16, atol=1e-12)


def test_singular_values_of_scaled_rows_that_are_not_orthogonal() -> None:
    """Rows 3 nats apart, which need many factorizations. The sum of the values is the logarithm of the determinant."""
    size = 500
    U = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=F64)
    U = U / U.norm(dim=1, keepdim=True)
    d = torch.linspace(0, -1500, size, dtype=F64)
    found = log_singular_values(Graded(d[None], U[None]))[0]
    expected = float(d.sum() + torch.linalg.slogdet(U).logabsdet)
    # The sum of 375000 nats to eps, and 500 values, each to about 500 eps.
    assert abs(math.fsum(found.tolist()) - expected) < 375000 * 2.2e-16 * 10 + size * size * 2.2e-16 * 10


def test_product_of_triangular_factors_over_a_wide_range() -> None:
    """Ten graded factors of 100 nats each, with a rotation in between, span 1000 nats."""
    d = torch.linspace(0, -100, 12, dtype=F64)
    one = rotation(12, 3)
    factors = [torch.diag(d.exp())] * 10
    product = Graded.identity(1, 12, torch.device("cpu")).times((one @ factors[0])[None])
    for factor in factors[1:]:
        product = product.times(factor[None])
    # The rotation mixes rows of different size. To its left are nine diagonal factors, to its right one.
    found = log_singular_values(product)[0]
    plain = torch.linalg.svdvals(torch.linalg.matrix_power(factors[0], 9) @ one @ factors[0]).log()
    assert not torch.allclose(found, plain, rtol=0, atol=1e-6)
    assert math.isclose(float(found.sum()), 10 * float(d.sum()), rel_tol=1e-13)
    assert found.tolist() == sorted(found.tolist(), reverse=True)


def test_zero_rows_are_minus_infinity_and_nan_stays_nan() -> None:
    rows = torch.eye(3, dtype=F64).expand(2, 3, 3).clone()
    logs = torch.tensor([[1.0, -math.inf, 2.0], [1.0, math.nan, 2.0]], dtype=F64)
    rows[0, 1] = 0
    found = log_singular_values(Graded(logs, rows))
    assert found[0].tolist() == pytest.approx([2.0, 1.0, -math.inf])
    assert bool(found[1].isnan().all())


def test_products_of_ordinary_matrices_are_products() -> None:
    """Within the range of floats, ``diag(e^d) U`` is the plain product, row by row; each row to round-off of 20 terms."""
    factors = [gaussian(20, 20, seed) for seed in range(4)]
    product, plain = Graded.identity(2, 20, torch.device("cpu")), torch.eye(20, dtype=F64)
    for factor in factors:
        product, plain = product.times(factor.expand(2, 20, 20)), factor @ plain
    found = product.logs.exp()[:, :, None] * product.rows
    assert torch.allclose(product.rows.norm(dim=2), torch.ones(2, 20, dtype=F64), rtol=0, atol=1e-14)
    assert torch.allclose(found, plain.expand(2, 20, 20), rtol=0, atol=1e-13 * float(plain.abs().max()))


def test_a_rectangular_factor_with_a_zero_row() -> None:
    factor = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]]], dtype=F64)
    product = Graded.identity(1, 2, torch.device("cpu")).times(factor)
    assert product.logs[0].tolist() == pytest.approx([math.log(5), -math.inf, math.log(2)])
    assert product.rows[0].flatten().tolist() == pytest.approx([0.6, 0.8, 0.0, 0.0, 0.0, -1.0])


def test_a_tiny_entry_in_front_of_a_huge_row_hides_no_other_row() -> None:
    """The first row takes e^-690 of a row that is e^600 times as long as the other: what remains is the other row."""
    product = Graded(torch.tensor([[600.0, 0.0]], dtype=F64), torch.eye(2, dtype=F64)[None])
    found = product.times(torch.tensor([[[math.exp(-690), 1.0], [1e-300, 1e-300]]], dtype=F64))
    assert found.logs[0].tolist() == pytest.approx([0.0, math.log(1e-300) + 600])
    assert found.rows[0, 0].tolist() == pytest.approx([0.0, 1.0])
    assert found.rows[0, 1].tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("span", [RANGE - 1, RANGE + 1])
def test_both_methods_agree_at_the_limit_between_them(span: float) -> None:
    """Below the limit LAPACK takes the whole matrix, and above it rows are separated first."""
    size = 12
    d = torch.linspace(0, -span, size, dtype=F64)
    found = log_singular_values(Graded(d[None], rotation(size, 8)[None]))[0]
    assert torch.allclose(found, d, rtol=4e-16, atol=1e-12)
    shifted = log_singular_values(Graded(d[None] + 5000, rotation(size, 8)[None]))[0]
    assert torch.allclose(shifted, d + 5000, rtol=4e-16, atol=1e-12)


def test_more_columns_than_rows() -> None:
    """The singular values of a wide matrix, against LAPACK; all are within a factor of ten of each other."""
    wide = gaussian(6, 30)
    lengths = wide.norm(dim=1)
    found = log_singular_values(Graded(lengths.log()[None], (wide / lengths[:, None])[None]))[0]
    assert torch.allclose(found.exp(), torch.linalg.svdvals(wide), rtol=1e-13)


def test_a_matrix_of_zeros() -> None:
    found = log_singular_values(Graded(torch.full((1, 3), -math.inf, dtype=F64), torch.zeros(1, 3, 3, dtype=F64)))
    assert found.tolist() == [[-math.inf] * 3]


def triangular(rows: int, columns: int, seed: int) -> Tensor:
    found: Tensor = torch.linalg.qr(gaussian(columns, columns, seed)).R[:rows]
    return found


@pytest.mark.parametrize("spread", [0.0, NARROW / 2, 30 * NARROW], ids="{:g} nats".format)
@pytest.mark.parametrize("size", [5, BLOCK, 2 * BLOCK + 3])
def test_triangular_products_are_products(size: int, spread: float) -> None:
    """In blocks of rows, with a common factor or one for each row: to round-off of the terms of a row."""
    grades = torch.diag(torch.linspace(0, -spread / 2, size, dtype=F64).exp())
    factors = [
        grades @ triangular(size, size, 1),
        triangular(size, size, 2),
        triangular(size - 2, size, 3),
        triangular(size - 2, size - 2, 4),
    ]
    plain = upper = Graded(torch.linspace(0, -spread / 2, size, dtype=F64)[None], torch.eye(size, dtype=F64)[None])
    for factor in factors:
        plain, upper = plain.times(factor[None]), upper.times(factor[None], upper=True)
    assert torch.allclose(plain.logs, upper.logs, rtol=1e-14, atol=size * 1e-14)
    assert torch.allclose(plain.rows, upper.rows, rtol=0, atol=size * 1e-14)
    assert not bool(upper.rows.tril(-1).any())


def test_triangular_products_with_zeros_and_nan() -> None:
    """Of three trajectories, one has lost rows, one its numbers, and one entries of every size."""
    factor = triangular(BLOCK + 6, BLOCK + 6, 0).repeat(3, 1, 1)
    factor[0, BLOCK:], factor[1, 2] = 0.0, math.nan
    factor[2, 3] *= 1e-200
    start = Graded.identity(3, BLOCK + 6, torch.device("cpu")).times(factor, upper=True)
    plain, upper = start.times(factor), start.times(factor, upper=True)
    for known in (0, 2):
        assert torch.allclose(plain.logs[known], upper.logs[known], rtol=1e-13, atol=1e-12)
        assert torch.allclose(plain.rows[known], upper.rows[known], rtol=0, atol=1e-12)
    assert upper.logs[0, BLOCK:].tolist() == [-math.inf] * 6 and bool(upper.logs[1, 2].isnan())
