"""Lanczos' method: the largest eigenvalue of a symmetric map that is given by its products with vectors."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .norms import norm

__all__ = ["TOLERANCE", "Eigenvalue", "largest_eigenvalue"]


TOLERANCE = 1e-3
"""Relative residual below which an eigenvalue has converged. Its relative error is usually the square of the residual."""
MOST_PRODUCTS = 100
"""Products after which the iteration gives up."""
ZERO = 4
"""An eigenvalue counts as zero up to this multiple of eps times the largest modulus of an eigenvalue."""


@dataclass(frozen=True, slots=True)
class Eigenvalue:
    """The largest eigenvalue of a symmetric map, as computed by Lanczos' method."""

    value: float
    """Largest Ritz value; NaN if it has not converged."""
    error: float
    """Residual norm of its Ritz vector: at least one eigenvalue of the map is no further from ``value`` than this."""
    products: int
    """Number of products with the map."""
    asymmetry: float
    """Largest ``|⟨q_{k-1}, H q_k⟩ − ⟨q_k, H q_{k-1}⟩|`` of all steps, relative to the largest modulus of a Ritz value."""


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    tolerance: float = TOLERANCE,
    most: int = MOST_PRODUCTS,
    kept: int = MOST_PRODUCTS,
) -> Eigenvalue:
    """Compute the algebraically largest eigenvalue of a symmetric map by Lanczos' method.

    ``H Q_k = Q_k T_k + β_k q_{k+1} e_kᵀ`` with ``Q_k`` orthonormal and ``T_k`` tridiagonal. For an eigenpair ``(θ, s)`` of
    ``T_k``, the residual of the Ritz vector ``Q_k s`` is ``β_k |e_kᵀ s|``: at least one eigenvalue is no further from θ than
    this. The iteration ends when the residual is at most ``tolerance |θ|``, or when θ is zero up to the round-off of the
    eigenvalue of largest modulus. If that round-off exceeds ``tolerance |θ|``, θ cannot be computed.

    The converged eigenvalue is the largest one with overwhelming probability: from a random start, θ is too small by more than
    ``ε (λ_max − λ_min)`` with probability at most ``1.648 √n exp(−√ε (2k − 1))``.

    Args:
        product: Maps a vector ``v`` to ``H v``, both ``(n,)``.
        start: Random starting vector ``(n,)``; its dtype is used for all vectors. The coefficients of ``T_k`` are float64.
        tolerance: Largest residual, relative to the eigenvalue.
        most: Products after which the iteration gives up and the value is NaN.
        kept: Number of latest vectors that a new vector is orthogonalized against, at least two. With fewer than ``most``,
            converged Ritz values can appear twice; the largest one stays the same (Paige 1980).

    Returns:
        The eigenvalue, in the unit of the map. NaN if a product is not finite, if the iteration gives up, or if a negative
        eigenvalue is so large that its round-off hides the largest one.

    Source: Lanczos, J. Res. Natl. Bur. Stand. 45, 255 (1950); Paige, Linear Algebra Appl. 34, 235 (1980); for the probability
    Kuczyński & Woźniakowski, SIAM J. Matrix Anal. Appl. 13, 1094 (1992), applied to ``H − λ_min``.
    """
    Q: deque[Tensor] = deque(maxlen=max(2, kept))
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    q, size, eps, asymmetry = start / norm(start).to(start), len(start), torch.finfo(start.dtype).eps, 0.0
    while True:
        w = product(q)
        if off_diagonal:
            asymmetry = max(asymmetry, abs(float(torch.dot(Q[-1], w)) - off_diagonal[-1]))
        Q.append(q)
        diagonal.append(float(torch.dot(q, w)))
        # Two passes of Gram-Schmidt are enough (Giraud & Langou 2002).
        for vector in (*Q, *Q):
            w.sub_(vector, alpha=float(torch.dot(vector, w)))
        beta, count = float(norm(w)), len(diagonal)
        if not math.isfinite(beta + diagonal[-1]):
            return Eigenvalue(math.nan, math.nan, count, math.nan)
        values, vectors = _eigenpairs(diagonal, off_diagonal)
        theta, largest = float(values[-1]), float(values.abs().max())
        error = 0.0 if count == size else beta * abs(float(vectors[-1, -1]))
        roundoff = eps * largest
        if max(error, roundoff) <= tolerance * abs(theta) or max(error, abs(theta)) <= ZERO * roundoff:
            return Eigenvalue(theta, error, count, asymmetry / largest if largest else 0.0)
        if beta <= roundoff or count == most:
            return Eigenvalue(math.nan, error, count, asymmetry / largest)
        off_diagonal.append(beta)
        q = w / beta


def _eigenpairs(diagonal: Sequence[float], off_diagonal: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues, smallest first, and eigenvectors of a symmetric tridiagonal matrix."""
    T = torch.diag(torch.tensor(diagonal, dtype=torch.float64, device="cpu"))
    if off_diagonal:
        off = torch.tensor(off_diagonal, dtype=torch.float64, device="cpu")
        T += torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(T)
    return values, vectors
