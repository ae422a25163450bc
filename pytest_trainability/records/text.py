"""Numbers and names as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["format_names", "format_number", "format_value"]


def format_number(value: float, digits: int = 3) -> str:
    """Return a number as text with a few significant digits.

    >>> format_number(0.012345), format_number(3.14159e-9), format_number(-14.4042)
    ('0.0123', '3.14e-09', '-14.4')
    """
    if not math.isfinite(value):
        return str(value)
    return f"{value + 0.0:.{digits}g}"


def format_names(names: Sequence[str], most: int = 2) -> str:
    """Return the first few names of a list as text.

    >>> format_names(["a", "b", "c"])
    'a, b, …'
    """
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def format_value(mean: float, low: float, high: float, *, unit: str = "", scale: str = "linear") -> str:
    """Return a mean with its interval as text: ``-14.4 ± 0.3 nats``, or ``3e-09 ×/÷ 1.5`` for a log-scale measure.

    >>> format_value(-14.41, -14.7, -14.12, unit="nats"), format_value(3e-9, 2e-9, 4.5e-9, scale="log")
    ('-14.41 ± 0.29 nats', '3.00e-09 ×/÷ 1.5')
    """
    sign = "+" if unit.startswith("nats") and not math.isnan(mean) else ""
    half = (high - low) / 2
    if not (math.isfinite(half) and math.isfinite(mean)) or half <= 0:
        parts = [f"{mean:{sign}.4g}", unit]
    elif scale == "log":
        parts = [
            f"{mean:.3g}" if mean >= 1e-3 else f"{mean:.2e}",
            f"×/÷ {_factor(math.sqrt(high / low))}" if low > 0 else "",
            unit,
        ]
    else:
        decimals = 1 - math.floor(math.log10(half))
        if 0 <= decimals <= 6:
            parts = [f"{mean:{sign}.{decimals}f} ± {half:.{decimals}f}", unit]
        else:
            parts = [f"{mean:{sign}.3g} ± {half:.2g}", unit]
    return " ".join(part for part in parts if part)


def _factor(ratio: float) -> str:
    return f"{ratio:.3g}" if ratio < 1.095 else f"{ratio:.2g}"
