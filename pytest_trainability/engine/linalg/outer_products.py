"""Matrices of rank one, one per sample, that are kept as their two factors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .norms import as_float64

__all__ = ["OuterProducts", "dense", "first_samples", "inner_products"]


@dataclass(frozen=True, slots=True, eq=False)
class OuterProducts:
    """Matrices ``g_i = δ_i a_iᵀ``, which take ``m + n`` numbers each instead of ``m n``."""

    left: Tensor
    """``δ_i``, ``(samples, m)``."""
    right: Tensor
    """``a_i``, ``(samples, n)``."""

    def __len__(self) -> int:
        return len(self.right)


def dense(matrices: Tensor | OuterProducts) -> Tensor:
    """Return the matrices of all samples as one tensor, ``(samples, m, n)``; a tensor of any shape is returned as it is."""
    if isinstance(matrices, Tensor):
        return matrices
    return matrices.left[:, :, None] * matrices.right[:, None, :]


def first_samples(matrices: Tensor | OuterProducts, count: int) -> Tensor | OuterProducts:
    """Return the matrices of the first samples."""
    if isinstance(matrices, Tensor):
        return matrices[:count]
    return OuterProducts(matrices.left[:count], matrices.right[:count])


def inner_products(matrices: OuterProducts, others: Tensor | OuterProducts) -> Tensor:
    """Return the inner products of all pairs, ``⟨δ aᵀ, G⟩ = δᵀ G a``, ``(samples, others)`` in float64.

    Args:
        matrices: Outer products.
        others: Further ones, or real matrices ``(others, m, n)``.
    """
    left, right = as_float64(matrices.left), as_float64(matrices.right)
    if isinstance(others, OuterProducts):
        return (left @ as_float64(others.left).T) * (right @ as_float64(others.right).T)
    return (left @ as_float64(others) * right).sum(dim=2).T
