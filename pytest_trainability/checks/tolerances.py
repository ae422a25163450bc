"""By how much a measure may differ from its baseline."""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Any

from ..errors import UsageError

__all__ = ["as_tolerance", "parse_tolerances"]


def as_tolerance(value: Any, *, measure: str, where: str) -> float:
    """Check a tolerance: a number of the measure's unit, of a scale nats of ratio (0.1 is about ten percent).

    Raises:
        UsageError: It is no finite number of at least 0; the message says ``where`` it stands.
    """
    given = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not 0 <= given < math.inf:
        msg = f"{where}: the tolerance of {measure} must be a number of at least 0. Got {value!r}."
        raise UsageError(msg)
    return given


def parse_tolerances(lines: list[str], *, where: str) -> dict[str, float]:
    """Read lines such as ``log_gain = 0.5`` by measure name. Names are not checked here.

    Raises:
        UsageError: A line is none; the message says ``where`` it stands.
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
