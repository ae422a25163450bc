"""Straight lines through what a measure is at every size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..records.estimates import Estimate

__all__ = ["fit", "heights", "misfit", "why_broken"]


def heights(values: Sequence[Estimate]) -> list[tuple[float, ...]]:
    """Return what a line is fitted to, for each seed: logarithms of a scale."""
    return [
        tuple(_height(value, e.scale) for value, e in zip(draw, values)) for draw in zip(*(e.values for e in values))
    ]


def _height(value: float, scale: str) -> float:
    if scale != "log":
        return value
    return math.log(value) if value > 0 else -math.inf if value == 0 else math.nan


def fit(x: Sequence[float], y: Sequence[float]) -> float:
    """Return ``Σ (x - x̄) y / Σ (x - x̄)²``; NaN where a value is not finite, which no other may make up for."""
    if not all(map(math.isfinite, y)):
        return math.nan
    middle, mean = math.fsum(x) / len(x), math.fsum(y) / len(y)
    return math.fsum((a - middle) * (b - mean) for a, b in zip(x, y)) / math.fsum((a - middle) ** 2 for a in x)


def misfit(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the sum of squares that a straight line leaves."""
    slope, middle, mean = fit(x, y), math.fsum(x) / len(x), math.fsum(y) / len(y)
    return math.fsum((b - mean - slope * (a - middle)) ** 2 for a, b in zip(x, y))


def why_broken(value: Estimate) -> str:
    """Say why an estimate has no height."""
    if any(map(math.isnan, value.values)):
        return "not a number"
    if not all(map(math.isfinite, value.values)):
        return "infinite"
    return "zero" if value.scale == "log" and 0 in value.values else ""
