"""Tolerances: how far a measure may move from its baseline."""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Any

from ..errors import UsageError
from ..records.text import short_repr

__all__ = ["as_float", "as_tolerance", "parse_tolerances"]


def as_float(value: Any) -> float:
    """Return a real number as a float: NaN if the value is no number, or too large for a float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def as_tolerance(value: Any, *, measure: str, where: str) -> float:
    """Return a tolerance as a float.

    Args:
        value: Largest tolerated shift, in the unit of the measure. For a log-scale measure it is the log of a ratio in nats: 0.1
            is about ten percent.
        measure: Name of the measure.
        where: Place of the value, named in the message.

    Raises:
        UsageError: The value is not a finite number of at least 0.
    """
    given = as_float(value)
    if not 0 <= given < math.inf:
        msg = f"{where}: the tolerance of {measure} must be a finite number of at least 0. Got {short_repr(value)}."
        raise UsageError(msg)
    return given


def parse_tolerances(lines: list[str], *, where: str) -> dict[str, float]:
    """Parse lines such as ``log_gain = 0.5``.

    Args:
        lines: One tolerance each. The last one of a measure counts.
        where: Place of the lines, named in the message.

    Returns:
        Tolerances by the name of the measure. The names are not checked.

    Raises:
        UsageError: A line has another form, or its tolerance is invalid.
    """
    found: dict[str, float] = {}
    for line in lines:
        name, sign, text = (part.strip() for part in line.partition("="))
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not sign or not re.fullmatch(r"\w+", name) or math.isnan(value):
            msg = f"{where} must hold lines such as 'log_gain = 0.5'. Got {line!r}."
            raise UsageError(msg)
        found[name] = as_tolerance(value, measure=name, where=where)
    return found
