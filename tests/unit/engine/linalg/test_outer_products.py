"""Matrices of rank one, against dense ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pytest_trainability.engine.linalg.gram import gram_matrix
from pytest_trainability.engine.linalg.outer_products import OuterProducts, dense, first_samples, inner_products

F64 = torch.float64


def normal(*shape: int, seed: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def products(samples: int, seed: int = 0, dtype: torch.dtype = F64) -> OuterProducts:
    return OuterProducts(normal(samples, 3, seed=seed, dtype=dtype), normal(samples, 5, seed=seed + 1, dtype=dtype))


def test_dense_matrices_are_the_outer_products() -> None:
    found = products(6)
    assert len(found) == 6
    assert torch.equal(dense(found)[2], torch.outer(found.left[2], found.right[2]))
    assert torch.equal(dense(first_samples(found, 2)), dense(found)[:2])
    assert torch.equal(dense(first_samples(dense(found), 2)), dense(found)[:2])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_inner_products_are_those_of_dense_matrices(dtype: torch.dtype) -> None:
    """In float64 whatever the type of the factors: to a few roundings of fifteen terms."""
    found, other = products(4, dtype=dtype), products(3, seed=2, dtype=dtype)
    wide = [dense(OuterProducts(p.left.double(), p.right.double())).flatten(1) for p in (found, other)]
    assert torch.allclose(inner_products(found, other), wide[0] @ wide[1].T, rtol=1e-13, atol=1e-13)
    matrices = normal(2, 3, 5, seed=4, dtype=dtype)
    assert torch.allclose(
        inner_products(found, matrices), wide[0] @ matrices.double().flatten(1).T, rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("further", [0, 2])
def test_gram_matrices_of_outer_products_and_dense_rows(further: int) -> None:
    outer, vectors, more = products(4), normal(4, 7, seed=5), [normal(2, 3, 5, seed=6), normal(2, 7, seed=7)]
    found = gram_matrix(
        lambda a, b: [OuterProducts(outer.left[a:b], outer.right[a:b]), vectors[a:b]],
        4,
        22,
        further=more if further else (),
    )
    rows = torch.cat([dense(outer).flatten(1), vectors], dim=1)
    if further:
        rows = torch.cat([rows, torch.cat([part.flatten(1) for part in more], dim=1)])
    assert torch.allclose(found, rows @ rows.T, rtol=1e-13, atol=1e-13)
