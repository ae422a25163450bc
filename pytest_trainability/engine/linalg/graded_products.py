"""Long products of matrices, whose singular values may span thousands of nats."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["Graded", "log_singular_values"]


RANGE = 300.0
"""Nats that the rows handed to LAPACK may span: squares of 1e-130 are ordinary numbers of float64."""
DECOUPLED = 1e-13
"""Part of a row that may lie outside of its own group of rows; singular values change by no larger part."""
ITERATIONS = 400
"""At the smallest mean gap, 300 nats over 511 values, groups part after some thirty."""


@dataclass(frozen=True, slots=True)
class Graded:
    """Matrices ``diag(e^d) U``, one per trajectory, whose rows of unit length are scaled by logarithms.

    ``logs`` is ``d`` of shape ``(samples, m)`` and ``rows`` is ``U`` of shape ``(samples, m, k)``, in float64; a zero row has the
    logarithm ``-inf``.
    """

    logs: Tensor
    rows: Tensor

    @staticmethod
    def identity(samples: int, size: int, device: torch.device) -> Graded:
        """Return the beginning of a product."""
        rows = torch.eye(size, dtype=torch.float64, device=device).expand(samples, size, size)
        return Graded(torch.zeros(samples, size, dtype=torch.float64, device=device), rows)

    def times(self, factor: Tensor) -> Graded:
        """Multiply by ``(samples, n, m)`` from the left.

        Each row is right relative to its own length. Where the factors are triangular and their diagonals' products
        descend, so are then all singular values, however small.
        """
        return _weighted(factor, self.logs, self.rows)


def _weighted(factor: Tensor, logs: Tensor, rows: Tensor) -> Graded:
    """Return ``factor diag(e^logs) rows``."""
    weights = factor.abs().log() + logs[:, None, :]
    largest = weights.amax(dim=2)
    largest = torch.where(largest > -math.inf, largest, 0.0)
    product = (factor.sign() * (weights - largest[:, :, None]).exp()) @ rows
    lengths = torch.linalg.vector_norm(product, dim=2)
    return Graded(largest + lengths.log(), product / torch.where(lengths > 0, lengths, 1.0)[:, :, None])


def log_singular_values(product: Graded) -> Tensor:
    """Return the logarithms of all singular values of each matrix, ``(samples, m)`` on the CPU, largest first.

    Rows that span up to 300 nats go to LAPACK's preconditioned Jacobi method, which finds the small singular values of a
    matrix with scaled rows as exactly as the large ones. Where they span more, QR factorizations of the transpose of the
    transpose … make the matrix diagonal but for groups of close values, at the rate ``(σ_j/σ_i)²``; then each group goes there.

    Returns:
        Nats; ``-inf`` for a zero row, NaN where an entry is not finite.

    Source: Drmač & Veselić, SIAM J. Matrix Anal. Appl. 29, 1322 (2008), for the Jacobi method; Oliveira & Stewart, Linear Algebra
    Appl. 309, 175 (2000), for logarithms of rows and repeated QR.
    """
    return torch.stack([_of_one(logs, rows) for logs, rows in zip(product.logs.cpu(), product.rows.cpu())])


def _of_one(logs: Tensor, rows: Tensor) -> Tensor:
    found = torch.full_like(logs, -math.inf)
    if bool(logs.isnan().any()) or not bool(rows.isfinite().all()):
        return torch.full_like(logs, math.nan)
    there = logs > -math.inf
    logs, rows = logs[there], rows[there]
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
    """Return the triangular factor of the transposed matrix, which has the same singular values and is closer to diagonal."""
    logs, order = logs.sort(descending=True, stable=True)
    # Of (diag(e^d) U)ᵀ = Uᵀ diag(e^d) = Q G diag(e^d) it is G diag(e^d).
    factor = torch.linalg.qr(rows[order].T, mode="r").R
    triangular = _weighted(factor[None], logs[None], torch.eye(len(logs), dtype=logs.dtype, device="cpu")[None])
    return triangular.logs[0], triangular.rows[0]


def _ends(rows: Tensor) -> list[int]:
    """Return where groups of rows of a triangular matrix end that are not coupled to later ones."""
    size = len(rows)
    coupled = rows.abs() > DECOUPLED * rows.diagonal().abs()[:, None]
    last = (coupled * torch.arange(size, device="cpu")).amax(dim=1).cummax(dim=0).values
    return [0, *(i + 1 for i in range(size) if int(last[i]) <= i)]


def _jacobi(logs: Tensor, rows: Tensor) -> Tensor:
    from scipy.linalg.lapack import dgejsv

    if not len(logs):
        return logs
    top = logs.max()
    # The transpose, whose columns are scaled; 'F': right for any scaling of rows and columns. 'N': no small value is cut.
    matrix = (rows * (logs - top).exp()[:, None]).T.contiguous().numpy()
    values, _, _, work, _, status = dgejsv(matrix, joba=2, jobu=3, jobv=3, jobr=0)
    if status != 0:
        return torch.full_like(logs, math.nan)
    found = torch.from_numpy(values).log() + math.log(work[0]) - math.log(work[1]) + top
    return torch.as_tensor(found)
