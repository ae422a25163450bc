"""Singular values of long products of matrices, which can span thousands of nats."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["Graded", "log_singular_values"]


RANGE = 300.0
"""Nats that the rows given to LAPACK may span: float64 represents the square of e^-300 = 1e-130."""
DECOUPLED = 1e-13
"""Relative size below which an entry outside of its group of rows is neglected. Singular values change by at most as much."""
SHORT = 1e-100
"""Length of a row of a product, relative to its largest term's, from which its entries are taken by their logarithms."""
NARROW = 100.0
"""Nats that rows of a product may differ by if they are computed with a common factor: their squares stay far from underflow."""
BLOCK = 64
"""Number of rows of a triangular product that are computed together."""
ITERATIONS = 400
"""Most QR factorizations. At the smallest mean gap, 300 nats over 511 values, groups separate after about thirty."""


@dataclass(frozen=True, slots=True)
class Graded:
    """Matrices ``diag(e^d) U``, one per trajectory: rows of unit length, and the logarithms of their lengths.

    ``logs`` is ``d`` of shape ``(trajectories, m)`` and ``rows`` is ``U`` of shape ``(trajectories, m, k)``, in float64. The
    logarithm of a zero row is ``-inf``.
    """

    logs: Tensor
    rows: Tensor

    @staticmethod
    def identity(trajectories: int, size: int, device: torch.device) -> Graded:
        """Return one identity matrix per trajectory, the empty product."""
        rows = torch.eye(size, dtype=torch.float64, device=device).expand(trajectories, size, size)
        return Graded(torch.zeros(trajectories, size, dtype=torch.float64, device=device), rows)

    def times(self, factor: Tensor, *, upper: bool = False) -> Graded:
        """Multiply by factors ``(trajectories, n, m)`` from the left.

        Each row of the product is accurate relative to its own length. If the factors are triangular and the products of
        their diagonals descend, all singular values are therefore relatively accurate, however small they are.

        Args:
            factor: The factors.
            upper: Whether the factors and the rows of this product are upper triangular, which saves half of the time.

        Returns:
            The product, graded again.
        """
        return (_upper if upper else _weighted)(factor, self.logs, self.rows)


def _upper(factor: Tensor, logs: Tensor, rows: Tensor) -> Graded:
    """Return ``factor diag(e^logs) rows`` of upper triangular matrices, in blocks of rows without the zeros in front of them."""
    count = factor.shape[1]
    found_logs, found_rows = logs.new_empty(len(logs), count), rows.new_zeros(len(logs), count, rows.shape[2])
    for a in range(0, count, BLOCK):
        b = min(a + BLOCK, count)
        operands = factor[:, a:b, a:], logs[:, a:], rows[:, a:, a:]
        part = _with_common_factor(*operands) or _weighted(*operands)
        found_logs[:, a:b], found_rows[:, a:b, a:] = part.logs, part.rows
    return Graded(found_logs, found_rows)


def _with_common_factor(factor: Tensor, logs: Tensor, rows: Tensor) -> Graded | None:
    """Compute all rows of a triangular product relative to the largest ``e^logs``; None where some could lose digits."""
    # Every row takes part of the e^logs on the diagonal.
    own = torch.where(factor.diagonal(dim1=1, dim2=2) != 0, logs[:, : factor.shape[1]], -math.inf)
    largest = logs.amax(dim=1, keepdim=True)
    if not bool((largest - own <= NARROW).all()):
        return None
    product = (factor * (logs - largest).exp()[:, None, :]) @ rows
    lengths = torch.linalg.vector_norm(product, dim=2)
    if not bool((lengths >= SHORT).all()):
        return None
    return Graded(largest + lengths.log(), product.div_(lengths[:, :, None]))


def _weighted(factor: Tensor, logs: Tensor, rows: Tensor) -> Graded:
    """Return ``factor diag(e^logs) rows``."""
    # Each row is divided by the largest e^logs that it takes part of.
    weights = torch.where(factor != 0, logs[:, None, :], -math.inf)
    largest = weights.amax(dim=2)
    is_nonzero = largest > -math.inf
    largest = torch.where(is_nonzero, largest, 0.0)
    product = weights.sub_(largest[:, :, None]).exp_().mul_(factor) @ rows
    lengths = torch.linalg.vector_norm(product, dim=2)
    if bool((is_nonzero & (lengths < SHORT)).any()):
        product, largest = _of_tiny_entries(factor, logs, rows)
        lengths = torch.linalg.vector_norm(product, dim=2)
    return Graded(largest + lengths.log(), product.div_(torch.where(lengths > 0, lengths, 1.0)[:, :, None]))


def _of_tiny_entries(factor: Tensor, logs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``factor diag(e^logs) rows`` with rows divided by ``e^largest``, and ``largest``, for entries of any size."""
    weights = factor.abs().log() + logs[:, None, :]
    largest = weights.amax(dim=2)
    largest = torch.where(largest > -math.inf, largest, 0.0)
    return (factor.sign() * (weights - largest[:, :, None]).exp()) @ rows, largest


def log_singular_values(product: Graded) -> Tensor:
    """Compute the logarithms of all singular values of each matrix.

    If the rows span up to 300 nats, LAPACK's preconditioned Jacobi method computes the small singular values of a matrix with
    scaled rows as accurately as the large ones. If they span more, the matrix is replaced by the triangular QR factor of its
    transpose, again and again. This makes it block diagonal, with one block for each group of close values, at the rate
    ``(σ_j/σ_i)²``. The Jacobi method then takes each block alone.

    Returns:
        Logarithms in nats of shape ``(trajectories, m)``, largest first, in float64 on the CPU; ``-inf`` for a zero row, NaN for
        a matrix with an entry that is not finite.

    Source: Drmač & Veselić, SIAM J. Matrix Anal. Appl. 29, 1322 (2008), for the Jacobi method; Oliveira & Stewart, Linear Algebra
    Appl. 309, 175 (2000), for logarithms of rows and repeated QR.
    """
    return torch.stack([_of_one(logs, rows) for logs, rows in zip(product.logs.cpu(), product.rows.cpu())])


def _of_one(logs: Tensor, rows: Tensor) -> Tensor:
    found = torch.full_like(logs, -math.inf)
    if bool(logs.isnan().any()) or not bool(rows.isfinite().all()):
        return torch.full_like(logs, math.nan)
    is_nonzero = logs > -math.inf
    logs, rows = logs[is_nonzero], rows[is_nonzero]
    ends = [0, len(logs)]
    for _ in range(ITERATIONS):
        if _widest(logs, ends) <= RANGE:
            break
        logs, rows = _transposed(logs, rows)
        ends = _ends(rows)
    groups = [_jacobi(logs[a:b], rows[a:b]) for a, b in pairwise(ends)]
    if groups:
        values = torch.cat(groups).sort(descending=True).values
        found[: len(values)] = values
    return found


def _widest(logs: Tensor, ends: list[int]) -> float:
    return max((float(logs[a:b].max() - logs[a:b].min()) for a, b in pairwise(ends) if a < b), default=0.0)


def _transposed(logs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the triangular QR factor of the transpose: it has the same singular values and is closer to diagonal."""
    logs, order = logs.sort(descending=True, stable=True)
    # (diag(e^d) U)ᵀ = Uᵀ diag(e^d) = Q G diag(e^d) with Uᵀ = Q G: the triangular factor is G diag(e^d).
    factor = torch.linalg.qr(rows[order].T, mode="r").R
    triangular = _weighted(factor[None], logs[None], torch.eye(len(logs), dtype=logs.dtype, device="cpu")[None])
    return triangular.logs[0], triangular.rows[0]


def _ends(rows: Tensor) -> list[int]:
    """Return the ends of the groups of rows of a triangular matrix that are not coupled to later groups, beginning with 0."""
    size = len(rows)
    coupled = rows.abs() > DECOUPLED * rows.diagonal().abs()[:, None]
    last = (coupled * torch.arange(size, device="cpu")).amax(dim=1).cummax(dim=0).values
    return [0, *(i + 1 for i in range(size) if int(last[i]) <= i)]


def _jacobi(logs: Tensor, rows: Tensor) -> Tensor:
    from scipy.linalg.lapack import dgejsv

    if not len(logs):
        return logs
    top = logs.max()
    # Transposed, because dgejsv expects scaled columns. joba=2 ('F'): accurate for any scaling of rows and columns.
    # jobr=0 ('N'): small values are not set to zero.
    matrix = (rows * (logs - top).exp()[:, None]).T.contiguous().numpy()
    values, _, _, work, _, status = dgejsv(matrix, joba=2, jobu=3, jobv=3, jobr=0)
    if status != 0:
        return torch.full_like(logs, math.nan)
    found = torch.from_numpy(values).log() + math.log(work[0]) - math.log(work[1]) + top
    return torch.as_tensor(found)
