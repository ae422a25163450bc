"""Numbers as a person would write them: 0.02, 1 / math.sqrt(768), or as many digits as are known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

__all__ = ["written"]


USUAL = 0.02
"""Standard deviation that most transformers use, and divide by a root of the number of layers."""


def written(value: float, error: float, dimensions: Iterable[int] = (), layers: int = 1) -> str:
    """Return the simplest source text of a number that agrees with a measured value.

    >>> written(0.01999, 0.001), written(0.03609, 0.0005, [768, 3072]), written(-0.47142, 1e-4, [9])
    ('0.02', '1 / math.sqrt(768)', '-math.sqrt(2 / 9)')
    >>> written(0.00408, 0.002, layers=12)
    '0.02 / math.sqrt(2 * 12)'

    Args:
        value: The measured value.
        error: Its relative uncertainty.
        dimensions: Whole numbers that its square may contain.
        layers: Number of layers, as in the scaling of residual branches in GPT-2, ``0.02 / √(2 layers)``.

    Returns:
        A decimal of one or two digits, a root, or a decimal with as many digits as are known.
    """
    if value == 0:
        return "0.0"
    sign = "-" if value < 0 else ""
    size = abs(value)
    for text, candidate in _candidates(size, sorted(set(dimensions)), layers):
        if abs(size / candidate - 1) <= error:
            return sign + text
    digits = max(2, math.ceil(-math.log10(max(error, 1e-12))) + 1)
    return repr(float(f"{value:.{digits}g}"))


def _candidates(size: float, dimensions: Iterable[int], layers: int) -> Iterator[tuple[str, float]]:
    if layers > 1:
        yield f"{USUAL} / math.sqrt(2 * {layers})", USUAL / math.sqrt(2 * layers)
    yield from _rounded(size, 1)
    yield from _rounded(size, 2)
    for n in dimensions:
        if n > 1:
            yield f"1 / math.sqrt({n})", 1 / math.sqrt(n)
            yield f"math.sqrt(2 / {n})", math.sqrt(2 / n)
    yield from _rounded(size, 3)


def _rounded(size: float, digits: int) -> Iterator[tuple[str, float]]:
    rounded = float(f"{size:.{digits}g}")
    yield repr(rounded), rounded
