"""Numerical rank of triangular factors."""

from __future__ import annotations

import pytest
import torch
from matrices import gaussian, rotation

from pytest_trainability.engine.linalg.numerical_rank import (
    NEAR_THRESHOLD,
    maybe_short_of_rank,
    near_rank_threshold,
    without_round_off,
)

F64 = torch.float64


def test_only_factors_with_a_small_diagonal_entry_are_near_the_threshold() -> None:
    diagonals = [
        [1.0, 2.0, 3.0],
        [1.0, NEAR_THRESHOLD * 1e-6, 1.0],
        [1.0, NEAR_THRESHOLD * 1.001e-6, 1.0],
        [1.0, -1e-9, 1.0],
    ]
    R = torch.diag_embed(torch.tensor(diagonals, dtype=F64))
    assert near_rank_threshold(R, torch.full((4,), 3), torch.full((4,), 1e-6, dtype=F64)) == [1, 3]


def test_entries_beyond_the_columns_in_use_do_not_count() -> None:
    R = torch.diag_embed(torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=F64))
    assert near_rank_threshold(R, torch.tensor([1, 2]), torch.tensor([1e-6, 1e-6], dtype=F64)) == [1]
    assert near_rank_threshold(R, torch.tensor([0, 0]), torch.tensor([1e-6, 1e-6], dtype=F64)) == []


@pytest.mark.parametrize("rows", [12, 16])
def test_no_factor_that_is_short_of_rank_is_passed_over(rows: int) -> None:
    """Factors with smallest singular values on both sides of the threshold, against a singular value decomposition."""
    size, least = 12, 1e-6
    smallest = [1e-2, 1e-4, 1e-5, 2e-6, 1.1e-6, 0.9e-6, 1e-7, 0.0]
    spectra = [[*torch.linspace(1, 0.1, size - 1, dtype=F64).tolist(), value] for value in smallest]
    products = [rotation(size, 1) @ torch.diag(torch.tensor(s, dtype=F64)) @ rotation(size, 2) for s in spectra]
    R = torch.zeros(len(smallest), size, rows, dtype=F64)
    R[:, :, :size] = torch.stack([torch.linalg.qr(product).R for product in products])
    found = maybe_short_of_rank(R, torch.full((8,), size), torch.full((8,), least, dtype=F64))
    short = [i for i, factor in enumerate(R) if len(without_round_off(factor, least)[1]) < size]
    assert found == short == [5, 6, 7]


def test_only_columns_in_use_decide_whether_a_factor_may_be_short_of_rank() -> None:
    """Behind two columns in use, the rest is zero. Their small diagonal entry is far above the threshold of one factor only."""
    R = torch.zeros(2, 4, 4, dtype=F64)
    R[:, :2, :2] = torch.tensor([[1.0, 0.5], [0.0, 1e-5]])
    assert maybe_short_of_rank(R, torch.tensor([2, 2]), torch.tensor([1e-6, 1e-5], dtype=F64)) == [1]
    assert maybe_short_of_rank(R, torch.tensor([0, 1]), torch.tensor([1e-6, 1e-5], dtype=F64)) == []
    assert maybe_short_of_rank(R, torch.tensor([3, 2]), torch.tensor([1e-6, 1e-5], dtype=F64)) == [0, 1]


@pytest.mark.parametrize("size", [1e-100, 1.0, 1e100])
def test_factors_of_any_size_are_judged_alike(size: float) -> None:
    R = size * torch.linalg.qr(torch.diag(torch.tensor([1.0, 1e-3, 3e-6, 3e-6], dtype=F64)) @ rotation(4, 1)).R
    ranks = torch.tensor([4, 4])
    assert maybe_short_of_rank(R.expand(2, 4, 4), ranks, size * torch.tensor([2.9e-6, 3.1e-6], dtype=F64)) == [1]


def test_what_is_not_finite_or_singular_is_not_proven() -> None:
    R = torch.eye(3, dtype=F64).repeat(3, 1, 1)
    R[0, 0, 1], R[1, 1, 1] = torch.nan, 0.0
    assert maybe_short_of_rank(R, torch.full((3,), 3), torch.full((3,), 0.1, dtype=F64)) == [0, 1]


def test_near_the_precision_of_the_inverse_nothing_is_proven() -> None:
    """The error of an inverse is n eps κ of it. With κ = 1e15 it is as large as the inverse."""
    R = torch.diag(torch.tensor([1.0, 1.0, 1e-15], dtype=F64))[None]
    assert maybe_short_of_rank(R, torch.tensor([3]), torch.tensor([8e-16], dtype=F64)) == [0]


@pytest.mark.parametrize("rank", [0, 1, 3, 5])
def test_a_matrix_of_low_rank_is_factorized_at_its_rank(rank: int) -> None:
    """``W B`` is the matrix to round-off of the largest singular value, and W has orthonormal columns."""
    R = gaussian(6, max(rank, 1)) @ gaussian(max(rank, 1), 5, seed=6) * bool(rank)
    W, B = without_round_off(R, 1e-10)
    assert W.shape == (6, rank) and B.shape == (rank, 5)
    assert torch.allclose(W @ B, R, rtol=0, atol=1e-14)
    assert torch.allclose(W.T @ W, torch.eye(rank, dtype=F64), rtol=0, atol=1e-14)


def test_singular_values_up_to_the_threshold_are_dropped() -> None:
    R = torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=F64))
    assert without_round_off(R, 0.5)[1].shape == (2, 3)
    assert without_round_off(R, 0.49)[1].shape == (3, 3)
