"""Bidiagonalization: extreme singular values from products, against dense decompositions."""

from __future__ import annotations

import math

import pytest
import torch
from matrices import gaussian, rotation
from torch import Tensor

from pytest_trainability.engine.linalg.bidiagonalization import Krylov, _jackknife, bidiagonalize, spread_of_squares

F64 = torch.float64


def krylov(matrix: Tensor, block: int = 1, limit: int = 100) -> tuple[Krylov, float]:
    """Return the bidiagonalization of one matrix and the estimated spread of its squared singular values."""
    generator = torch.Generator().manual_seed(11)

    def draw(count: int) -> Tensor:
        return torch.randn(1, count, matrix.shape[1], generator=generator, dtype=F64)

    def apply(v: Tensor) -> Tensor:
        return v @ matrix.T

    def adjoint(u: Tensor) -> Tensor:
        return u @ matrix

    found = bidiagonalize(apply, adjoint, draw(block), block, tolerance=1e-3, noise=1e-13, limit=limit)
    return found, float(spread_of_squares(apply, adjoint, found, lambda attempt: draw(16), attempts=4)[0])


MATRICES = {
    "gaussian": gaussian(300, 300),
    "tall": gaussian(500, 200),
    "perturbed identity": torch.eye(300, dtype=F64) + 0.2 * gaussian(300, 300),
    "deep": torch.linalg.matrix_power(gaussian(300, 300), 6),
    "near isometry": rotation(300, 4) * torch.linspace(1, 1.01, 300, dtype=F64),
    "small near isometry": rotation(300, 4) * torch.linspace(1e-3, 1.01e-3, 300, dtype=F64),
}


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("name", MATRICES)
def test_extreme_values_of_a_dense_matrix(name: str, block: int) -> None:
    matrix = MATRICES[name]
    expected = torch.linalg.svdvals(matrix)
    squares = expected.square()
    found, spread = krylov(matrix, block)
    assert torch.allclose(found.largest[0], expected[:block], rtol=1e-3)
    if not bool(found.smallest.isnan()):
        assert torch.allclose(found.smallest, expected[-1:], rtol=1e-3)
    if name != "tall":
        assert bool(found.smallest.isnan()) == (name in {"gaussian", "deep"})
    exact = float(squares.var(correction=0) / squares.mean().square())
    assert abs(spread - exact) < 2 * (0.05 * exact + 0.01)
    if name == "near isometry":
        # The probes have a fixed length, so that the error is proportional to the spread.
        assert abs(spread - exact) < 0.3 * exact


def test_an_isometry_exhausts_the_space_in_one_step() -> None:
    """All singular values are equal, however many are wanted."""
    found, spread = krylov(rotation(100, 6) * 0.25, block=3)
    assert found.largest[0].tolist() == pytest.approx([0.25] * 3, rel=1e-12)
    assert float(found.smallest[0]) == pytest.approx(0.25, rel=1e-12)
    assert abs(spread) < 1e-12


def test_values_that_have_not_converged_are_nan() -> None:
    found, _ = krylov(MATRICES["gaussian"], limit=4)
    assert bool(found.largest.isnan().all()) and bool(found.smallest.isnan().all())
    assert found.basis.shape == (1, 4, 300)


@pytest.mark.parametrize("block", [1, 3])
def test_the_iteration_goes_on_while_the_smallest_value_comes_close(block: int) -> None:
    """The largest values stand apart and converge first. The smallest one is close to convergence by then."""
    values = torch.cat([torch.tensor([0.5, 2.0, 2.25, 2.5], dtype=F64), torch.linspace(1, 1.5, 96, dtype=F64)])
    found, _ = krylov(rotation(100, 6) * values, block)
    assert found.largest[0].tolist() == pytest.approx([2.5, 2.25, 2.0][:block], rel=1e-3)
    assert float(found.smallest[0]) == pytest.approx(0.5, rel=1e-3)


def test_the_smallest_value_is_nan_if_some_are_zero() -> None:
    found, _ = krylov(rotation(100, 6) * (torch.arange(100) % 2))
    assert float(found.largest[0, 0]) == pytest.approx(1, rel=1e-12)
    assert bool(found.smallest.isnan().all())


def with_smallest(value: float) -> Tensor:
    """Return a matrix with 99 singular values of one, and a smaller one."""
    return rotation(100, 6) * torch.cat([torch.ones(99, dtype=F64), torch.tensor([value], dtype=F64)])


@pytest.mark.parametrize("block", [1, 3])
def test_a_smallest_value_that_round_off_could_have_made_is_nan(block: int) -> None:
    """The products are trusted to 1e-13 of the largest value: 1e-12 could be round-off, and 1e-10 could not."""
    for smallest, expected in [(1e-12, math.nan), (1e-10, 1e-10)]:
        found, _ = krylov(with_smallest(smallest), block)
        assert found.largest[0].tolist() == pytest.approx([1.0] * block, rel=1e-12)
        assert found.smallest.tolist() == pytest.approx([expected], rel=1e-3, nan_ok=True)


@pytest.mark.parametrize("exponent", [-20, 20])
@pytest.mark.parametrize("name", ["near isometry", "perturbed identity", "hidden smallest value"])
def test_a_power_of_two_multiplies_the_values_and_changes_nothing_else(name: str, exponent: int) -> None:
    """All thresholds are relative, so that the same number of blocks is spanned, and the same values have converged."""
    A = MATRICES.get(name, with_smallest(1e-12))
    plain, scaled = krylov(A, 2)[0], krylov(A * 2.0**exponent, 2)[0]
    assert torch.equal(scaled.basis, plain.basis)
    for one, other in [(scaled.largest, plain.largest), (scaled.smallest, plain.smallest)]:
        assert torch.allclose(one * 2.0**-exponent, other, rtol=1e-15, atol=0, equal_nan=True)


def test_a_spread_with_a_large_standard_error_is_nan() -> None:
    """Three of 600 values hold nine tenths of the fourth powers: 16 probes do not estimate the spread to 5 %."""
    squares = torch.cat([torch.ones(597), torch.full((3,), 144.0)]).double()
    A = torch.diag(squares.sqrt())
    zero = torch.zeros(1, dtype=F64)
    found = Krylov(
        torch.ones(1, 1, dtype=F64), torch.ones(1, dtype=F64), torch.zeros(1, 1, 600, dtype=F64), zero, zero, zero
    )
    generator = torch.Generator().manual_seed(0)

    def draw(attempt: int) -> Tensor:
        return torch.randn(1, 16, 600, generator=generator, dtype=F64)

    assert math.isnan(float(spread_of_squares(lambda v: v @ A.T, lambda u: u @ A, found, draw, attempts=1)))
    # Enough probes do: ‖AᵀA g‖² of one probe varies by sqrt(2/3) of its mean.
    generator = torch.Generator().manual_seed(0)
    exact = float(squares.var(correction=0) / squares.mean().square())
    spread = float(spread_of_squares(lambda v: v @ A.T, lambda u: u @ A, found, draw, attempts=400))
    assert spread == pytest.approx(exact, rel=2 * 0.05)


def test_one_matrix_per_trajectory() -> None:
    """Two matrices at once give what each gives alone; the iteration ends for both when the slower one has converged."""
    pair = torch.stack([MATRICES["perturbed identity"], 5 * rotation(300, 9)])
    start = torch.randn(1, 2, 300, generator=torch.Generator().manual_seed(0), dtype=F64).expand(2, 2, 300)
    found = bidiagonalize(lambda v: v @ pair.mT, lambda u: u @ pair, start, 2, tolerance=1e-3, noise=1e-13, limit=100)
    expected = torch.linalg.svdvals(pair)
    assert torch.allclose(found.largest, expected[:, :2], rtol=1e-3)
    assert torch.allclose(found.smallest, expected[:, -1], rtol=1e-3)


def test_the_basis_is_orthonormal_and_its_sums_are_those_of_the_products() -> None:
    A = MATRICES["perturbed identity"]
    found, _ = krylov(A, 2)
    V = found.basis[0]
    # Orthonormal up to round-off: each of about 100 vectors is orthogonalized twice against all others.
    assert torch.allclose(V @ V.T, torch.eye(len(V), dtype=F64), rtol=0, atol=1e-12)
    images = V @ A.T
    assert float(found.squares[0]) == pytest.approx(float(images.square().sum()), rel=1e-12)
    assert float(found.fourth[0]) == pytest.approx(float((images @ A).square().sum()), rel=1e-12)


def test_products_that_are_not_finite_give_nan() -> None:
    found, spread = krylov(torch.full((4, 4), math.nan, dtype=F64))
    assert found.largest.isnan().all() and found.smallest.isnan().all() and math.isnan(spread)


def test_transposed_products_that_are_not_finite_give_nan() -> None:
    found = bidiagonalize(
        lambda v: v, lambda u: u / 0, torch.ones(1, 1, 4, dtype=F64), 1, tolerance=1e-3, noise=1e-13, limit=100
    )
    assert found.largest.isnan().all() and found.smallest.isnan().all()


@pytest.mark.parametrize("gain", [1e-3, 1.0, 1e3])
def test_the_standard_error_of_a_spread(gain: float) -> None:
    """Exact jackknife over two probes without a subspace: half the difference of the two estimates that leave one out."""
    squares, fourth = torch.tensor([[3.0, 5.0]], dtype=F64) * gain**2, torch.tensor([[4.0, 9.0]], dtype=F64) * gain**4
    zero = torch.zeros(1, dtype=F64)
    found = Krylov(zero[:, None], zero, torch.zeros(1, 1, 2, dtype=F64), zero, zero, zero)
    value, error = _jackknife(found, squares, fourth)
    assert float(value) == pytest.approx(2 * 6.5 / 4**2 - 1)
    assert float(error) == pytest.approx(abs((2 * 9 / 5**2 - 1) - (2 * 4 / 3**2 - 1)) / 2)


def test_a_spread_on_the_whole_space_is_exact() -> None:
    """The basis spans everything, so that no probes are left."""
    A = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    found, spread = krylov(A)
    squares = torch.tensor([1.0, 4.0, 9.0], dtype=F64)
    assert found.basis.shape == (1, 3, 3)
    assert spread == pytest.approx(float(squares.var(correction=0) / squares.mean().square()), rel=1e-12)


@pytest.mark.parametrize("wrong", [0.0, 0.1])
def test_an_adjoint_that_is_none_is_asymmetric(wrong: float) -> None:
    """Products with another matrix than the transpose do not agree with those of the matrix."""
    matrix = gaussian(300, 300)
    other = matrix + wrong * gaussian(300, 300).flip(0)
    start = torch.randn(1, 2, 300, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = bidiagonalize(lambda v: v @ matrix.T, lambda u: u @ other, start, 1, tolerance=1e-3, noise=1e-13, limit=5)
    assert (float(found.asymmetry) < 1e-12) == (not wrong)
    assert not wrong or float(found.asymmetry) > 1e-2
