"""Axes of charts: where a value lies, and which ticks are labelled. Not finite values have places at the edges."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...records.text import format_number
from .paths import Point

__all__ = ["EDGE", "SIZE", "Axis", "Tick", "axis_of", "number"]

SIZE = 1000
"""Width and height of a chart in its coordinates, which start at the top left corner."""
LARGEST = 1e300
"""Magnitude above which values are drawn as if they had this one: differences of larger ones overflow."""
LEAST_DECADES = 0.1
"""Smallest range of a logarithmic axis, in decades."""
MOST_TICKS = 5
EDGE, PADDING, ROOM = 22, 40, 110
"""Distance from an edge to the values that have no place on the axis, to the others, and to the others if both are drawn."""


def number(value: float | str | None) -> float:
    """Return a number of the document as a float; NaN for none.

    >>> number("inf"), number(2), number(None)
    (inf, 2.0, nan)
    """
    return math.nan if value is None else float(value)


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis."""

    percent: float
    """Distance from the top, or from the left, in percent."""
    text: str


@dataclass(frozen=True, slots=True)
class Axis:
    """A vertical axis.

    >>> axis = Axis(0.0, 10.0)
    >>> axis.place(10.0), axis.place(5.0), axis.place(0.0)
    (40, 500, 960)
    """

    low: float
    """Lower end; its decimal logarithm on a logarithmic axis."""
    high: float
    log: bool = False
    above: str = ""
    """Values that lie above the axis, as text: ``inf``; empty if there are none."""
    below: str = ""
    """Values that lie below the axis, as text, such as ``nan, 0``; empty if there are none."""

    def place(self, value: float) -> int:
        """Return the distance of a value from the top, in the coordinates of the chart."""
        point = self.points([0], [value])[0]
        if point is None:
            return EDGE if value == math.inf else SIZE - EDGE
        return point[1]

    def points(self, places: Iterable[int], values: Iterable[float]) -> list[Point | None]:
        """Return the points of values at horizontal places; None for a value without a place on the axis."""
        top, bottom = (ROOM if self.above else PADDING), SIZE - (ROOM if self.below else PADDING)
        low, log, factor = self.low, self.log, (bottom - top) / (self.high - self.low)
        found: list[Point | None] = []
        for x, value in zip(places, values):
            if not math.isfinite(value) or (log and value <= 0):
                found.append(None)
                continue
            y = bottom - factor * (_scaled(value, log=log) - low)
            found.append((x, top if y < top else bottom if y > bottom else round(y)))
        return found

    def shows(self, value: float) -> bool:
        """Whether a value has a place on the axis: it is finite, and positive on a logarithmic axis."""
        return math.isfinite(value) and (value > 0 or not self.log)

    def passes(self, value: float) -> bool:
        """Whether a value lies beyond an end of the axis, or has no place on it."""
        return not self.shows(value) or not self.low <= _scaled(value, log=self.log) <= self.high

    def ticks(self) -> tuple[Tick, ...]:
        """Return the labelled places, from the bottom to the top."""
        found = [Tick(self.place(value) / (SIZE / 100), text) for value, text in self._labels()]
        edges = ((math.nan, self.below), (math.inf, self.above))
        return tuple(found + [Tick(self.place(value) / (SIZE / 100), text) for value, text in edges if text])

    def _labels(self) -> Iterator[tuple[float, str]]:
        if self.log and self.high - self.low >= 1:
            decades = range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)
            if len(decades) > 2:
                yield from ((10.0**k, _power(k)) for k in decades[:: math.ceil(len(decades) / MOST_TICKS)])
                return
            found = (factor * 10.0**k for k in range(decades[0] - 1, decades[-1] + 1) for factor in (1, 2, 5))
            yield from ((value, format_number(value)) for value in found if not self.passes(value))
            return
        low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        if (high - low) / MOST_TICKS <= 0:
            # A logarithmic axis at the smallest numbers of a computer.
            return
        step = _step(high - low)
        for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
            yield k * step, format_number(k * step, 4)


def axis_of(values: Iterable[float], *, log: bool = False, span: float = 0.0) -> Axis:
    """Return an axis on which all values have a place.

    Args:
        values: The values, finite or not.
        log: Whether the axis is logarithmic. Values that are not positive lie below it then.
        span: Smallest range, so that noise does not look like a trend; in decades on a logarithmic axis.

    >>> axis_of([1e-3, 10.0, 0.0], log=True)
    Axis(low=-3.0, high=1.0, log=True, above='', below='0')
    """
    known = list(values)
    scaled = [_scaled(value, log=log) for value in known if math.isfinite(value) and (value > 0 or not log)]
    low, high = (min(scaled), max(scaled)) if scaled else (0.0, 1.0)
    least = max(span, LEAST_DECADES if log else max(1e-6 * max(abs(low), abs(high)), 1e-300))
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
    if high <= low:
        low, high = low - 0.5, high + 0.5
    odd = {
        "nan": any(map(math.isnan, known)),
        "-inf": -math.inf in known,
        "≤ 0": log and any(-math.inf < value < 0 for value in known),
        "0": log and 0 in known,
    }
    return Axis(
        low, high, log, "inf" if math.inf in known else "", ", ".join(text for text, found in odd.items() if found)
    )


def _scaled(value: float, *, log: bool) -> float:
    within = value if -LARGEST < value < LARGEST else math.copysign(LARGEST, value)
    return math.log10(within) if log else within


def _step(span: float) -> float:
    """Return a distance of ticks that is 1, 2 or 5 times a power of ten."""
    rough = span / MOST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= rough), 10 * power)


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _power(exponent: int) -> str:
    """Return a power of ten as text: ``0.01``, ``10⁻⁶``."""
    return f"{10.0**exponent:g}" if -3 < exponent < 4 else "10" + str(exponent).translate(_SUPERSCRIPTS)
