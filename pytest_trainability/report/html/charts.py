"""Charts as paths of SVG and labelled places. The templates draw them; no text of a user becomes a path."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...records.text import format_number
from .axes import EDGE, SIZE, Axis, Tick, axis_of
from .paths import area, dots, line, rectangles, uprights
from .tables import INPUT, Element, Values

__all__ = ["Chart", "Limits", "Series", "course", "gradients", "heat_strip", "interval", "profile", "spectrum"]

LOW, HIGH = 0.05, 0.95
"""Quantiles between which the band over seeds lies."""
RAIL = 16
"""Length of the upright lines that stand for values without a place on the axis."""
NATS = 1.0
"""Smallest range of an axis in nats, as in the terminal."""


@dataclass(frozen=True, slots=True)
class Series:
    """One path and the class that styles it."""

    style: str
    path: str
    label: str = ""
    """Text of the legend; empty for a series that another one explains."""


@dataclass(frozen=True, slots=True)
class Limits:
    """A bound; None stands for no limit."""

    low: float | None
    high: float | None

    def times(self, factor: float) -> Limits:
        """Return the bound on a multiple of the value."""
        return Limits(*(None if end is None else factor * end for end in (self.low, self.high)))

    def shaded(self, axis: Axis) -> Series:
        """Return the area inside the bound, and its ends as lines."""
        # Ends that the axis does not reach lie outside the picture, where nobody takes their line for the end.
        top = -EDGE if self.high is None or axis.passes(self.high) else axis.place(self.high)
        bottom = SIZE + EDGE if self.low is None or axis.passes(self.low) else axis.place(self.low)
        return Series("bound", rectangles([(0, top, SIZE, bottom - top)]), f"bound {self.text}")

    @property
    def text(self) -> str:
        """The bound as text, such as ``[-5, 5]`` or ``≥ 1e-06``."""
        if self.low is None or self.high is None:
            known, sign = (self.high, "≤") if self.low is None else (self.low, "≥")
            return "" if known is None else f"{sign} {format_number(known)}"
        return f"[{format_number(self.low)}, {format_number(self.high)}]"

    @property
    def ends(self) -> list[float]:
        """The limits that exist."""
        return [end for end in (self.low, self.high) if end is not None and math.isfinite(end)]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart whose paths lie in a square of 1000 by 1000, which is stretched to the size that it is shown in."""

    title: str
    description: str
    axis: str
    """The charts and tables of one axis are linked. Empty for a chart that is not."""
    count: int
    """Number of equal parts of the horizontal axis."""
    series: tuple[Series, ...]
    ticks: tuple[Tick, ...] = ()
    marks: tuple[Tick, ...] = ()
    """Labelled upright lines."""
    left: str = ""
    right: str = ""
    """Texts below the ends of the horizontal axis."""

    @property
    def legend(self) -> list[Series]:
        """The series with a label that draw anything."""
        return [one for one in self.series if one.label and one.path]


# The course ----------------------------------------------------------------------------------------------------------


def course(
    names: Sequence[str],
    growth: Mapping[str, Element],
    old: Mapping[str, Element],
    *,
    limits: Limits | None,
    leaves: int | None,
    along: str,
) -> Chart:
    """Return the accumulated log gain from the last state to each state before it.

    Args:
        names: Steps in program order.
        growth: Growth rate of each step.
        old: The same in the baseline; empty without one.
        limits: Bound on the log gain.
        leaves: Place of the step at which the log gain leaves its bound; None if it does not.
        along: ``depth`` or ``time``.
    """
    seeds, before = _accumulated_seeds(names, growth), _accumulated_seeds(names, old)
    median, band = _over_seeds(seeds)
    old_median, _ = _over_seeds(before)
    values = [value for row in (*seeds, old_median) for value in row]
    axis = axis_of([*values, 0.0, *_near(values, limits)], span=NATS)
    places = [round(SIZE * k / len(names)) for k in range(len(names) + 1)] if names else []
    series = [
        *([limits.shaded(axis)] if limits else []),
        Series("zero", line([(0, axis.place(0.0)), (SIZE, axis.place(0.0))])),
        *_spread(axis, places, seeds, band),
        Series("old", _drawn(axis, places, old_median), "baseline"),
        Series(
            "median", _drawn(axis, places, median), "median over seeds" if len(seeds) > 1 else "accumulated log gain"
        ),
        *_rails(axis, zip(places, median)),
    ]
    where = "" if leaves is None else f" It leaves the bound at {names[leaves]}."
    return Chart(
        f"Accumulated log gain along {along}",
        _course_text(names, median, limits) + where,
        "steps",
        len(names),
        tuple(series),
        axis.ticks(),
        _marks(names, leaves),
        names[0] if names else "",
        names[-1] if names else "",
    )


def _course_text(names: Sequence[str], median: Sequence[float], limits: Limits | None) -> str:
    bound = f", bound {limits.text}" if limits else ""
    total = format_number(median[0]) if median else "nan"
    return f"0 nats behind the last of {len(names)} steps, {total} nats before the first{bound}."


def _marks(names: Sequence[str], leaves: int | None) -> tuple[Tick, ...]:
    if leaves is None:
        return ()
    # The step is the first one, seen from the output, behind which the gain is outside: the place before it.
    return (Tick(100 * leaves / len(names), f"leaves the bound at {names[leaves]}"),)


def _near(values: Sequence[float], limits: Limits | None) -> list[float]:
    """Return the ends of a bound that the axis must show: those that are not far from all values."""
    known = [value for value in (*values, 0.0) if math.isfinite(value)]
    span = max(max(known) - min(known), NATS)
    ends = limits.ends if limits else []
    return [end for end in ends if min(known) - span <= end <= max(known) + span]


def _accumulated_seeds(names: Sequence[str], growth: Mapping[str, Element]) -> list[list[float]]:
    """Return the accumulated log gain of each seed at each state, in program order."""
    if not names or any(name not in growth for name in names):
        return []
    rows = zip(*(growth[name].seeds or (growth[name].mean,) for name in names))
    return [_accumulated(row) for row in rows]


def _accumulated(rates: Sequence[float]) -> list[float]:
    total, found = 0.0, [0.0]
    for rate in reversed(rates):
        total += rate
        found.append(total)
    return found[::-1]


# Profiles ------------------------------------------------------------------------------------------------------------


def profile(values: Values, old: Values | None, names: Sequence[str], axis_name: str, limits: Limits | None) -> Chart:
    """Return one number for each step, state, parameter or other name: seeds, median, band, baseline and bound.

    Args:
        values: The values.
        old: The values of the baseline, if there are any.
        names: The names along the horizontal axis.
        axis_name: Name of the horizontal axis.
        limits: Bound on every value.
    """
    seeds, before = _rows(names, values), _rows(names, old) if old else []
    median, band = _over_seeds(seeds)
    old_median, _ = _over_seeds(before)
    known = [v for row in (*seeds, old_median) for v, name in zip(row, names) if name in values.elements]
    axis = axis_of([*known, *(limits.ends if limits else [])], log=values.log)
    shown = [name in values.elements for name in names]
    places = _places(names, is_state=INPUT in values.elements)
    series = [
        *([limits.shaded(axis)] if limits else []),
        *_spread(axis, places, seeds, band, shown),
        Series("old", _drawn(axis, places, old_median, shown), "baseline"),
        Series("median", _drawn(axis, places, median, shown), "median over seeds" if len(seeds) > 1 else "value"),
        *_rails(axis, [pair for pair, is_shown in zip(zip(places, median), shown) if is_shown]),
    ]
    description = f"{sum(shown)} values{_range_text(known)}{', bound ' + limits.text if limits else ''}."
    ends = (names[0], names[-1]) if names else ("", "")
    return Chart(
        values.label, description, axis_name, len(names), tuple(series), axis.ticks(), left=ends[0], right=ends[1]
    )


def _places(names: Sequence[str], *, is_state: bool) -> list[int]:
    """Return horizontal places: in the middle of a step, or behind it for a state. The input has the left edge."""
    steps = len(names) - (INPUT in names)
    behind = 0.0 if INPUT in names else 1.0
    at = [k + behind if is_state else k + behind - 0.5 for k in range(len(names))]
    return [round(SIZE * max(place, 0.0) / max(steps, 1)) for place in at]


def _rows(names: Sequence[str], values: Values) -> list[list[float]]:
    count = max((len(element.seeds) for element in values.elements.values()), default=0)
    none = Element(math.nan, seeds=(math.nan,) * max(count, 1))
    rows = [values.elements.get(name, none) for name in names]
    return [list(row) for row in zip(*(element.seeds or (element.mean,) * max(count, 1) for element in rows))]


def _range_text(values: Iterable[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    return f" from {format_number(min(known))} to {format_number(max(known))}" if known else ""


def _over_seeds(seeds: Sequence[Sequence[float]]) -> tuple[list[float], list[tuple[float, float]]]:
    """Return the median over the seeds at each place, and both ends of the band. Values that are NaN are left out."""
    median, band = [], []
    for row in zip(*seeds):
        known = sorted(value for value in row if not math.isnan(value))
        # A seed that is not a number must not vanish behind the others.
        median.append(_quantile(known, 0.5) if len(known) == len(row) else math.nan)
        band.append((_quantile(known, LOW), _quantile(known, HIGH)))
    return median, band


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of ordered values, between two of them in proportion."""
    if not ordered:
        return math.nan
    place = share * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below if below == above else below + (above - below) * (place - math.floor(place))


def _spread(
    axis: Axis,
    places: Sequence[int],
    seeds: Sequence[Sequence[float]],
    band: Sequence[tuple[float, float]],
    shown: Sequence[bool] | None = None,
) -> Iterator[Series]:
    """Yield the band over seeds and a thin line for each; none for a single seed."""
    if len(seeds) < 2:
        return
    yield Series("band", area(_spans(axis, places, band, shown)), "5–95 % of seeds")
    yield Series("seed", "".join(_drawn(axis, places, row, shown) for row in seeds), "each seed")


def _spans(
    axis: Axis, places: Sequence[int], band: Sequence[tuple[float, float]], shown: Sequence[bool] | None = None
) -> list[tuple[int, int, int] | None]:
    """Return both ends of spans at horizontal places; None where one of them has no place on the axis."""
    lows, highs = (axis.points(places, ends) for ends in (*zip(*band),)) if band else ([], [])
    return [
        (low[0], high[1], low[1]) if low and high and is_shown else None
        for low, high, is_shown in zip(lows, highs, shown or [True] * len(places))
    ]


def _drawn(axis: Axis, places: Sequence[int], values: Sequence[float], shown: Sequence[bool] | None = None) -> str:
    points = axis.points(places, values)
    return line(points if shown is None else [point if is_shown else None for point, is_shown in zip(points, shown)])


def _dots(axis: Axis, points: Iterable[tuple[int, float]]) -> str:
    """Return the values that have a place on the axis as dots."""
    known = list(points)
    found = axis.points((x for x, _ in known), (value for _, value in known))
    return dots(point for point in found if point is not None)


def _rails(axis: Axis, points: Iterable[tuple[int, float]]) -> list[Series]:
    """Return upright lines at the edge for values that have no place on the axis; none if all have one."""
    odd = [(x, value) for x, value in points if not axis.shows(value)]
    groups = (
        ("odd", "not finite", [pair for pair in odd if not math.isfinite(pair[1])]),
        ("low", "zero or negative", [pair for pair in odd if math.isfinite(pair[1])]),
    )
    return [
        Series(style, uprights((x, axis.place(v) - RAIL, axis.place(v) + RAIL) for x, v in found), label)
        for style, label, found in groups
        if found
    ]


# Parameters and spectra ----------------------------------------------------------------------------------------------

DOT_SERIES = (
    ("dot norm", "gradient norm"),
    ("ring norm", "gradient norm, baseline"),
    ("dot rms", "rms of the parameter"),
    ("ring rms", "rms, baseline"),
)


def gradients(names: Sequence[str], found: Sequence[Mapping[str, float]], limits: Limits | None) -> Chart:
    """Return gradient norm and rms of each parameter, now and in the baseline, on one logarithmic axis.

    Args:
        names: Parameters in program order.
        found: Gradient norms now and in the baseline, then root mean squares now and in the baseline.
        limits: Bound on the gradient norms.
    """
    axis = axis_of([v for one in found for v in one.values()] + (limits.ends if limits else []), log=True, span=1.0)
    series = [limits.shaded(axis)] if limits else []
    places = dict(zip(names, _places(names, is_state=False)))
    # What is below comes first: rings of the baseline are drawn over, so that a shift shows as a ring beside a dot.
    for (style, label), values in sorted(zip(DOT_SERIES, found), key=lambda pair: "dot" in pair[0][0]):
        points = [(places[name], values[name]) for name in names if name in values]
        path = _dots(axis, points)
        series.append(Series(style, path, label))
        if style.startswith("ring"):
            series.append(Series("hole", path))
        series += _rails(axis, points) if style.startswith("dot") else []
    text = f"{len(names)} parameters; gradient norms{_range_text(found[0].values())}."
    ends = (names[0], names[-1]) if names else ("", "")
    return Chart(
        "Gradient norm and rms of each parameter",
        text,
        "parameters",
        len(names),
        tuple(series),
        axis.ticks(),
        left=ends[0],
        right=ends[1],
    )


def spectrum(values: Values, old: Values | None, limits: Limits | None) -> Chart:
    """Return exponents or singular values in decreasing order, with seeds, intervals, baseline and bound.

    Args:
        values: The values.
        old: The values of the baseline, if there are any.
        limits: Bound on every value.
    """
    elements, before = list(values.elements.values()), list(old.elements.values()) if old else []
    known = [value for e in elements for value in (e.mean, *e.seeds)] + [e.mean for e in before]
    axis = axis_of([*known, *(limits.ends if limits else []), *([] if values.log else [0.0])], log=values.log)
    count = max(len(elements), len(before), 1)
    places = [round(SIZE * (k + 0.5) / count) for k in range(count)]
    of_seeds = [(x, value) for x, e in zip(places, elements) for value in e.seeds]
    of_before = _dots(axis, ((x, e.mean) for x, e in zip(places, before)))
    spans = [span for span in _spans(axis, places, [(e.low, e.high) for e in elements]) if span is not None]
    series = [
        *([limits.shaded(axis)] if limits else []),
        *([] if values.log else [Series("zero", line([(0, axis.place(0.0)), (SIZE, axis.place(0.0))]))]),
        Series("span", uprights(spans), "interval"),
        Series("dot seed", _dots(axis, of_seeds) if len(of_seeds) > len(elements) else "", "each seed"),
        Series("ring norm", of_before, "baseline"),
        Series("hole", of_before),
        Series("dot norm", _dots(axis, ((x, e.mean) for x, e in zip(places, elements))), "mean"),
        *_rails(axis, ((x, e.mean) for x, e in zip(places, elements))),
    ]
    text = f"{len(elements)} values in decreasing order{_range_text(e.mean for e in elements)}."
    return Chart(
        values.label, text, "", count, tuple(series), axis.ticks(), left="1", right=str(count) if count > 1 else ""
    )


# Intervals and strips ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Interval:
    """A bound with the estimate on it, along a horizontal axis."""

    series: tuple[Series, ...]
    ends: tuple[Tick, ...]
    """The ends of the bound."""
    description: str


def interval(value: Element, limits: Limits, *, log: bool, old: float = math.nan) -> Interval:
    """Return a bound with the estimate on it.

    Args:
        value: The estimate.
        limits: The bound.
        log: Whether the axis is logarithmic. It is not if the bound or the estimate is negative or zero.
        old: The value of the baseline; NaN without one.
    """
    known = [v for v in (value.mean, value.low, value.high, old, *limits.ends) if math.isfinite(v)]
    log = log and bool(known) and min(known) > 0
    axis = _wider(axis_of([*known, value.mean], log=log), known)
    at = _across(axis)
    start = -EDGE if limits.low is None else at(limits.low)
    end = SIZE + EDGE if limits.high is None else at(limits.high)
    spans = [] if math.isnan(value.low) or math.isnan(value.high) else [(at(value.low), at(value.high))]
    before = [(at(old), SIZE // 2)] if math.isfinite(old) else []
    is_odd = not math.isfinite(value.mean)
    series = (
        Series("bound", rectangles([(start, 180, end - start, 640)])),
        Series("ends", uprights((at(edge), 100, 900) for edge in limits.ends)),
        Series("span", line([point for low, high in spans for point in ((low, 500), (high, 500))])),
        Series("ring norm", dots(before)),
        Series("hole", dots(before)),
        Series("odd" if is_odd else "dot norm", _mark(at(value.mean), is_odd=is_odd)),
    )
    ends = tuple(Tick(at(edge) / (SIZE / 100), format_number(edge)) for edge in limits.ends)
    return Interval(series, ends, f"{format_number(value.mean, 4)}, bound {limits.text}")


def _mark(x: int, *, is_odd: bool) -> str:
    return uprights([(x, 150, 850)]) if is_odd else dots([(x, SIZE // 2)])


def _wider(axis: Axis, known: Sequence[float]) -> Axis:
    """Return an axis with room at both ends; around the only value, if there is one."""
    room = 0.18 * (axis.high - axis.low) if len(set(known)) > 1 else max(0.5, 0.5 * abs(axis.low))
    return Axis(axis.low - room, axis.high + room, axis.log, axis.above, axis.below)


def _across(axis: Axis) -> Callable[[float], int]:
    """Return the horizontal place of a value: the vertical one, from the other end."""
    return lambda value: SIZE - axis.place(value)


LEAST_HEAT = 0.5
"""Growth rate in nats for which a bar has its full height, unless another step has a larger one."""
NARROW = 60
"""Number of bars above which the gaps between them are small."""


def heat_strip(rates: Sequence[float], most: float) -> tuple[Series, ...]:
    """Return one bar for each step: upward if gradients grow there, downward if they shrink, across if not finite.

    Args:
        rates: Growth rate of each step.
        most: Largest magnitude of a growth rate in the check.

    >>> [one.style for one in heat_strip([0.5, -0.5], 0.5)]
    ['zero', 'grows', 'shrinks']
    """
    if not rates:
        return ()
    scale = SIZE / 2 / max(most, LEAST_HEAT)
    edges = [round(SIZE * k / len(rates)) for k in range(len(rates) + 1)]
    gap = 1 if len(rates) > NARROW else 4
    bars: dict[str, list[tuple[int, int, int, int]]] = {"grows": [], "shrinks": [], "broken": []}
    for rate, left, right in zip(rates, edges, edges[1:]):
        width = max(right - left - gap, 1)
        if not math.isfinite(rate):
            bars["broken"].append((left, 0, width, SIZE))
            continue
        height = round(abs(rate) * scale)
        if height:
            bars["grows" if rate > 0 else "shrinks"].append(
                (left, SIZE // 2 - height if rate > 0 else SIZE // 2, width, height)
            )
    zero = Series("zero", line([(0, SIZE // 2), (SIZE, SIZE // 2)]))
    return (zero, *(Series(style, rectangles(found)) for style, found in bars.items() if found))
