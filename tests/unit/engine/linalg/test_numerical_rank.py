"""Numerical rank of triangular factors."""

from __future__ import annotations

import pytest
import torch
from matrices import gaussian

from pytest_trainability.engine.linalg.numerical_rank import NEAR_THRESHOLD, near_rank_threshold, without_round_off

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
