"""Straight lines through the values of a measure over the size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..records.estimates import Estimate

__all__ = ["fit", "is_linear_in_size", "misfit", "ordinates", "why_no_slope"]

_CLEARLY_SMALLER = 1 / 4
"""Ratio of the sums of squares up to which one line fits clearly better than another."""


def ordinates(values: Sequence[Estimate]) -> list[tuple[float, ...]]:
    """Return the values that a line is fitted to, one tuple over the sizes for each seed.

    They are ``ln value`` for a log-scale measure, and the value itself for others.
    """
    return [
        tuple(_ordinate(value, e.scale) for value, e in zip(draw, values)) for draw in zip(*(e.values for e in values))
    ]


def _ordinate(value: float, scale: str) -> float:
    if scale != "log":
        return value
    return math.log(value) if value > 0 else -math.inf if value == 0 else math.nan


def fit(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the least-squares slope ``Σ (x - x̄)(y - ȳ) / Σ (x - x̄)²``; NaN if any y is not finite.

    >>> fit([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    2.0
    """
    if not all(map(math.isfinite, y)):
        return math.nan
    middle, mean = math.fsum(x) / len(x), math.fsum(y) / len(y)
    return math.fsum((a - middle) * (b - mean) for a, b in zip(x, y)) / math.fsum((a - middle) ** 2 for a in x)


def misfit(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the sum of squared residuals of the least-squares line."""
    slope, middle, mean = fit(x, y), math.fsum(x) / len(x), math.fsum(y) / len(y)
    return math.fsum((b - mean - slope * (a - middle)) ** 2 for a, b in zip(x, y))


def is_linear_in_size(sizes: Sequence[int], y: Sequence[float]) -> bool:
    """Return whether a line over the size fits clearly better than one over its logarithm: a quarter of the squares or less."""
    over_logarithm = misfit([math.log(size) for size in sizes], y)
    return misfit(sizes, y) <= _CLEARLY_SMALLER * over_logarithm


def why_no_slope(value: Estimate) -> str:
    """Return the word for a value that no line can be fitted to; empty for others."""
    if any(map(math.isnan, value.values)):
        return "not a number"
    if not all(map(math.isfinite, value.values)):
        return "infinite"
    return "zero" if value.scale == "log" and 0 in value.values else ""
