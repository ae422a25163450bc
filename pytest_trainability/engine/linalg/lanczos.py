"""Lanczos' method: the largest eigenvalue of a symmetric map known only by its products with vectors."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .norms import norm

__all__ = ["Eigenvalue", "TOLERANCE", "largest_eigenvalue"]


# Eigenvalues --------------------------------------------------------------------------------------------------------
TOLERANCE = 1e-3
"""Relative residual at which an eigenvalue counts as found; its error is mostly the square of it."""
MOST_PRODUCTS = 100
ZERO = 4
"""Times the last bit of the largest modulus: an eigenvalue that is no larger is zero."""


@dataclass(frozen=True, slots=True)
class Eigenvalue:
    """What Lanczos' method has found of a symmetric map."""

    value: float
    """Largest Ritz value; NaN where it has not converged."""
    error: float
    """Residual norm of its Ritz vector: some eigenvalue of the map is as near as this."""
    products: int
    """How many vectors the map was applied to."""
    asymmetry: float
    """Largest ``|⟨q_{k-1}, H q_k⟩ − ⟨q_k, H q_{k-1}⟩|`` seen, relative to the largest Ritz value's modulus."""


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    tolerance: float = TOLERANCE,
    most: int = MOST_PRODUCTS,
    kept: int = MOST_PRODUCTS,
) -> Eigenvalue:
    """Return the largest eigenvalue of a symmetric map, the algebraically largest one, by Lanczos' method.

    ``H Q_k = Q_k T_k + β_k q_{k+1} e_kᵀ`` with ``Q_k`` orthonormal and ``T_k`` tridiagonal. For an eigenpair ``(θ, s)`` of
    ``T_k`` the residual of the Ritz vector ``Q_k s`` is ``β_k |e_kᵀ s|``: *some* eigenvalue is no further from θ than that, and
    the iteration ends when it is at most ``tolerance |θ|``, or θ is zero up to round-off of the eigenvalue of largest modulus.
    Where round-off of that one is more than ``tolerance |θ|``, θ is not to be had. That it is the largest one is not certain but
    overwhelmingly likely: from a random start, θ falls short of it by more than ``ε (λ_max − λ_min)`` with probability
    ``1.648 √n exp(−√ε (2k − 1))`` at most.

    Args:
        product: The map.
        start: Vector ``(n,)`` to start from, drawn at random; its dtype is that of the vectors. The coefficients of ``T_k``
            are float64.
        tolerance: On the residual, relative to the eigenvalue.
        most: Products after which to give up: the value is NaN.
        kept: How many of the last vectors a new one is made orthogonal to, at least two. With fewer than ``most``, Ritz values
            that have converged may come twice, which does no harm to the largest one (Paige 1980).

    Returns:
        The eigenvalue, in the map's unit; NaN where the map gives something that is not finite, and where an eigenvalue below
        zero is so large that in the dtype of the vectors little is left of the one asked for.

    Source: Lanczos, J. Res. Natl. Bur. Stand. 45, 255 (1950); Paige, Linear Algebra Appl. 34, 235 (1980); for the probability
    Kuczyński & Woźniakowski, SIAM J. Matrix Anal. Appl. 13, 1094 (1992), applied to ``H − λ_min``.
    """
    Q: deque[Tensor] = deque(maxlen=max(2, kept))
    diagonal: list[float] = []
    beside: list[float] = []
    q, size, eps, asymmetry = start / norm(start).to(start), len(start), torch.finfo(start.dtype).eps, 0.0
    while True:
        w = product(q)
        if beside:
            asymmetry = max(asymmetry, abs(float(torch.dot(Q[-1], w)) - beside[-1]))
        Q.append(q)
        diagonal.append(float(torch.dot(q, w)))
        # Twice is enough (Giraud & Langou 2002).
        for vector in (*Q, *Q):
            w -= torch.dot(vector, w) * vector
        beta, count = float(norm(w)), len(diagonal)
        if not math.isfinite(beta + diagonal[-1]):
            return Eigenvalue(math.nan, math.nan, count, math.nan)
        values, vectors = _eigenpairs(diagonal, beside)
        theta, largest = float(values[-1]), float(values.abs().max())
        error = 0.0 if count == size else beta * abs(float(vectors[-1, -1]))
        roundoff = eps * largest
        if max(error, roundoff) <= tolerance * abs(theta) or max(error, abs(theta)) <= ZERO * roundoff:
            return Eigenvalue(theta, error, count, asymmetry / largest if largest else 0.0)
        if beta <= roundoff or count == most:
            return Eigenvalue(math.nan, error, count, asymmetry / largest)
        beside.append(beta)
        q = w / beta


def _eigenpairs(diagonal: Sequence[float], beside: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, smallest first, and eigenvectors of a symmetric tridiagonal matrix."""
    T = torch.diag(torch.tensor(diagonal, dtype=torch.float64, device="cpu"))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64, device="cpu")
        T += torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(T)
    return values, vectors
