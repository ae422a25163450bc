"""Bounds: closed intervals in which a measure must lie."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeAlias, overload

from ..errors import BoundError
from ..records.text import short_repr
from .tolerances import as_float

__all__ = ["Bound", "BoundLike", "as_bound", "at_least", "at_most", "parse_bound", "parse_bounds", "within"]


@dataclass(frozen=True, slots=True)
class Bound:
    """The closed interval ``[low, high]`` in which a measure must lie.

    Args:
        low: Lower end, in the unit of the measure; None for an open end.
        high: Upper end, in the unit of the measure; None for an open end.
        if_any: Whether the bound holds if there is nothing to judge, such as attention in a model without attention.

    Raises:
        BoundError: An end is not a number, both ends are open, or ``low`` exceeds ``high``.

    >>> within(0.05), at_least(1e-6), Bound(-5, 5).holds(-14.4)
    (within(-0.05, 0.05), at_least(1e-06), False)
    """

    low: float | None = None
    high: float | None = None
    if_any: bool = field(default=False, kw_only=True)
    """Whether the bound holds if there is nothing to judge."""

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            end = getattr(self, name)
            if end is None:
                continue
            # A numpy number becomes a float, which can be sent to another process.
            number = as_float(end)
            if math.isnan(number):
                msg = f"the ends of a bound must be numbers, or None for an open end. Got {name}={short_repr(end)}."
                raise BoundError(msg)
            # -0 becomes 0.
            object.__setattr__(self, name, number + 0.0)
        if self.low is None and self.high is None:
            msg = "a bound must have at least one end. Got (None, None), which everything satisfies."
            raise BoundError(msg)
        if self.low is not None and self.high is not None and self.low > self.high:
            msg = (
                f"the lower end of a bound must not exceed the upper one. Got [{self.low:.6g}, {self.high:.6g}]. "
                "Swap them."
            )
            raise BoundError(msg)

    def __and__(self, other: Bound) -> Bound:
        """Return the bound that holds if both do."""
        lows = [end for end in (self.low, other.low) if end is not None]
        highs = [end for end in (self.high, other.high) if end is not None]
        return Bound(max(lows, default=None), min(highs, default=None))

    def holds(self, value: float) -> bool:
        """Return whether ``low <= value <= high``.

        Args:
            value: A number in the unit of the measure. NaN satisfies no bound.
        """
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high) and value == value

    def __str__(self) -> str:
        if self.low is None:
            return f"must be ≤ {self.high:.6g}"
        if self.high is None:
            return f"must be ≥ {self.low:.6g}"
        return f"must lie in [{self.low:.6g}, {self.high:.6g}]"

    def __repr__(self) -> str:
        if self.low is None:
            return f"at_most({self.high!r})"
        if self.high is None:
            return f"at_least({self.low!r})"
        return f"within({self.low!r}, {self.high!r})"


BoundLike: TypeAlias = "Bound | tuple[float | None, float | None]"
"""A bound, or ``(low, high)`` with None for an open end."""


@overload
def within(eps: float, /) -> Bound: ...
@overload
def within(low: float | None, high: float | None, /) -> Bound: ...
def within(*ends: float | None) -> Bound:
    """Return the bound ``[low, high]``, or ``[-eps, eps]`` for a single number.

    Args:
        *ends: ``eps``, or ``low`` and ``high``, in the unit of the measure. None leaves one of two ends open.

    Raises:
        BoundError: ``eps`` is negative, an end is not a number, or ``low`` exceeds ``high``.

    >>> within(0.05), within(-7, 3), within(3, None)
    (within(-0.05, 0.05), within(-7.0, 3.0), at_least(3.0))
    """
    if len(ends) == 2:
        return Bound(*ends)
    eps: Any = ends[0] if len(ends) == 1 else None
    if isinstance(eps, bool) or not isinstance(eps, Real) or eps < 0:
        given = ", ".join(map(short_repr, ends))
        msg = (
            "the ends of a bound must be numbers: within(eps) means [-eps, eps] and eps must not be negative. "
            f"Got {given}. For an interval: within(low, high)."
        )
        raise BoundError(msg)
    symmetric: tuple[Any, Any] = (-eps, eps)
    return Bound(*symmetric)


def at_least(low: float) -> Bound:
    """Return the bound ``[low, ∞]``.

    Args:
        low: Lower end, in the unit of the measure.

    Raises:
        BoundError: ``low`` is not a number.

    >>> at_least(1e-6).holds(1e-6), at_least(1e-6).holds(0)
    (True, False)
    """
    return Bound(low=low)


def at_most(high: float) -> Bound:
    """Return the bound ``[-∞, high]``.

    Args:
        high: Upper end, in the unit of the measure.

    Raises:
        BoundError: ``high`` is not a number.

    >>> at_most(0.9).holds(0.9), at_most(0.9).holds(float("nan"))
    (True, False)
    """
    return Bound(high=high)


def as_bound(value: Any, *, measure: str, where: str = "") -> Bound:
    """Return the bound for a user's value.

    Args:
        value: A bound, a pair ``(low, high)``, or text for :func:`parse_bound`.
        measure: Name of the measure.
        where: Place of the value, named in the message.

    Raises:
        BoundError: The value is not a bound. The message shows what to write.
    """
    place = f"{where}: " if where else ""
    if isinstance(value, Bound):
        return value
    try:
        if isinstance(value, str):
            return parse_bound(value)
        if isinstance(value, (tuple, list)) and len(value) == 2:
            return Bound(*value)
    except BoundError as error:
        msg = f"{place}{measure}: {error}"
        raise BoundError(msg) from None
    hint = ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = short_repr(value)
        hint = f" For this number: within({number}), at_least({number}) or at_most({number})."
    msg = (
        f"{place}the bound of {measure} must be within(eps), within(low, high), at_least(x), at_most(x) or a tuple (low, "
        f"high) with None for an open end. Got {short_repr(value)}.{hint}"
    )
    raise BoundError(msg)


# Each part of the text can match in one way only: the time is proportional to its length.
_INTERVAL = re.compile(r"\[([^,\]]*),([^,\]]*)\]")
_ONE_SIDED = re.compile(r"(>=|<=|≥|≤)\s*(\S+)")


def parse_bound(text: str) -> Bound:
    """Return the bound that a text describes: ``"[-0.05, 0.05]"``, ``"[1e-6, ]"``, ``">= 1e-6"`` or ``"<= 0.9"``.

    Raises:
        BoundError: The text has another form, or its bound is invalid.
    """
    text = text.strip()
    if match := _INTERVAL.fullmatch(text):
        low, high = (_end(part.strip(), text) for part in match.groups())
        return Bound(low, high)
    if match := _ONE_SIDED.fullmatch(text):
        end = _end(match[2], text)
        return Bound(low=end) if match[1] in {">=", "≥"} else Bound(high=end)
    msg = f"a bound must be written as [low, high], >= low or <= high. Got {text!r}."
    raise BoundError(msg)


def _end(part: str, text: str) -> float | None:
    if part in {"", "None", "none"}:
        return None
    try:
        return float(part)
    except ValueError:
        msg = f"the ends of a bound must be numbers. Got {part!r} in {text!r}."
        raise BoundError(msg) from None


def parse_bounds(lines: list[str], *, where: str) -> dict[str, Bound]:
    """Parse lines such as ``lyapunov_max = [-0.05, 0.05]`` or ``gradient_norm >= 1e-6``.

    Args:
        lines: One bound each. Several bounds on one measure must all hold.
        where: Place of the lines, named in the message.

    Returns:
        Bounds by the name of the measure. The names are not checked.

    Raises:
        BoundError: A line has another form, or its bound is invalid.
    """
    bounds: dict[str, Bound] = {}
    for line in lines:
        match = re.fullmatch(r"\s*(\w+)\s*(?:=(?!=)\s*)?([\[><≥≤].*)", line)
        if match is None:
            msg = f"{where} must hold lines such as 'lyapunov_max = [-0.05, 0.05]' or 'gradient_norm >= 1e-6'. Got {line!r}."
            raise BoundError(msg)
        bound = as_bound(match[2], measure=match[1], where=where)
        try:
            bounds[match[1]] = bounds[match[1]] & bound if match[1] in bounds else bound
        except BoundError as error:
            msg = f"{where}: {match[1]} has several bounds that exclude each other: {error}"
            raise BoundError(msg) from None
    return bounds
