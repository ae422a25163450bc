"""Whether the numbers of one element have moved: by more than a tolerance, and by more than chance allows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

__all__ = ["Sample", "ShiftTest"]


class Sample(NamedTuple):
    """Values of one element, one per seed."""

    values: Sequence[float | None]
    """Values on the scale of the comparison; None if the model of a seed lacks the element."""
    faults: Sequence[bool]
    """Whether a value is a fault of the model: NaN or +inf on a seed where chance does not bring it about."""

    def at(self, positions: Iterable[int]) -> Sample:
        """Return the values of some seeds."""
        positions = list(positions)
        return Sample([self.values[i] for i in positions], [self.faults[i] for i in positions])


@dataclass(frozen=True, slots=True)
class ShiftTest:
    """Test whether two lists of numbers differ by more than the tolerance and by more than chance."""

    pairs: Sequence[tuple[int, int]]
    """Pairs of positions in both lists; empty if the lists are independent samples."""
    repeatable: bool
    """Whether unchanged code repeats the numbers of a pair, so that the tolerance alone decides."""
    tolerance: float
    error: float
    """Probability of a false alarm."""
    derived: bool = False
    """Whether round-off may decide if a value is finite, as for an exponent near the numerical rank."""

    def for_each_of(self, count: int) -> ShiftTest:
        """Return the test of one of several elements that share the error probability."""
        return replace(self, error=self.error / max(count, 1))

    def shift(self, old: Sample, new: Sample) -> float | None:
        """Return the shift of the mean. NaN if infinite or NaN values differ, None if nothing has changed."""
        if self.pairs:
            old, new = old.at(i for i, _ in self.pairs), new.at(j for _, j in self.pairs)
        if any(old.faults) != any(new.faults):
            return math.nan
        try:
            if self.pairs:
                found = zip(old.values, new.values)
                return self._shift_of_pairs([(a, b) for a, b in found if a is not None and b is not None])
            return self._shift_of_samples(old, new)
        except OverflowError:
            # The squares of finite numbers overflow. No measurement has such numbers; an edited file may.
            return math.nan

    def _shift_of_pairs(self, pairs: Sequence[tuple[float, float]]) -> float | None:
        differ = sum(str(a) != str(b) for a, b in pairs if not (math.isfinite(a) and math.isfinite(b)))
        if differ > (1 if self.derived and len(pairs) > 1 else 0):
            return math.nan
        differences = [b - a for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
        if not differences:
            return None
        mean, variance = _moments(differences)
        if self.repeatable:
            # Round-off may send a single seed past a kink or to another expert: the rest must have moved as well.
            rest = sorted(differences, key=abs)[: max(len(differences) - 1, 1)]
            return mean if abs(mean) > self.tolerance < abs(math.fsum(rest) / len(rest)) else None
        return self._if_significant(mean, variance / len(differences), len(differences) - 1)

    def _shift_of_samples(self, old: Sample, new: Sample) -> float | None:
        known = [[v for v in sample.values if v is not None] for sample in (old, new)]
        before, after = ([value for value in values if math.isfinite(value)] for values in known)
        sizes = len(known[0]), len(known[1])
        faultless = sizes[0] - sum(old.faults), sizes[1] - sum(new.faults)
        if self._share_differs((len(before), len(after)), sizes) or self._share_differs(faultless, sizes):
            return math.nan
        if not before or not after:
            return None
        (m1, v1), (m2, v2) = _moments(before), _moments(after)
        n1, n2 = len(before), len(after)
        if n1 == 1 or n2 == 1:
            # A single draw is assumed to have the spread of the other sample, if that has one.
            return self._if_significant(m2 - m1, (v1 + v2) * (1 / n1 + 1 / n2), max(n1, n2) - 1)
        s1, s2 = v1 / n1, v2 / n2
        degrees = (s1 + s2) ** 2 / (s1**2 / (n1 - 1) + s2**2 / (n2 - 1)) if s1 + s2 > 0 else n1 + n2 - 2
        # Without the cap, a small sample whose values are close by accident would count as precise next to a large sample.
        return self._if_significant(m2 - m1, s1 + s2, min(degrees, 2 * (min(n1, n2) - 1)))

    def _if_significant(self, shift: float, variance_of_mean: float, degrees: float) -> float | None:
        """Return the shift if it exceeds the tolerance and is significant by Student's t-test, else None."""
        if abs(shift) <= self.tolerance:
            return None
        if degrees == 0 or variance_of_mean == 0:
            return shift
        from scipy.special import stdtr

        chance = 2 * float(stdtr(degrees, -abs(shift) / math.sqrt(variance_of_mean)))
        return shift if chance < self.error else None

    def _share_differs(self, having: tuple[int, int], sizes: tuple[int, int]) -> bool:
        """Whether the share of seeds with a property differs by more than chance allows (Fisher's exact test)."""
        if having in {(0, 0), sizes} or 0 in sizes:
            return False
        if min(sizes) <= 1:
            return (having[0] == sizes[0]) != (having[1] == sizes[1])
        from scipy.stats import fisher_exact

        table = [[count, size - count] for count, size in zip(having, sizes)]
        # With few seeds no table has so small a p-value. Then the most extreme table is required: all seeds have changed.
        reachable = fisher_exact([[sizes[0], 0], [0, sizes[1]]]).pvalue
        return bool(fisher_exact(table).pvalue <= max(self.error, reachable))


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the unbiased variance; the variance of one value is 0."""
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
