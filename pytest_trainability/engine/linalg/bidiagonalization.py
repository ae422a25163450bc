"""Golub-Kahan-Lanczos bidiagonalization: extreme singular values of a map that is given by its products with vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Krylov", "Operator", "bidiagonalize", "spread_of_squares"]


Operator = Callable[[Tensor], Tensor]
"""Applies one matrix per trajectory to k vectors of each trajectory: ``(trajectories, k, n)`` to ``(trajectories, k, m)``."""


PROMISING = 0.3
"""Relative residual of the smallest value below which the iteration goes on until that value has converged, too."""
STEADY = 0.25
"""Fraction of the tolerance by which a converged value may have moved in the last step. Residuals alone are small too early
if values lie in a narrow cluster."""
SIGNIFICANT = 100.0
"""Smallest ratio of a converged smallest value to the round-off of the products."""


@dataclass(frozen=True, slots=True)
class Krylov:
    """Singular values of one matrix ``A`` per trajectory, from block bidiagonalization."""

    largest: Tensor
    """The largest singular values, ``(trajectories, wanted)``, largest first; NaN where they have not converged."""
    smallest: Tensor
    """The smallest singular value, ``(trajectories,)``; NaN where it has not converged."""
    basis: Tensor
    """``V`` of shape ``(trajectories, p, n)``: orthonormal rows, or zeros."""
    squares: Tensor
    """``‖A V‖²``, Frobenius norm, ``(trajectories,)``."""
    fourth: Tensor
    """``‖Aᵀ A V‖²``, Frobenius norm, ``(trajectories,)``."""
    asymmetry: Tensor
    """Largest ``|⟨Aᵀ u, v⟩ - ⟨u, A v⟩|`` of vectors of both bases, over the largest ``|⟨u, A v⟩|``, ``(trajectories,)``."""


def bidiagonalize(
    apply: Operator, adjoint: Operator, start: Tensor, wanted: int, *, tolerance: float, noise: float, limit: int
) -> Krylov:
    """Compute extreme singular values by block Golub-Kahan-Lanczos bidiagonalization with full reorthogonalization.

    ``A V = U Cᵀ`` and ``Aᵀ U = [V, V₊] Dᵀ``. With ``C = X diag(θ) Yᵀ``, every ``θ`` is within ``‖Aᵀ U y - θ V x‖`` of a singular
    value. It has converged if this residual, or ``residual² / gap`` to its neighbours, is below ``tolerance · θ`` and the value
    no longer moves, or if the space is exhausted.

    Args:
        apply: Products with ``A``, scaled so that they neither overflow nor underflow.
        adjoint: Products with ``Aᵀ``.
        start: Random vectors ``(trajectories, block, n)``, at most n in a block; n is the smaller dimension of ``A``.
        wanted: Number of largest values, at most the block size: equal values beyond it could be missed.
        tolerance: Largest relative error of a converged value.
        noise: Relative error of the products. A new direction that is not longer than this is dropped.
        limit: Largest number of blocks.

    Returns:
        The values that have converged, and the subspace that was spanned.

    Source: Golub & Kahan, SIAM J. Numer. Anal. 2, 205 (1965); Golub, Luk & Overton, ACM Trans. Math. Softw. 7, 149 (1981),
    for blocks; Parlett, The Symmetric Eigenvalue Problem (1998), section 11.7, for the bounds.
    """
    V = U = C = D = start[:, :0]
    fresh, _ = _orthonormal(start, torch.zeros_like(start[:, 0, 0]))
    size = torch.zeros_like(start[:, 0, 0])
    before = torch.full_like(start[:, 0, :1], torch.inf)
    while True:
        V = torch.cat([V, fresh], dim=1)
        images = apply(fresh)
        size = size.maximum(torch.linalg.vector_norm(images, dim=2).amax(dim=1))
        fresh, coefficients = _orthogonal(images, U if U.shape[1] else images[:, :0], noise * size)
        C = torch.cat([pad(C[:, :, : U.shape[1]], (0, fresh.shape[1])), coefficients], dim=1)
        U = torch.cat([U, fresh], dim=1) if U.shape[1] else fresh
        fresh, coefficients = _orthogonal(adjoint(fresh), V, noise * size)
        D = torch.cat([pad(D[:, :, : V.shape[1]], (0, fresh.shape[1])), coefficients], dim=1)
        if not bool(C.isfinite().all() and D.isfinite().all()):
            # LAPACK does not accept such matrices.
            unknown = torch.full_like(size, torch.nan)
            return Krylov(unknown[:, None].expand(-1, wanted), unknown, V, unknown, unknown, unknown)
        values, bounds = _extremes(C, D, V, wanted)
        steady = ((values - before).abs() <= STEADY * tolerance * values) | ~fresh.any(dim=2).any(dim=1)[:, None]
        converged = (bounds <= tolerance * values) & steady
        converged[:, -1] &= values[:, -1] > SIGNIFICANT * noise * values[:, 0]
        promising = ~converged[:, -1] & (bounds[:, -1] <= PROMISING * values[:, -1]) & fresh.any(dim=2).any(dim=1)
        before = values
        finished = bool(converged[:, :-1].all()) and not bool(promising.any())
        if finished or not bool(fresh.any()) or V.shape[1] >= limit * start.shape[1]:
            found = torch.where(converged, values, torch.nan)
            return Krylov(found[:, :-1], found[:, -1], V, _squares(C), _squares(C @ D), _asymmetry(C, D))


def _orthogonal(images: Tensor, basis: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Return the new directions of some images, zero where there is none, and the images' coefficients on old and new ones."""
    rest, within = images, images.new_zeros(*images.shape[:2], basis.shape[1])
    for _ in range(2):
        part = rest @ basis.mT
        rest, within = rest - part @ basis, within + part
    fresh, onto = _orthonormal(rest, least)
    return fresh, torch.cat([within, onto], dim=2)


def _orthonormal(vectors: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    Q, R = torch.linalg.qr(vectors.mT)
    is_new = R.diagonal(dim1=-2, dim2=-1).abs() > least[:, None]
    return Q.mT * is_new[:, :, None], R.mT * is_new[:, None, :]


def _extremes(C: Tensor, D: Tensor, V: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Return the largest values followed by the smallest one, ``(trajectories, wanted + 1)``, and a bound on each one's error."""
    X, theta, Yt = torch.linalg.svd(C)
    residuals = torch.linalg.vector_norm(Yt @ D - pad(theta[:, :, None] * X.mT, (0, D.shape[2] - C.shape[1])), dim=2)
    # Parlett's second bound, with the computed values as neighbours; the neighbour below the last value is its negative or zero.
    steps = theta - pad(theta[:, 1:], (0, 1))
    gaps = steps.minimum(pad(steps[:, :-1], (1, 0), value=torch.inf)) - residuals
    bounds = residuals.minimum(torch.where(gaps > 0, residuals.square() / gaps, torch.inf))
    last = (V.any(dim=2).sum(dim=1) - 1).clamp(min=0)[:, None]
    chosen = torch.cat([torch.arange(wanted, device=last.device).expand(len(last), wanted), last], dim=1)
    return theta.gather(1, chosen), bounds.gather(1, chosen)


def _asymmetry(C: Tensor, D: Tensor) -> Tensor:
    largest = C.abs().amax(dim=(1, 2))
    return (D[:, :, : C.shape[1]] - C.mT).abs().amax(dim=(1, 2)) / torch.where(largest > 0, largest, 1.0)


def _squares(matrix: Tensor) -> Tensor:
    total: Tensor = matrix.square().sum(dim=(1, 2))
    return total


def spread_of_squares(
    apply: Operator, adjoint: Operator, found: Krylov, draw: Callable[[int], Tensor], *, attempts: int
) -> Tensor:
    """Estimate the variance of the squared singular values over their squared mean.

    ``n tr (AᵀA)² / (tr AᵀA)² - 1``. Both traces are exact on the subspace of the bidiagonalization. The rest is estimated by
    ``E ‖A g‖²`` and ``E ‖Aᵀ A g‖²`` with random vectors ``g`` of fixed length, orthogonal to this subspace.

    Args:
        apply: Products with ``A``.
        adjoint: Products with ``Aᵀ``.
        found: Result of the bidiagonalization.
        draw: Maps the number of draws so far to new Gaussian vectors ``(trajectories, k, n)``.
        attempts: Largest number of draws.

    Returns:
        Estimates ``(trajectories,)``; NaN if the standard error, by the jackknife, stays above 5 % of the estimate plus 0.01.

    Source: Hutchinson, Commun. Stat. Simul. Comput. 19, 433 (1990); Meyer, Musco, Musco & Woodruff, SOSA 2021, for the subspace.
    """
    squares: list[Tensor] = []
    fourth: list[Tensor] = []
    value = error = found.squares
    for attempt in range(attempts):
        images = apply(_probes(draw(attempt), found.basis))
        squares.append(images.square().sum(dim=2))
        fourth.append(adjoint(images).square().sum(dim=2))
        value, error = _jackknife(found, torch.cat(squares, dim=1), torch.cat(fourth, dim=1))
        if bool((error <= _allowed(value)).all()):
            break
    return torch.where(error <= _allowed(value), value, torch.nan)


def _allowed(value: Tensor) -> Tensor:
    return 0.05 * value + 0.01


def _probes(drawn: Tensor, basis: Tensor) -> Tensor:
    rest = drawn - (drawn @ basis.mT) @ basis
    remaining = drawn.shape[2] - basis.any(dim=2).sum(dim=1)
    lengths = torch.linalg.vector_norm(rest, dim=2, keepdim=True).clamp(min=torch.finfo(rest.dtype).tiny)
    probes: Tensor = rest * (remaining.clamp(min=0).to(rest.dtype).sqrt()[:, None, None] / lengths)
    return probes


def _jackknife(found: Krylov, squares: Tensor, fourth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the estimate and its standard error, both ``(trajectories,)``, from ``(trajectories, probes)`` values."""
    count = squares.shape[1]
    whole = _spread(found, squares.mean(dim=1, keepdim=True), fourth.mean(dim=1, keepdim=True))
    without_one = ((part.sum(dim=1, keepdim=True) - part) / (count - 1) for part in (squares, fourth))
    error = ((count - 1) * _spread(found, *without_one).var(dim=1, correction=0)).sqrt()
    return whole[:, 0], error


def _spread(found: Krylov, squares: Tensor, fourth: Tensor) -> Tensor:
    """Return the variance over the squared mean, given both sums outside of the subspace, ``(trajectories, estimates)``."""
    mean = (found.squares[:, None] + squares) / found.basis.shape[2]
    mean_square = (found.fourth[:, None] + fourth) / found.basis.shape[2]
    spread: Tensor = mean_square / mean.square() - 1
    return spread
