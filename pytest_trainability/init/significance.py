"""How likely entries are to deviate as they do from the distribution of their rule: tests of one tensor, and of pairs.

Each test returns a bound on the probability of a deviation as large, if the rule holds. Entries are rounded to their type: what
rounding explains of a deviation does not count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .laws import Law
from .statistics import TensorStatistics

__all__ = [
    "SMALLEST_BLOCK",
    "Sample",
    "column_probability",
    "correlation_probability",
    "entries_of",
    "entry_probability",
    "mean_probability",
    "rounding_of",
    "sample_of",
    "shape_probability",
    "std_probability",
]

SAMPLE = 4096
"""Entries of one tensor from which the shape of the distribution is judged."""
BLOCK = 1024
"""Rows and columns of one tensor from which their independence is judged."""
SMALLEST_BLOCK = 8
"""Fewest rows and columns of a matrix whose rows and columns are judged."""
ALLOWANCE = 0.1
"""Relative deviation of the sums of columns that rounding and the use of the own standard deviation can cause."""


def rounding_of(dtype: torch.dtype) -> float:
    """Return the largest relative error of rounding to a type: ``2⁻⁸`` for bfloat16, ``2⁻²⁴`` for float32.

    >>> rounding_of(torch.bfloat16) * 2**8
    1.0
    """
    return torch.finfo(dtype).eps / 2


def mean_probability(found: TensorStatistics, law: Law, rounding: float) -> float:
    """Return the probability of a mean that is as far off: ``√n (m - μ) / σ`` is standard normal.

    The means of uniform and truncated entries have lighter tails than the normal distribution.
    """
    # PyTorch draws uniform entries from a grid, whose points lie up to one spacing below the middle of their cells.
    allowed = rounding * max(abs(law.mean) + law.std, 2 * law.std)
    z = max(abs(found.mean - law.mean) - allowed, 0) / law.std * math.sqrt(found.count)
    return math.erfc(z / math.sqrt(2))


def std_probability(found: TensorStatistics, law: Law, rounding: float) -> float:
    """Return the probability of a standard deviation that is as far off: ``n s² / σ²`` is chi-square with n - 1 degrees.

    For another kurtosis κ than 3 the chi-square distribution is scaled to the same variance, ``2n / (κ - 1)`` degrees. As the
    skewness of uniform and truncated entries lies between those of this distribution and the normal one, the larger of both
    probabilities counts.

    Args:
        found: Statistics of two or more entries.
        law: Distribution of the rule.
        rounding: Relative error of rounding.

    Returns:
        The probability.
    """
    from scipy.special import chdtr, chdtrc

    degrees = (found.count - 1) * 2 / (law.kurtosis - 1)
    allowed = rounding * math.hypot(law.mean, law.std) / law.std
    ratio = found.std / law.std
    high, low = max(ratio - allowed, 0) ** 2, (ratio + allowed) ** 2
    observed = high if high > 1 else min(low, 1.0)
    observed *= found.count / (found.count - 1)
    exact = float(chdtrc(degrees, degrees * observed) if observed > 1 else chdtr(degrees, degrees * observed))
    z = abs(observed - 1) * math.sqrt(degrees / 2)
    return min(1.0, 2 * exact if law.kurtosis == 3 else max(2 * exact, math.erfc(z / math.sqrt(2))))


@dataclass(frozen=True, slots=True)
class Sample:
    """Some entries of a tensor, at places that depend on its shape alone."""

    entries: Tensor
    """At most :data:`SAMPLE` entries in float64, on the CPU, in the order of their places."""
    block: Tensor
    """At most :data:`BLOCK` rows and columns of a matrix in float64, on the CPU; empty for a vector."""


def sample_of(tensor: Tensor) -> Sample:
    """Return some entries of a tensor, without a copy of the others."""
    tensor = _real(tensor)
    matrix = tensor[:BLOCK].flatten(1)[:, :BLOCK] if tensor.dim() > 1 else tensor.new_empty(0, 0)
    return Sample(entries_of(tensor), matrix.to("cpu", torch.float64))


def entries_of(tensor: Tensor) -> Tensor:
    """Return at most :data:`SAMPLE` entries of a tensor in float64, on the CPU, at places that depend on its shape alone."""
    tensor = _real(tensor)
    count = tensor.numel()
    flat = torch.arange(min(count, SAMPLE), device=tensor.device) * count // max(min(count, SAMPLE), 1)
    entries = tensor[torch.unravel_index(flat, tensor.shape)] if tensor.dim() else tensor.reshape(1)
    return entries.to("cpu", torch.float64)


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def shape_probability(entries: Tensor, law: Law, rounding: float) -> float:
    """Return a bound on the probability of a distribution function that is as far off.

    With the largest distance D from the distribution function of the rule, over n entries: ``2 exp(-2 n D²)``.

    Args:
        entries: Entries in float64.
        law: Distribution of the rule.
        rounding: Relative error of rounding, which moves the distribution function by at most ``rounding · max |x f(x)|``, and
            by half a point of the grid of a uniform distribution.

    Returns:
        A bound on the probability.

    Source: Massart, Ann. Probab. 18, 1269 (1990), for the constant 2.
    """
    ordered = entries.sort().values
    n = ordered.numel()
    expected = law.cdf(ordered)
    rank = torch.arange(n + 1, dtype=torch.float64) / n
    # Rounded entries are tied: the function jumps over all of them at once.
    first, last = torch.searchsorted(ordered, ordered), torch.searchsorted(ordered, ordered, right=True)
    distance = torch.maximum((rank[last] - expected), (expected - rank[first])).max().item()
    distance = max(distance - rounding * _largest_slope(law), 0)
    return min(1.0, 2 * math.exp(-2 * n * distance**2))


def _largest_slope(law: Law) -> float:
    """Return the most that a relative change of entries moves the distribution function, per unit of the change."""
    if law.kind == "uniform":
        return 1 + max(abs(law.low), abs(law.high)) / (law.high - law.low)
    first, last = torch.special.ndtr((torch.tensor([law.low, law.high]).double() - law.location) / law.scale).tolist()
    # max z φ(z) = 0.242 and max φ(z) = 0.399
    return float((0.25 + 0.4 * abs(law.location) / law.scale) / (last - first))


def column_probability(block: Tensor) -> float:
    """Return the probability that the sums of columns have a variance that is as far off.

    With independent rows, ``Σ_j (Σ_i z_ij)² / rows`` is nearly chi-square with one degree less than columns. Here z are the
    entries of the block, centered and in units of their own standard deviation. Equal rows make the sum larger by their
    number; rows that cancel make it smaller.

    Args:
        block: Matrix of entries, with at least :data:`SMALLEST_BLOCK` rows and columns.

    Returns:
        The probability; 1 for equal entries.
    """
    from scipy.special import chdtr, chdtrc

    rows, columns = block.shape
    if not block.std() > 0:
        return 1.0
    sums = ((block - block.mean()) / block.std()).sum(0)
    found = float(sums.square().sum()) / rows
    above = float(chdtrc(columns - 1, found * (1 - ALLOWANCE)))
    below = float(chdtr(columns - 1, found * (1 + ALLOWANCE)))
    return min(1.0, 2 * min(above, below))


def correlation_probability(correlation: float, count: int) -> float:
    """Return the probability of a correlation between two independent tensors that is as far from zero.

    ``r √((n - 2) / (1 - r²))`` has Student's distribution with n - 2 degrees of freedom if one of the two is normal.

    Args:
        correlation: Correlation of the entries.
        count: Number of entries n.

    Returns:
        The probability.
    """
    from scipy.special import stdtr

    rest = max(1 - correlation**2, 1e-15)
    return float(2 * stdtr(count - 2, -abs(correlation) * math.sqrt((count - 2) / rest)))


def entry_probability(largest: float, shape: tuple[int, int], gain: float) -> float:
    """Return a bound on the probability that a random orthogonal matrix has an entry as large.

    The square of each entry has a beta distribution, and a union bound runs over all entries.

    Args:
        largest: Largest magnitude.
        shape: Rows and columns.
        gain: Factor of the matrix.

    Returns:
        The bound.
    """
    from scipy.special import betainc

    dimension = max(shape)
    if dimension < 2:
        return 1.0
    rest = min(max(1 - (largest / gain) ** 2, 0.0), 1.0)
    return float(min(1.0, shape[0] * shape[1] * betainc((dimension - 1) / 2, 0.5, rest)))
