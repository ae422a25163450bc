"""Golub-Kahan-Lanczos bidiagonalization: extreme singular values of a map known only by its products with vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Krylov", "Operator", "bidiagonalize", "spread_of_squares"]


Operator = Callable[[Tensor], Tensor]
"""Applies one matrix per trajectory to k vectors of each: ``(samples, k, n)`` to ``(samples, k, m)``."""


PROMISING = 0.3
"""Relative residual of the smallest value at which it is worth going on for it."""
STEADY = 0.25
"""Part of the tolerance that a value may still have moved by: in a narrow cluster residuals alone are small too early."""
SIGNIFICANT = 100.0
"""The smallest value must be so many times what errors of the products make of nothing."""


@dataclass(frozen=True, slots=True)
class Krylov:
    """What block bidiagonalization has found of one matrix ``A`` per trajectory.

    ``largest`` is ``(samples, wanted)``, NaN where it has not converged, and ``smallest`` the same of the last one,
    ``(samples,)``. ``basis`` is ``V``, ``(samples, p, n)``, orthonormal vectors or zeros; ``squares`` and ``fourth`` are
    ``‖A V‖²`` and ``‖Aᵀ A V‖²``, Frobenius.
    """

    largest: Tensor
    smallest: Tensor
    basis: Tensor
    squares: Tensor
    fourth: Tensor


def bidiagonalize(
    apply: Operator, adjoint: Operator, start: Tensor, wanted: int, *, tolerance: float, noise: float, limit: int
) -> Krylov:
    """Find extreme singular values by block Golub-Kahan-Lanczos bidiagonalization with full reorthogonalization.

    ``A V = U Cᵀ`` and ``Aᵀ U = [V, V₊] Dᵀ``. With ``C = X diag(θ) Yᵀ``, every ``θ`` is within ``‖Aᵀ U y - θ V x‖`` of a singular
    value. It counts as converged where this residual, or ``residual² / gap`` to its neighbours, is below ``tolerance · θ`` and
    the value has come to rest, or where the space is exhausted.

    Args:
        apply: Products with ``A``, scaled such that they are ordinary numbers.
        adjoint: Products with ``Aᵀ``.
        start: ``(samples, block, n)``, at random; n is the smaller dimension of ``A``.
        wanted: How many of the largest, at most as many as the block has vectors: others could be missed if equal.
        tolerance: Relative.
        noise: Relative error of the products. A new direction below it is none.
        limit: At most so many blocks.

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
            # LAPACK takes no such matrix.
            nothing = torch.full_like(size, torch.nan)
            return Krylov(nothing[:, None].expand(-1, wanted), nothing, V, nothing, nothing)
        values, bounds = _extremes(C, D, V, wanted)
        steady = ((values - before).abs() <= STEADY * tolerance * values) | ~fresh.any(dim=2).any(dim=1)[:, None]
        converged = (bounds <= tolerance * values) & steady
        converged[:, -1] &= values[:, -1] > SIGNIFICANT * noise * values[:, 0]
        hopeful = ~converged[:, -1] & (bounds[:, -1] <= PROMISING * values[:, -1]) & fresh.any(dim=2).any(dim=1)
        before = values
        finished = bool(converged[:, :-1].all()) and not bool(hopeful.any())
        if finished or not bool(fresh.any()) or V.shape[1] >= limit * start.shape[1]:
            found = torch.where(converged, values, torch.nan)
            return Krylov(found[:, :-1], found[:, -1], V, _squares(C), _squares(C @ D))


def _orthogonal(images: Tensor, basis: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Return new directions, zero where there is none, and the coefficients of the images: on the basis, and on the new ones."""
    rest, within = images, images.new_zeros(*images.shape[:2], basis.shape[1])
    for _ in range(2):
        part = rest @ basis.mT
        rest, within = rest - part @ basis, within + part
    fresh, onto = _orthonormal(rest, least)
    return fresh, torch.cat([within, onto], dim=2)


def _orthonormal(vectors: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    count = vectors.shape[1]
    Q, R = torch.linalg.qr(pad(vectors, (0, max(0, count - vectors.shape[2]))).mT)
    there = R.diagonal(dim1=-2, dim2=-1).abs() > least[:, None]
    fresh = (Q.mT * there[:, :, None])[:, :, : vectors.shape[2]]
    return fresh, R.mT * there[:, None, :]


def _extremes(C: Tensor, D: Tensor, V: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Return the largest values and behind them the smallest, ``(samples, wanted + 1)``, and how far each may be off."""
    X, theta, Yt = torch.linalg.svd(C)
    residuals = torch.linalg.vector_norm(Yt @ D - pad(theta[:, :, None] * X.mT, (0, D.shape[2] - C.shape[1])), dim=2)
    # Parlett's second bound. The next values are those that were found; below the last one is its negative, or zero.
    steps = theta - pad(theta[:, 1:], (0, 1))
    gaps = steps.minimum(pad(steps[:, :-1], (1, 0), value=torch.inf)) - residuals
    bounds = residuals.minimum(torch.where(gaps > 0, residuals.square() / gaps, torch.inf))
    last = (V.any(dim=2).sum(dim=1) - 1).clamp(min=0)[:, None]
    chosen = torch.cat([torch.arange(wanted, device=last.device).expand(len(last), wanted), last], dim=1)
    return theta.gather(1, chosen), bounds.gather(1, chosen)


def _squares(matrix: Tensor) -> Tensor:
    total: Tensor = matrix.square().sum(dim=(1, 2))
    return total


def spread_of_squares(
    apply: Operator, adjoint: Operator, found: Krylov, draw: Callable[[int], Tensor], *, attempts: int
) -> Tensor:
    """Estimate the variance of the squared singular values over their squared mean.

    ``n tr (AᵀA)² / (tr AᵀA)² - 1``: both traces exactly on the subspace that bidiagonalization has spanned, and from random
    vectors ``g`` of fixed length, orthogonal to it, by ``E ‖A g‖²`` and ``E ‖Aᵀ A g‖²``.

    Args:
        apply: Products with ``A``.
        adjoint: Products with ``Aᵀ``.
        found: What bidiagonalization has found.
        draw: Makes the next Gaussian vectors ``(samples, k, n)``, given how many draws came before.
        attempts: How many times at most.

    Returns:
        ``(samples,)``; NaN where the standard error, by the jackknife, stays above 5 % of the value plus 0.01.

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
    left = drawn.shape[2] - basis.any(dim=2).sum(dim=1)
    lengths = torch.linalg.vector_norm(rest, dim=2, keepdim=True).clamp(min=torch.finfo(rest.dtype).tiny)
    probes: Tensor = rest * (left.clamp(min=0).to(rest.dtype).sqrt()[:, None, None] / lengths)
    return probes


def _jackknife(found: Krylov, squares: Tensor, fourth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the estimate and its standard error from ``(samples, probes)`` of each."""
    count = squares.shape[1]
    whole = _spread(found, squares.mean(dim=1, keepdim=True), fourth.mean(dim=1, keepdim=True))
    second, forth = ((part.sum(dim=1, keepdim=True) - part) / (count - 1) for part in (squares, fourth))
    error = ((count - 1) * _spread(found, second, forth).var(dim=1, correction=0)).sqrt()
    return whole[:, 0], error


def _spread(found: Krylov, squares: Tensor, fourth: Tensor) -> Tensor:
    """Return the variance over the squared mean from what the subspace leaves of both sums, ``(samples, estimates)``."""
    mean = (found.squares[:, None] + squares) / found.basis.shape[2]
    mean_square = (found.fourth[:, None] + fourth) / found.basis.shape[2]
    spread: Tensor = mean_square / mean.square() - 1
    return spread
