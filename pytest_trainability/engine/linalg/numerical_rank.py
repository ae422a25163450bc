"""Numerical rank: which part of a triangular factor exceeds round-off."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["maybe_short_of_rank", "near_rank_threshold", "without_round_off"]


NEAR_THRESHOLD = 100.0
"""The diagonal does not decide the rank of a factor with a diagonal entry below this multiple of the round-off."""


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
    value ``1 / ‖R⁻¹‖`` exceeds ``least`` if ``1 - least² R⁻¹ R⁻ᵀ`` has a Cholesky factor. Where the Frobenius norm of the inverse
    is small enough, that is not computed.

    Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), section 14.2, for the error of the inverse.

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
    size, eps = min(R.shape[-2:]), torch.finfo(R.dtype).eps
    used = torch.arange(size, device=R.device) < ranks.to(R.device)[near, None]
    square, identity = R[near, :size, :size], torch.eye(size, dtype=R.dtype, device=R.device)
    # A triangular inverse is accurate to n eps κ.
    errors = size * eps * torch.linalg.vector_norm(square, dim=(1, 2))
    # The leading columns of the inverse are those of the leading block, whatever stands beside it.
    square.diagonal(dim1=1, dim2=2).masked_fill_(~used, 1.0)
    inverse = torch.linalg.solve_triangular(square, identity * used[:, None, :], upper=True)
    lengths = torch.linalg.vector_norm(inverse, dim=(1, 2))
    scale = (1 + errors * lengths) * least.to(R.device)[near]
    # Singular factors have the bound zero or NaN.
    undecided = (~(scale * lengths < 1)).nonzero()[:, 0]
    if not len(undecided):
        return []
    scaled = scale[undecided, None, None] * inverse[undecided]
    found = torch.linalg.cholesky_ex(identity - scaled @ scaled.mT)
    is_full = (found.info == 0) & found.L.diagonal(dim1=1, dim2=2).isfinite().all(dim=1)
    return [near[number] for number in undecided[~is_full].tolist()]


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
