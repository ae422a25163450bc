"""Bounds: closed intervals in which a measure must lie."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeAlias, overload

from ..errors import BoundError
from ..records.calls import evaluated
from ..records.text import short_repr
from .tolerances import as_float

__all__ = ["Bound", "BoundLike", "as_bound", "at_least", "at_most", "parse_bound", "parse_bounds", "within"]


Patterns: TypeAlias = "str | Sequence[str]"
"""A shell pattern of names, such as ``"*.bias"``, or several. A bound keeps them as a tuple."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The closed interval ``[low, high]`` in which a measure must lie.

    Args:
        low: Lower end, in the unit of the measure; None for an open end.
        high: Upper end, in the unit of the measure; None for an open end.
        if_any: Whether the bound holds if there is nothing to judge, such as attention in a model without attention.
        matching: Patterns of names, such as ``"*.weight"`` or a tuple of these. Only elements that match one are judged.
        excluding: Patterns of names. Elements that match one are not judged.

    Raises:
        BoundError: An end is not a number, both ends are open, ``low`` exceeds ``high``, or a pattern is not a string.

    >>> within(0.05), at_least(1e-6, excluding="*.bias"), Bound(-5, 5).holds(-14.4)
    (within(-0.05, 0.05), at_least(1e-06, excluding='*.bias'), False)
    """

    low: float | None = None
    high: float | None = None
    if_any: bool = field(default=False, kw_only=True)
    """Whether the bound holds if there is nothing to judge."""
    matching: Patterns = field(default=(), kw_only=True)
    """Patterns of which the names of judged elements match one; every name if there are none."""
    excluding: Patterns = field(default=(), kw_only=True)
    """Patterns that the names of judged elements do not match."""

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
        for name in ("matching", "excluding"):
            object.__setattr__(self, name, _as_patterns(name, getattr(self, name)))
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
        """Return the bound that holds if both do.

        Raises:
            BoundError: They exclude each other, or judge different elements.
        """
        if (self.matching, self.excluding) != (other.matching, other.excluding):
            msg = "they judge different elements. Give them the same patterns."
            raise BoundError(msg)
        lows = [end for end in (self.low, other.low) if end is not None]
        highs = [end for end in (self.high, other.high) if end is not None]
        ends = max(lows, default=None), min(highs, default=None)
        return Bound(*ends, matching=self.matching, excluding=self.excluding)

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
        given = "".join(
            f", {name}={_shown(getattr(self, name))}" for name in ("matching", "excluding") if getattr(self, name)
        )
        if self.low is None:
            return f"at_most({self.high!r}{given})"
        if self.high is None:
            return f"at_least({self.low!r}{given})"
        return f"within({self.low!r}, {self.high!r}{given})"

    @property
    def selection(self) -> str:
        """The patterns in words, such as ``without *.bias``; empty if every element is judged."""
        parts = (("only", self.matching), ("without", self.excluding))
        return ", ".join(f"{word} {', '.join(patterns)}" for word, patterns in parts if patterns)


def _as_patterns(name: str, given: Any) -> tuple[str, ...]:
    patterns = (given,) if isinstance(given, str) else given
    if not isinstance(patterns, (tuple, list)) or not all(isinstance(p, str) and p for p in patterns):
        msg = f"{name}= of a bound must be a pattern of names, such as '*.bias', or several. Got {short_repr(given)}."
        raise BoundError(msg)
    return tuple(patterns)


def _shown(patterns: tuple[str, ...]) -> str:
    return repr(patterns[0] if len(patterns) == 1 else patterns)


BoundLike: TypeAlias = "Bound | tuple[float | None, float | None]"
"""A bound, or ``(low, high)`` with None for an open end."""


@overload
def within(eps: float, /, *, matching: Patterns = (), excluding: Patterns = ()) -> Bound: ...
@overload
def within(low: float | None, high: float | None, /, *, matching: Patterns = (), excluding: Patterns = ()) -> Bound: ...
def within(*ends: float | None, matching: Patterns = (), excluding: Patterns = ()) -> Bound:
    """Return the bound ``[low, high]``, or ``[-eps, eps]`` for a single number.

    Args:
        *ends: ``eps``, or ``low`` and ``high``, in the unit of the measure. None leaves one of two ends open.
        matching: Patterns of the names of the elements that are judged; every element by default.
        excluding: Patterns of the names of elements that are not judged; none by default.

    Raises:
        BoundError: ``eps`` is negative, an end is not a number, or ``low`` exceeds ``high``.

    >>> within(0.05), within(-7, 3), within(3, None)
    (within(-0.05, 0.05), within(-7.0, 3.0), at_least(3.0))
    """
    if len(ends) == 2:
        return Bound(*ends, matching=matching, excluding=excluding)
    eps: Any = ends[0] if len(ends) == 1 else None
    if isinstance(eps, bool) or not isinstance(eps, Real) or eps < 0:
        given = ", ".join(map(short_repr, ends))
        msg = (
            "the ends of a bound must be numbers: within(eps) means [-eps, eps] and eps must not be negative. "
            f"Got {given}. For an interval: within(low, high)."
        )
        raise BoundError(msg)
    symmetric: tuple[Any, Any] = (-eps, eps)
    return Bound(*symmetric, matching=matching, excluding=excluding)


def at_least(low: float, *, matching: Patterns = (), excluding: Patterns = ()) -> Bound:
    """Return the bound ``[low, ∞]``.

    Args:
        low: Lower end, in the unit of the measure.
        matching: Patterns of the names of the elements that are judged; every element by default.
        excluding: Patterns of the names of elements that are not judged; none by default.

    Raises:
        BoundError: ``low`` is not a number.

    >>> at_least(1e-6).holds(1e-6), at_least(1e-6).holds(0)
    (True, False)
    """
    return Bound(low=low, matching=matching, excluding=excluding)


def at_most(high: float, *, matching: Patterns = (), excluding: Patterns = ()) -> Bound:
    """Return the bound ``[-∞, high]``.

    Args:
        high: Upper end, in the unit of the measure.
        matching: Patterns of the names of the elements that are judged; every element by default.
        excluding: Patterns of the names of elements that are not judged; none by default.

    Raises:
        BoundError: ``high`` is not a number.

    >>> at_most(0.9).holds(0.9), at_most(0.9).holds(float("nan"))
    (True, False)
    """
    return Bound(high=high, matching=matching, excluding=excluding)


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


_SELECTION = re.compile(r"\s(matching|excluding)\s")
_CALL = re.compile(r"\w+\(.*\)", re.DOTALL)


def parse_bound(text: str) -> Bound:
    """Return the bound that a text describes: ``"[-0.05, 0.05]"``, ``"[1e-6, ]"``, ``">= 1e-6"`` or ``"<= 0.9"``.

    Patterns may follow, separated by commas: ``">= 1e-6 matching *.weight excluding head.*, *.norm.*"``. The text can also be
    the call that makes the bound in Python: ``"within(3)"`` or ``"at_least(1e-6, excluding='*.bias')"``.

    Raises:
        BoundError: The text has another form, or its bound is invalid.
    """
    if _CALL.fullmatch(text.strip()):
        return _called(text)
    interval, *words = (part.strip() for part in _SELECTION.split(text))
    patterns: Any = {word: tuple(p.strip() for p in given.split(",")) for word, given in zip(words[::2], words[1::2])}
    if match := _INTERVAL.fullmatch(interval):
        low, high = (_end(part.strip(), text) for part in match.groups())
        return Bound(low, high, **patterns)
    if match := _ONE_SIDED.fullmatch(interval):
        end = _end(match[2], text)
        return Bound(low=end, **patterns) if match[1] in {">=", "≥"} else Bound(high=end, **patterns)
    msg = f"a bound must be written as [low, high], >= low or <= high, or as in Python: within(3). Got {text!r}."
    raise BoundError(msg)


def _called(text: str) -> Bound:
    """Return the bound that a call makes."""
    try:
        bound: Bound = evaluated(text, {"within": within, "at_least": at_least, "at_most": at_most})
    except BoundError:
        raise
    except ValueError as error:
        msg = f"a bound such as {text!r} must be a call of within, at_least or at_most: {error}"
        raise BoundError(msg) from None
    return bound


def _end(part: str, text: str) -> float | None:
    if part in {"", "None", "none"}:
        return None
    try:
        return float(part)
    except ValueError:
        msg = f"the ends of a bound must be numbers. Got {part!r} in {text!r}."
        raise BoundError(msg) from None


_LINE = re.compile(r"\s*(\w+)\s*(?:=(?!=)\s*)?((?:[\[><≥≤]|\b(?:within|at_least|at_most)\().*)")


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
        match = _LINE.fullmatch(line)
        if match is None:
            msg = f"{where} must hold lines such as 'lyapunov_max = [-0.05, 0.05]' or 'gradient_norm >= 1e-6'. Got {line!r}."
            raise BoundError(msg)
        bound = as_bound(match[2], measure=match[1], where=where)
        try:
            bounds[match[1]] = bounds[match[1]] & bound if match[1] in bounds else bound
        except BoundError as error:
            msg = f"{where}: {match[1]} has several bounds that cannot hold together: {error}"
            raise BoundError(msg) from None
    return bounds
