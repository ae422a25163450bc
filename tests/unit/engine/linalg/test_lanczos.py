"""Lanczos' method, against dense eigenvalues; its accuracy and its limits are in tests/truth/test_curvature.py."""

from __future__ import annotations

import math

import pytest
import torch
from matrices import rotation
from torch import Tensor

from pytest_trainability.engine.linalg.lanczos import Eigenvalue, _eigenpairs, largest_eigenvalue

F64 = torch.float64


def found_of(eigenvalues: list[float], **options: float) -> Eigenvalue:
    """Return the largest eigenvalue of a dense matrix with these eigenvalues."""
    Q, values = rotation(len(eigenvalues), 3), torch.tensor(eigenvalues, dtype=F64)
    start = torch.randn(len(values), generator=torch.Generator().manual_seed(0), dtype=F64)
    return largest_eigenvalue(lambda v: Q @ (values * (Q.T @ v)), start, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "eigenvalues",
    [[3.0], [1.0, 2.0], [-5.0, -1.0, -2.0], [4.0] * 5, [1e-6, 1.0], list(range(30))],
    ids=["one", "two", "negative", "equal", "graded", "many"],
)
def test_the_algebraically_largest_eigenvalue(eigenvalues: list[float]) -> None:
    """The error is bounded by the residual that is returned, up to round-off of the largest modulus."""
    found = found_of(eigenvalues)
    scale = max(map(abs, eigenvalues))
    assert abs(found.value - max(eigenvalues)) <= found.error + 1e-13 * scale
    assert found.error <= 1e-3 * abs(found.value)
    assert 1 <= found.products <= len(eigenvalues)
    assert found.asymmetry < 1e-12


def test_equal_eigenvalues_take_one_product() -> None:
    assert found_of([4.0] * 5).products == 1


def test_the_strictest_tolerance_is_the_round_off_of_the_dtype() -> None:
    """A residual of exactly ``tolerance |θ|`` has converged. Half of it is out of reach."""
    eps = torch.finfo(F64).eps
    assert found_of([3.0], tolerance=eps).value == pytest.approx(3.0)
    assert math.isnan(found_of([3.0], tolerance=eps / 2).value)


def test_a_map_of_zero_has_eigenvalue_zero() -> None:
    found = largest_eigenvalue(lambda v: 0 * v, torch.ones(4))
    assert (found.value, found.error, found.asymmetry) == (0.0, 0.0, 0.0)


def test_zero_below_large_negative_eigenvalues_counts_as_zero() -> None:
    assert found_of([0.0, -1.0, -2.0]).value == pytest.approx(0, abs=1e-15)


def test_giving_up_is_nan_with_the_residual_so_far() -> None:
    found = found_of([float(i) for i in range(60)], most=3, tolerance=1e-12)
    assert math.isnan(found.value) and found.products == 3 and found.error > 0


def test_products_that_are_not_finite_are_nan() -> None:
    found = largest_eigenvalue(lambda v: v / 0, torch.ones(4))
    assert math.isnan(found.value) and found.products == 1


def test_an_asymmetric_map_is_measured() -> None:
    """The coupling of a rotation by 90 degrees has the opposite sign."""

    def turned(v: Tensor) -> Tensor:
        return torch.stack([v[1], -v[0]]) + torch.tensor([3.0, 1.0], dtype=F64) * v

    assert largest_eigenvalue(turned, torch.tensor([1.0, 0.5], dtype=F64)).asymmetry > 0.1


@pytest.mark.parametrize("most", [2, 5], ids=["given up", "converged"])
def test_asymmetry_is_relative_to_the_largest_ritz_value(most: int) -> None:
    """``|⟨q_0, A q_1⟩ - ⟨q_1, A q_0⟩|`` from the first two vectors, over the largest eigenvalue of the 2 by 2 matrix."""
    A = torch.tensor([[6.0, 1.0, 0.0], [0.0, 2.0, 0.5], [0.0, 0.5, 2.0]], dtype=F64)
    if most == 5:
        # The third vector has no part in the map: two products exhaust the space.
        A[1, 2] = A[2, 1] = 0.0
    start = torch.tensor([1.0, 1.0, 0.0], dtype=F64)
    found = largest_eigenvalue(lambda v: A @ v, start, most=most, tolerance=1e-12)
    q0 = start / math.sqrt(2)
    rest = A @ q0 - (q0 @ A @ q0) * q0
    q1 = rest / rest.norm()
    T = torch.tensor([[q0 @ A @ q0, rest.norm()], [rest.norm(), q1 @ A @ q1]], dtype=F64)
    assert found.products == 2 and math.isnan(found.value) == (most == 2)
    expected = abs(float(q0 @ A @ q1 - rest.norm())) / float(torch.linalg.eigvalsh(T).abs().max())
    assert expected > 0.1 and found.asymmetry == pytest.approx(expected)


def test_eigenpairs_of_a_tridiagonal_matrix() -> None:
    """A second difference of size n has the eigenvalues ``2 - 2 cos(π k / (n + 1))``."""
    values, vectors = _eigenpairs([2.0] * 4, [-1.0] * 3)
    assert values.tolist() == pytest.approx([2 - 2 * math.cos(math.pi * k / 5) for k in range(1, 5)], abs=1e-14)
    assert torch.allclose(vectors.T @ vectors, torch.eye(4, dtype=F64), atol=1e-14)
    assert _eigenpairs([7.0], [])[0].tolist() == [7.0]
