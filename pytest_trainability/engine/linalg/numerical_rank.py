"""Numerical rank: which part of a triangular factor exceeds round-off."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["near_rank_threshold", "without_round_off"]


NEAR_THRESHOLD = 100.0
"""A factor with a diagonal entry below this multiple of the round-off is judged by a singular value decomposition."""


def near_rank_threshold(R: Tensor, ranks: Tensor, least: Tensor) -> list[int]:
    """Return which triangular factors have a rank that their diagonal does not decide.

    Orthogonalizing against a short column amplifies round-off. Behind a small diagonal entry, later entries can therefore be
    round-off although they are far above ``least``.

    Args:
        R: Upper triangular factors, ``(trajectories, m, k)``.
        ranks: Number of leading columns of each that are in use, ``(trajectories,)``.
        least: Largest length that counts as round-off, ``(trajectories,)``.

    Returns:
        Indices of the trajectories, in ascending order.
    """
    diagonal = R.diagonal(dim1=-2, dim2=-1).abs()
    used = torch.arange(diagonal.shape[1], device=R.device) < ranks.to(R.device)[:, None]
    smallest = torch.where(used, diagonal, torch.inf).amin(dim=1)
    found: list[int] = (smallest <= NEAR_THRESHOLD * least).nonzero()[:, 0].tolist()
    return found


def without_round_off(R: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Factorize one matrix at its numerical rank r, by a truncated singular value decomposition.

    Args:
        R: A matrix of shape ``(m, k)``.
        least: Largest singular value that counts as round-off.

    Returns:
        Orthonormal columns ``W`` of shape ``(m, r)`` and ``B`` of shape ``(r, k)``, with ``W B = R`` up to round-off.
    """
    W, values, Vt = torch.linalg.svd(R, full_matrices=False)
    rank = int((values > least).sum())
    return W[:, :rank], values[:rank, None] * Vt[:rank]
