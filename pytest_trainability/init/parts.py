"""Parts of a tensor with different entries: the gates of a recurrent layer, or projections that share a matrix.

Such parts are stacked along the first dimension. Root mean square and mean of the whole tensor do not show which part is which.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..records.tensors import TensorStatistics

__all__ = ["parts_of"]

NUMBERS = (2, 3, 4)
"""Numbers of parts: gate and value, queries with keys and values or the gates of a GRU, the gates of an LSTM."""
ERROR = 1e-9
"""Probability that independent entries of one distribution are taken for different parts."""
NEARLY_ALL = 0.9
"""Share of the largest difference that a smaller number of parts must explain to be preferred."""


def parts_of(tensor: Tensor, found: TensorStatistics) -> tuple[tuple[float, float], ...]:
    """Return mean and root mean square of the equal parts that a tensor is made of.

    For k parts of n entries each, with mean mᵍ and mean square qᵍ, ``Σ n (mᵍ - m)² / var(x)`` and
    ``Σ n (qᵍ - q)² / var(x²)`` have a χ² distribution of ``k - 1`` degrees of freedom if all entries are drawn alike.

    Args:
        tensor: A tensor of one or two dimensions; others have no parts.
        found: Its statistics.

    Returns:
        A pair for each part, in order; none if chance explains the differences.
    """
    from scipy.special import chdtrc

    spread = found.fourth + 6 * found.mean**2 * found.variance + found.mean**4 - found.rms**4
    if tensor.dim() not in {1, 2} or tensor.is_complex() or found.not_finite or not found.variance > 0:
        return ()
    sums, squares = _by_row(tensor.detach())
    differences: dict[int, tuple[float, tuple[tuple[float, float], ...]]] = {}
    for number in NUMBERS:
        if tensor.shape[0] % number == 0:
            size = found.count / number
            means, mean_squares = (
                [float(part.sum()) / size for part in rows.chunk(number)] for rows in (sums, squares)
            )
            of_means = size * math.fsum((mean - found.mean) ** 2 for mean in means) / found.variance
            of_squares = size * math.fsum((s - found.rms**2) ** 2 for s in mean_squares) / spread if spread > 0 else 0.0
            larger = max(of_means, of_squares)
            if 2 * len(NUMBERS) * float(chdtrc(number - 1, larger)) < ERROR:
                differences[number] = larger, tuple(zip(means, map(math.sqrt, mean_squares)))
    most = max((difference for difference, _ in differences.values()), default=0.0)
    return next((parts for difference, parts in differences.values() if difference >= NEARLY_ALL * most), ())


def _by_row(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums and the sums of squares of the rows in float64; rows themselves are summed in float32 or their own type."""
    if tensor.dim() == 1:
        return tensor.double(), tensor.double().square()
    rows = tensor.float() if tensor.dtype.itemsize < 4 else tensor
    return rows.sum(1).double(), torch.linalg.vector_norm(rows, dim=1).double().square()
