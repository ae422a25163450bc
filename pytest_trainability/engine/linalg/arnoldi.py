"""Arnoldi's method: the largest modulus of an eigenvalue of a map that is given by its products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["largest_moduli"]


FIRST, GROWTH = 20, 1.3
"""Dimension of the first Krylov space whose Ritz values are computed, and largest ratio of the dimensions of successive ones."""
COMPETING = 0.95
"""Modulus, relative to the largest, from which a Ritz value that has not converged could turn out to be the largest one."""


def largest_moduli(product: Callable[[Tensor], Tensor], start: Tensor, *, tolerance: float, most: int) -> Tensor:
    """Compute ``max |eigenvalue|`` of several maps side by side by Arnoldi's method without restarts.

    ``A Q_k = Q_k H_k + h_{k+1,k} q_{k+1} e_kᵀ`` with ``Q_k`` orthonormal. For an eigenpair ``(θ, y)`` of ``H_k``, the residual of
    the Ritz vector ``Q_k y`` is ``h_{k+1,k} |e_kᵀ y|``. To first order, θ is no further from an eigenvalue than the residual
    times its condition number, ``‖x‖ ‖y‖ / |xᴴ y|`` with the left eigenvector x. The iteration ends when this is at most
    ``tolerance |θ|`` for the Ritz value of largest modulus, and none of similar modulus could exceed it by more within its own
    residual; or when the space is invariant. Without restarts no direction is discarded, so that the largest eigenvalue is not
    lost while smaller ones converge.

    Args:
        product: Maps one vector per map, ``(maps, n)``, to the products, ``(maps, n)``.
        start: Random starting vectors, ``(maps, n)``; their dtype is used for all vectors.
        tolerance: Largest estimate of the error, relative to the eigenvalue.
        most: Number of products after which the iteration gives up.

    Returns:
        The moduli, ``(maps,)`` in float64; NaN where a product is not finite or the value has not converged.

    Source: Arnoldi, Q. Appl. Math. 9, 17 (1951); Saad, Numerical Methods for Large Eigenvalue Problems (2011), chapter 6.
    """
    maps, size = start.shape
    most = min(most, size)
    Q = start.new_zeros(maps, most + 1, size)
    H = torch.zeros(maps, most + 1, most, dtype=torch.float64, device="cpu")
    Q[:, 0] = start / torch.linalg.vector_norm(start, dim=1, keepdim=True)
    found = torch.full((maps,), torch.nan, dtype=torch.float64, device="cpu")
    sought, check = torch.arange(maps, device="cpu"), FIRST
    for count in range(1, most + 1):
        Q[:, count], H[:, : count + 1, count - 1] = _orthogonalized(product(Q[:, count - 1]), Q[:, :count])
        if count < min(check, most) and bool(H[:, count, count - 1].any()):
            continue
        values, errors = _leading(H[sought, : count + 1, :count])
        converged = errors <= tolerance * values
        found[sought[converged]] = values[converged]
        left = values.isfinite() & ~converged
        sought = sought[left]
        if not len(sought):
            break
        check = _next_check(count, float((errors[left] / values[left]).max()), tolerance)
    return found


def _next_check(count: int, error: float, tolerance: float) -> int:
    """Return in which dimension the error will be at the tolerance if it goes on to fall geometrically."""
    ratio = math.log(tolerance) / math.log(error) if error < 1 else math.inf
    return math.ceil(count * min(max(ratio, 1.0), GROWTH)) + 1


def _orthogonalized(images: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit vectors orthogonal to Q, zero where nothing is left, and the images' coefficients on Q and on them."""
    whole = torch.linalg.vector_norm(images, dim=1)
    rest, within = images[:, None], torch.zeros_like(Q[:, None, :, 0])
    # Two passes of Gram-Schmidt are enough (Giraud & Langou 2002).
    for _ in range(2):
        part = rest @ Q.mT
        rest, within = torch.baddbmm(rest, part, Q, alpha=-1), within + part
    rest, within = rest[:, 0], within[:, 0]
    length = torch.linalg.vector_norm(rest, dim=1)
    # What is left of a vector in the space of the earlier ones is round-off.
    length = torch.where(length <= 4 * torch.finfo(rest.dtype).eps * whole, 0.0, length)
    unit = torch.where(length[:, None] == 0, 0.0, rest / length[:, None])
    return unit, torch.cat([within, length[:, None]], dim=1).double().cpu()


def _leading(H: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest modulus of a Ritz value and an estimate of its error, both ``(maps,)``; NaN where H is not finite."""
    is_finite = H.isfinite().flatten(1).all(dim=1)
    values, vectors = torch.linalg.eig(torch.where(is_finite[:, None, None], H[:, :-1], 0.0))
    moduli, residuals = values.abs(), H[:, -1, -1:] * vectors[:, -1].abs()
    largest, chosen = moduli.max(dim=1)
    residual = residuals.gather(1, chosen[:, None])[:, 0]
    # The eigenvectors y have length 1. Where they are dependent, the condition number is infinite.
    unit = torch.nn.functional.one_hot(chosen, len(H[0, 0])).to(vectors.dtype)
    left, is_singular = torch.linalg.solve_ex(vectors.mH, unit)
    condition = torch.where(is_singular == 0, torch.linalg.vector_norm(left, dim=1), torch.inf)
    competing = torch.where(moduli >= COMPETING * largest[:, None], moduli + residuals, 0.0).amax(dim=1)
    errors = torch.where(residual == 0, 0.0, residual * condition).maximum(competing - largest)
    return torch.where(is_finite, largest, torch.nan), errors
