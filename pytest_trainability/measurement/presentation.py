"""A measurement in a notebook or script: text, table, dictionary, data frame and plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any

from ..checks.bounds import Bound
from ..checks.verdicts import Value, first_outside
from ..records.estimates import Estimate, Names, Profile, value_text
from ..records.reports import CheckRecord
from ..records.session import CheckOutcome, SessionRecord
from ..records.text import visible
from ..report.document import check_in_full
from ..report.explain import bound_text
from ..report.exports import frame_of, html_table, new_axes
from ..report.terminal import section

__all__ = ["Presentation"]

BAND = (0.05, 0.95)
"""Quantiles over seeds that a plot shades."""


class Presentation:
    """What shows a measurement outside of a session. The measurement provides its record, values, details and bounds."""

    def _shown_record(self) -> CheckRecord:
        raise NotImplementedError

    def _shown_details(self) -> dict[str, Any]:
        raise NotImplementedError

    def _shown_values(self) -> Mapping[str, Value]:
        raise NotImplementedError

    def _shown_bounds(self) -> Mapping[str, Bound]:
        raise NotImplementedError

    def report(self, *, width: int = 80) -> str:
        """Return the text that the terminal section shows with ``-v``, also where everything holds.

        >>> print(result.report())  # doctest: +SKIP

        Args:
            width: Number of columns.
        """
        record = self._shown_record()
        lines = section(_session(replace(record, test=record.test or visible(record.model))), width=width, verbosity=1)
        return "\n".join(line.text for line in lines[:-1])

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as dictionaries, lists, strings and finite numbers: a check of the JSON report.

        Numbers that are not finite are the strings ``"inf"``, ``"-inf"`` and ``"nan"``.

        >>> import json
        >>> json.dumps(result.to_dict(), allow_nan=False)  # doctest: +SKIP
        """
        record = self._shown_record()
        detailed = replace(record, test=record.test or record.model, **self._shown_details())
        return {**check_in_full(CheckOutcome(detailed, "passed")), "test": record.test}

    def to_frame(self, *measures: str) -> Any:
        """Return the values as a pandas data frame: a row for each measure, element and seed.

        The columns are ``measure``, ``element``, ``seed``, ``value`` and ``unit``. Measures of names have no rows.

        Args:
            measures: Names of the measures; by default all that were read.

        Raises:
            UsageError: pandas is not installed.
            AttributeError: A name is not a measure.
        """
        values = self._shown_values()
        chosen = {name: getattr(self, name) for name in measures} if measures else values
        return frame_of(_rows(chosen, self._shown_record().seeds), ("measure", "element", "seed", "value", "unit"))

    def plot(self, axes: Any = None) -> Any:
        """Draw the accumulated log gain from the output to the input: thin lines for seeds, median, and 5–95 % band.

        A bound on the log gain is shaded, and the first step at which the mean leaves it is marked.

        Args:
            axes: Axes of matplotlib to draw on; new ones by default.

        Returns:
            The axes.

        Raises:
            UsageError: matplotlib is not installed.
        """
        axes = new_axes(axes)
        record, growth = self._shown_record(), self._shown_values()["growth_rate"]
        assert isinstance(growth, Profile)
        courses = list(_courses(growth, len(record.seeds)))
        steps = range(len(record.growth) + 1)
        for course in courses:
            axes.plot(steps, course, color="C0", linewidth=0.7, alpha=0.4)
        low, median, high = (_quantiles(courses, q) for q in (BAND[0], 0.5, BAND[1]))
        axes.fill_between(steps, low, high, color="C0", alpha=0.2, label="5–95 % of seeds")
        axes.plot(steps, median, color="C0", label="median")
        if "log_gain" in self._shown_bounds():
            _draw_bound(axes, self._shown_bounds()["log_gain"], record.growth, median)
        axes.set(
            xlabel="steps from the output" if record.along == "depth" else "time steps from the end",
            ylabel="log gain (nats)",
            title=f"{record.model}: {record.steps}",
        )
        if broken := sum(not math.isfinite(course[-1]) for course in courses):
            text = f"not finite on {broken} of {len(courses)} seeds"
            axes.text(0.5, 0.5, text, color="C3", ha="center", transform=axes.transAxes)
        axes.legend()
        return axes

    def _repr_html_(self) -> str:
        """Return the panel of the HTML report; without jinja2, a table of the values."""
        try:
            panel = resolve_name("pytest_trainability.report.html:panel")
        except (ImportError, AttributeError):
            return self._table()
        found: str = panel(self.to_dict())
        return found

    def _table(self) -> str:
        """Return a table of HTML with a row for each measure."""
        record = self._shown_record()
        verdicts = {verdict.measure: verdict for verdict in record.verdicts}
        rows = [("", "value", "bound", "holds")]
        for name, value in self._shown_values().items():
            verdict = verdicts.get(name)
            judged = ("", "") if verdict is None else (bound_text(verdict), "yes" if verdict.holds else "no")
            rows.append((name, value_text(value) if verdict is None else verdict.value_text, *judged))
        title = f"{record.model}: {record.steps}, {record.frame}, {record.mode} mode, gradient of {record.gradient_of}"
        return html_table(title, rows)


def _session(record: CheckRecord) -> SessionRecord:
    return SessionRecord((CheckOutcome(record, "passed"),))


def _rows(values: Mapping[str, Value], seeds: Sequence[int]) -> list[tuple[str, str, int | None, float, str]]:
    """Return measure, element, seed, value and unit of all numbers. An element that some seed lacks has no seeds."""
    return [
        (name, element.name, seed, value, element.unit)
        for name, found in values.items()
        for element in _elements(found)
        for seed, value in zip(seeds if len(element.values) == len(seeds) else [None] * len(seeds), element.values)
    ]


def _elements(value: Value) -> Sequence[Estimate]:
    if isinstance(value, Estimate):
        return [value]
    if isinstance(value, Names):
        return []
    return list(value.values()) if isinstance(value, Profile) else list(value)


def _courses(growth: Profile, seeds: int) -> Iterator[list[float]]:
    """Yield the accumulated log gain of each seed, from the last state to the first.

    A step that some seed lacks has its mean rate on all seeds.
    """
    rates = [e.values if len(e.values) == seeds else (e.mean,) * seeds for e in growth.values()]
    for of_seed in zip(*reversed(rates)):
        total, course = 0.0, [0.0]
        for rate in of_seed:
            total += rate
            course.append(total)
        yield course


def _quantiles(courses: Sequence[Sequence[float]], q: float) -> list[float]:
    """Return a quantile over seeds at each step; NaN where a seed is not finite."""
    return [_quantile(column, q) for column in zip(*courses)]


def _quantile(values: Sequence[float], q: float) -> float:
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return values[0] if len(values) == 1 else math.nan
    place = round(100 * q) - 1
    return statistics.quantiles(values, n=100, method="inclusive")[place]


def _draw_bound(axes: Any, bound: Bound, growth: Sequence[float], median: Sequence[float]) -> None:
    """Shade a bound on the log gain, and mark the first step at which the mean leaves it."""
    bottom, top = axes.get_ylim()
    low, high = (end if given is None else given for given, end in ((bound.low, bottom), (bound.high, top)))
    axes.axhspan(low, high, color="C2", alpha=0.15, label="bound")
    index = first_outside(growth, bound)
    if index is not None:
        step = len(growth) - index
        axes.plot([step], [median[step]], "x", color="C3", label="first step outside")
