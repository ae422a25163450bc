"""How many directions a step leaves: what of a triangular factor is more than round-off."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["near_rank_threshold", "without_round_off"]


NEAR_THRESHOLD = 100.0
"""A column that is less than so many times above round-off is judged by a singular value decomposition of the step."""


def near_rank_threshold(R: Tensor, ranks: Tensor, least: Tensor) -> list[int]:
    """Tell the triangular factors whose rank their diagonal leaves open.

    What is left of a column beside the earlier ones is as uncertain as the shortest of those was short: it may be round-off and
    still be far above ``least``.

    Args:
        R: Upper triangular, ``(samples, m, k)``.
        ranks: How many leading columns of each are there, ``(samples,)``.
        least: What is not above it is round-off, ``(samples,)``.

    Returns:
        Indices of samples.
    """
    diagonal = R.diagonal(dim1=-2, dim2=-1).abs()
    there = torch.arange(diagonal.shape[1], device=R.device) < ranks.to(R.device)[:, None]
    smallest = torch.where(there, diagonal, torch.inf).amin(dim=1)
    found: list[int] = (smallest <= NEAR_THRESHOLD * least).nonzero()[:, 0].tolist()
    return found


def without_round_off(R: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Factorize one matrix to its numerical rank r.

    Args:
        R: Of shape ``(m, k)``.
        least: Singular values not above it are round-off.

    Returns:
        Orthonormal columns ``W`` of shape ``(m, r)`` and ``B`` of shape ``(r, k)``, with ``W B = R`` up to round-off.
    """
    W, values, Vt = torch.linalg.svd(R, full_matrices=False)
    rank = int((values > least).sum())
    return W[:, :rank], values[:rank, None] * Vt[:rank]
