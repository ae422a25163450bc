"""Numerical rank: which part of a triangular factor exceeds round-off."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["maybe_short_of_rank", "near_rank_threshold", "without_round_off"]


NEAR_THRESHOLD = 100.0
"""The diagonal does not decide the rank of a factor with a diagonal entry below this multiple of the round-off."""
SURE = 2.0
"""A factor has full rank if a lower bound on its smallest singular value exceeds the round-off by this factor."""


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


def maybe_short_of_rank(R: Tensor, ranks: Tensor, least: Tensor) -> list[int]:
    """Return which triangular factors are to be judged by a singular value decomposition.

    These are the ones near the threshold, except those whose inverse proves that they have full rank: the smallest singular
    value is at least ``1 / ‖R⁻¹‖`` in the Frobenius norm.

    Args:
        R: Upper triangular factors, ``(trajectories, m, k)``.
        ranks: Number of leading columns of each that are in use, ``(trajectories,)``.
        least: Largest length that counts as round-off, ``(trajectories,)``.

    Returns:
        Indices of the trajectories, in ascending order.
    """
    near = near_rank_threshold(R, ranks, least)
    if not near:
        return []
    size = min(R.shape[-2:])
    used = torch.arange(size, device=R.device) < ranks.to(R.device)[near, None]
    inside = used[:, :, None] & used[:, None, :]
    identity = torch.eye(size, dtype=R.dtype, device=R.device)
    square = torch.where(inside, R[near, :size, :size], identity)
    inverse = torch.linalg.solve_triangular(square, identity * used[:, None, :], upper=True)
    bounds = 1 / torch.linalg.vector_norm(inverse, dim=(1, 2))
    # Singular factors have the bound zero or NaN.
    is_full = bounds > SURE * least.to(R.device)[near]
    return [number for number, sure in zip(near, is_full.tolist()) if not sure]


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
