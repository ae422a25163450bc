"""Arnoldi's method, against dense eigenvalues."""

from __future__ import annotations

import math

import pytest
import torch
from matrices import rotation
from torch import Tensor

from pytest_trainability.engine.linalg.arnoldi import largest_moduli

F64 = torch.float64
SIZE = 150


def random(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SIZE, SIZE, generator=generator, dtype=F64) / math.sqrt(SIZE)


def masked(seed: int) -> Tensor:
    """Return the Jacobian of a ReLU layer: half of its rows are zero."""
    return (torch.arange(SIZE) % 2)[:, None] * random(seed) * math.sqrt(2)


KINDS = {
    "random": random,
    "symmetric": lambda seed: random(seed) + random(seed).T,
    "residual": lambda seed: torch.eye(SIZE, dtype=F64) + 0.3 * random(seed),
    "masked": masked,
    "product": lambda seed: random(seed) @ random(seed + 100),
    "triangular": lambda seed: 2 * random(seed).abs().triu() / math.sqrt(SIZE) + 0.2 * random(seed),
}


def found_of(maps: Tensor, *, dtype: torch.dtype = F64, tolerance: float = 1e-3, most: int = SIZE) -> list[float]:
    start = torch.randn(len(maps[0]), generator=torch.Generator().manual_seed(0), dtype=F64).expand(len(maps), -1)
    apply = lambda v: (maps @ v.double()[:, :, None])[:, :, 0].to(dtype)  # noqa: E731
    found: list[float] = largest_moduli(apply, start.to(dtype), tolerance=tolerance, most=most).tolist()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_at_most_the_tolerance(kind: str, dtype: torch.dtype) -> None:
    """The largest modulus belongs to one eigenvalue or to a complex pair; eigenvalues of similar modulus are close behind."""
    maps = torch.stack([KINDS[kind](seed) for seed in range(6)])
    assert found_of(maps, dtype=dtype) == pytest.approx(torch.linalg.eigvals(maps).abs().amax(1).tolist(), rel=1e-3)


def test_fewer_products_than_dimensions() -> None:
    products = []

    def apply(vectors: Tensor) -> Tensor:
        products.append(len(vectors))
        return vectors @ matrix.T

    matrix = KINDS["symmetric"](0)
    largest_moduli(apply, torch.ones(1, SIZE, dtype=F64), tolerance=1e-3, most=SIZE)
    assert len(products) < SIZE / 2


def test_an_invariant_space_is_exact() -> None:
    """Two eigenvalues span a space of two dimensions, and the identity one of a single dimension."""
    Q = rotation(SIZE, 1)
    pair = Q @ torch.diag(torch.tensor([3.0, -5.0], dtype=F64).repeat(SIZE // 2)) @ Q.T
    eye = torch.eye(SIZE, dtype=F64)
    assert found_of(torch.stack([pair, eye, 0 * eye])) == pytest.approx([5.0, 1.0, 0.0], rel=1e-12)


def test_what_is_not_finite_or_does_not_converge_is_nan() -> None:
    """All eigenvalues of a rotation have modulus one. The other maps converge beside it."""
    turned = torch.linalg.qr(random(0)).Q
    infinite = torch.full((SIZE, SIZE), math.inf, dtype=F64)
    found = found_of(torch.stack([turned, infinite, KINDS["symmetric"](0)]), most=80)
    assert math.isnan(found[0]) and math.isnan(found[1])
    assert found[2] == pytest.approx(float(torch.linalg.eigvalsh(KINDS["symmetric"](0)).abs().max()), rel=1e-3)


def test_a_defective_matrix_is_not_trusted() -> None:
    """Eigenvalues of a Jordan block are ill-conditioned: a residual of a thousandth says nothing about the error."""
    block = torch.eye(SIZE, dtype=F64) + torch.diag(torch.ones(SIZE - 1, dtype=F64), 1)
    (found,) = found_of(block[None], most=100)
    assert math.isnan(found) or found == pytest.approx(1.0, rel=1e-3)
