"""The distributions from which initial values are drawn: their moments and their distribution functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Law", "normal_law", "truncated_law", "uniform_law"]


@dataclass(frozen=True, slots=True)
class Law:
    """Distribution of independent entries: normal, truncated normal or uniform."""

    kind: str
    """``"normal"``, ``"truncated normal"`` or ``"uniform"``."""
    mean: float
    std: float
    kurtosis: float
    """Fourth central moment in units of the squared variance: 3 for a normal distribution."""
    low: float = -math.inf
    """Smallest possible entry."""
    high: float = math.inf
    """Largest possible entry."""
    location: float = 0.0
    """Mean of the normal distribution before truncation."""
    scale: float = 1.0
    """Standard deviation of the normal distribution before truncation."""

    def cdf(self, x: Tensor) -> Tensor:
        """Return the probability that an entry is at most ``x``, for each number in a float64 tensor."""
        if self.kind == "uniform":
            return torch.clamp((x - self.low) / (self.high - self.low), 0, 1)
        below: Tensor = torch.special.ndtr((x - self.location) / self.scale)
        if self.kind == "normal":
            return below
        first, last = (_phi((end - self.location) / self.scale) for end in (self.low, self.high))
        return torch.clamp((below - first) / (last - first), 0, 1)

    def shape_name(self) -> tuple[float, ...]:
        """Return what laws have in common that differ by mean and standard deviation only."""
        ends = ((end - self.mean) / self.std for end in (self.low, self.high))
        return (self.kurtosis, *(round(end, 6) for end in ends))


def normal_law(mean: float, std: float) -> Law:
    """Return a normal distribution.

    >>> normal_law(0.0, 0.02).kurtosis
    3.0
    """
    return Law("normal", mean, std, 3.0, location=mean, scale=std)


def uniform_law(low: float, high: float) -> Law:
    """Return a uniform distribution.

    >>> round(uniform_law(-3.0, 3.0).std ** 2, 12)
    3.0
    """
    return Law("uniform", (low + high) / 2, (high - low) / math.sqrt(12), 1.8, low, high)


def truncated_law(mean: float, std: float, low: float, high: float) -> Law:
    """Return a normal distribution that is truncated to an interval.

    The moments of ``z = (x - mean) / std`` on ``[α, β]`` are
    ``m_k = (k - 1) m_{k-2} - (β^{k-1} φ(β) - α^{k-1} φ(α)) / Z``
    with the normal density ``φ`` and ``Z = Φ(β) - Φ(α)``.

    >>> round(truncated_law(0.0, 1.0, -2.0, 2.0).std, 6), truncated_law(0.0, 0.02, -2.0, 2.0).std
    (0.879626, 0.02)
    """
    first, last = (low - mean) / std, (high - mean) / std
    inside = _phi(last) - _phi(first)
    moments = [1.0, (_density(first) - _density(last)) / inside]
    for k in (2, 3, 4):
        ends = _power_density(last, k - 1) - _power_density(first, k - 1)
        moments.append((k - 1) * moments[k - 2] - ends / inside)
    m1, m2, m3, m4 = moments[1:]
    variance = m2 - m1**2
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    return Law(
        "truncated normal",
        mean + std * m1,
        std * math.sqrt(variance),
        fourth / variance**2,
        low,
        high,
        location=mean,
        scale=std,
    )


def _phi(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def _density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _power_density(z: float, power: int) -> float:
    return z**power * _density(z) if math.isfinite(z) else 0.0
