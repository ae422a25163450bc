"""Statistics of a tensor as plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Projections", "TensorStatistics"]


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """Moments and extremes of the entries of a tensor. Entries that are not finite are counted, and excluded from the rest.

    Complex entries count as two real ones.

    >>> of_3_and_5 = TensorStatistics(2, 0, 0, mean=4.0, variance=1.0, fourth=1.0, low=3.0, high=5.0)
    >>> of_3_and_5.std, round(of_3_and_5.rms, 3), of_3_and_5.largest
    (1.0, 4.123, 5.0)
    """

    count: int
    """Number of entries, finite or not."""
    not_finite: int
    """Number of entries that are NaN or infinite."""
    zeros: int
    """Number of entries that are exactly zero."""
    mean: float
    """Mean; NaN if no entry is finite."""
    variance: float
    """Mean squared distance from the mean; NaN if no entry is finite."""
    fourth: float
    """Mean fourth power of the distance from the mean; NaN if no entry is finite."""
    low: float
    """Smallest entry; NaN if no entry is finite."""
    high: float
    """Largest entry; NaN if no entry is finite."""
    parts: tuple[tuple[float, float], ...] = ()
    """Mean and root mean square of equal parts along the first dimension, where they differ by more than chance."""

    @property
    def finite(self) -> int:
        """Number of finite entries."""
        return self.count - self.not_finite

    @property
    def std(self) -> float:
        """Standard deviation of the entries, with the divisor of a population."""
        return math.sqrt(self.variance)

    @property
    def rms(self) -> float:
        """Root mean square."""
        return math.hypot(self.mean, self.std)

    @property
    def largest(self) -> float:
        """Largest magnitude."""
        return max(abs(self.low), abs(self.high))

    @property
    def kurtosis(self) -> float:
        """Fourth central moment in units of the squared variance: 3 for a normal distribution; NaN for a constant."""
        return self.fourth / self.variance**2 if self.variance > 0 and self.variance**2 > 0 else math.nan

    @property
    def is_constant(self) -> bool:
        """Whether all entries are finite and equal."""
        return self.not_finite == 0 and self.low == self.high


@dataclass(frozen=True, slots=True)
class Projections:
    """Numbers that change if the entries of a tensor change places, whatever their sizes."""

    shape: tuple[int, ...]
    rms: float
    """Root mean square of the entries, where infinite ones count as ±2 and NaN as 3."""
    values: tuple[float, ...]
    """Sums of the entries with fixed pseudo-random weights, in units of their Euclidean norm."""
    digest: str = ""
    """Digest of the entries if all are whole numbers, which every machine repeats; empty otherwise."""

    def is_near(self, other: Projections, tolerance: float = 1e-9) -> bool:
        """Whether shape, size and projections agree.

        Args:
            other: Projections of another tensor, or of the same one elsewhere.
            tolerance: Largest distance of two projections, and relative one of the root mean squares.

        Returns:
            False for other shapes and digests as well.
        """
        return (
            self.shape == other.shape
            and self.digest == other.digest
            and len(self.values) == len(other.values)
            and math.isclose(self.rms, other.rms, rel_tol=tolerance, abs_tol=0.0)
            and all(abs(a - b) <= tolerance for a, b in zip(self.values, other.values))
        )
