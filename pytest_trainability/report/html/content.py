"""What the page shows of a check: texts and charts that are derived from the document, and that the templates lay out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...records.text import format_number, format_spread
from .axes import number
from .charts import Chart, Interval, Limits, Series, course, gradients, heat_strip, interval, profile, spectrum
from .tables import INPUT, Column, Element, Table, Values, column_of, expand, values_of
from .tree import Node, faults, first_outside, tree

__all__ = ["STATUSES", "Bound", "Change", "Content", "Status", "Trouble", "content", "troubles"]

NORM, RMS, RATE, GAIN, MAX = "gradient_norm", "initial values", "growth_rate", "log_gain", "lyapunov_max"
MOST_SEEDS_NAMED = 10_000
"""Number of seeds above which a marginal verdict is not worth settling, as in the terminal."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a status is shown."""

    key: str
    """The status in the document."""
    word: str
    """The word in the filter."""
    mark: str
    style: str
    is_red: bool = False


STATUSES = {
    status.key: status
    for status in (
        Status("failed", "failed", "✘", "failed", is_red=True),
        Status("not measured", "error", "!", "failed", is_red=True),
        Status("marginal", "marginal", "≈", "marginal"),
        Status("nothing asserted", "unasserted", "○", "unasserted"),
        Status("expected failure", "expected", "x", "expected"),
        Status("held", "held", "✔", "held"),
    )
}
"""In the order of the list of checks."""
RANKS = {key: rank for rank, key in enumerate(STATUSES)}


@dataclass(frozen=True, slots=True)
class Bound:
    """A verdict with its picture."""

    verdict: Mapping[str, Any]
    picture: Interval | None
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A change from the baseline."""

    measure: str
    where: str
    text: str
    elements: tuple[str, ...]
    size: float
    """Shift in units of the tolerance; infinite for a change that no number describes."""

    @property
    def size_text(self) -> str:
        """How many tolerances the value has moved by."""
        return f"{float(format_number(self.size, 2)):,.6g} × tolerance" if math.isfinite(self.size) else ""

    @property
    def percent(self) -> float:
        """Length of the bar, which grows with the logarithm of the size and is full at 1000 tolerances."""
        return 100 * min(math.log10(max(self.size, 1.0) * 1.25) / 3.1, 1.0) if math.isfinite(self.size) else 100.0


@dataclass(frozen=True, slots=True)
class Content:
    """One check as the page shows it."""

    anchor: str
    """Identifier of its place on the page, the same in every report."""
    check: Mapping[str, Any]
    status: Status
    order: int
    """Place in the document."""
    title: str
    headline: str
    """The shortest true sentence about what is wrong or limited; empty if nothing is."""
    gain: str
    margin: float
    """Smallest distance to a bound in units of its width or of the spread; infinite without a bound."""
    measures: tuple[str, ...]
    nodes: tuple[Node, ...]
    rates: tuple[float, ...]
    """Growth rate of each step."""
    charts: tuple[Chart, ...]
    more_charts: tuple[Chart, ...]
    """Charts that are folded away."""
    tables: tuple[Table, ...]
    bounds: tuple[Bound, ...]
    changes: tuple[Change, ...]
    scalars: tuple[Values, ...]
    listed: tuple[Values, ...]
    """Measures of names."""

    @property
    def most_heat(self) -> float:
        """Largest magnitude of a growth rate."""
        return max((abs(rate) for rate in self.rates if math.isfinite(rate)), default=0.0)

    def strip(self, steps: Sequence[int] | None = None) -> tuple[Series, ...]:
        """Return the heat strip of some steps, or of all."""
        rates = self.rates if steps is None else [self.rates[k] for k in steps if k < len(self.rates)]
        return heat_strip(rates, self.most_heat)


def content(check: Mapping[str, Any], order: int = 0) -> Content:
    """Return what the page shows of a check.

    Args:
        check: A check of the document.
        order: Its place in the document.
    """
    values = values_of(check["values"])
    old = values_of((check["baseline"] or {}).get("old_values") or ())
    limits = {v["measure"]: Limits(_end(v["low"]), _end(v["high"])) for v in check["verdicts"]}
    shown = _Shown(check, values, old, limits)
    return Content(
        hashlib.sha256(check["id"].encode("utf-8", "backslashreplace")).hexdigest()[:10],
        check,
        STATUSES[check["status"]],
        order,
        _title(check),
        _headline(check),
        _gain_text(check),
        min((number(v["margin"]) for v in check["verdicts"]), default=math.inf),
        tuple(dict.fromkeys([*(v["measure"] for v in check["verdicts"]), *values])),
        tree(check["modules"], check["steps"]["names"], faults(check)),
        tuple(map(number, check["growth"])),
        tuple(shown.charts()),
        tuple(shown.more_charts()),
        tuple(shown.tables()),
        tuple(_bound(verdict, old) for verdict in check["verdicts"]),
        tuple(_changes(check["baseline"])),
        tuple(v for v in values.values() if v.kind == "estimate"),
        tuple(v for v in values.values() if v.kind == "names"),
    )


def _end(value: float | str | None) -> float | None:
    return None if value is None else float(value)


def _title(check: Mapping[str, Any]) -> str:
    """Return the name of the test within its file, and the name of the measurement within the test."""
    test = check["test"].partition("::")[2] or check["test"]
    return f"{test} ({check['name']})" if check["name"] else test


def _gain_text(check: Mapping[str, Any]) -> str:
    """Return the log gain; empty for a contract alone, which measures none."""
    if not check["steps"]["along"]:
        return ""
    gain = check["log_gain"]
    return format_spread(number(gain["mean"]), number(gain["spread"]), unit="nats", finite=gain["finite"])


def _headline(check: Mapping[str, Any]) -> str:
    """Return what is wrong in one sentence; of a check that passes, what is marginal, or the first limit of its verdict."""
    for verdict in check["verdicts"]:
        if not verdict["holds"]:
            return f"{verdict['measure']} {verdict['text']} {verdict['bound']}"
    baseline = check["baseline"]
    if baseline and baseline["status"] == "missing":
        return "no baseline"
    if baseline and baseline["status"] == "changed":
        changes = list(_changes(baseline))
        more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
        what = " ".join(filter(None, (changes[0].measure, changes[0].where, changes[0].text))) if changes else "nothing"
        return f"changed since the baseline: {what}{more}"
    if check["status"] == "failed":
        return str(check["failure"]) or "the test failed"
    marginal = [f"{v['measure']} {v['text']} {v['bound']}: {_marginal(v)}" for v in check["verdicts"] if v["marginal"]]
    return next(iter([*marginal, *check["cautions"]]), "")


# Bounds and changes --------------------------------------------------------------------------------------------------


def _bound(verdict: Mapping[str, Any], old: Mapping[str, Values]) -> Bound:
    value = Element(number(verdict["value"]), number(verdict["value_low"]), number(verdict["value_high"]))
    limits = Limits(_end(verdict["low"]), _end(verdict["high"]))
    before = old[verdict["measure"]].elements if verdict["measure"] in old else {}
    of_baseline = before[verdict["where"]].mean if verdict["where"] in before else math.nan
    is_drawn = bool(limits.ends) and verdict["elements"] > 0
    picture = interval(value, limits, log=verdict["scale"] == "log", old=of_baseline) if is_drawn else None
    return Bound(verdict, picture, tuple(_remarks(verdict)))


def _remarks(verdict: Mapping[str, Any]) -> Iterator[str]:
    if verdict["elements"] == 0:
        yield "nothing was measured"
    elif verdict["where"]:
        outside = f"{verdict['violations']} of {verdict['elements']} outside, " if verdict["violations"] else ""
        yield f"{outside}worst {verdict['where']}" if verdict["elements"] > 1 else verdict["where"]
    if verdict["elements"] == 0 and verdict["remark"]:
        yield verdict["remark"]
    if verdict["marginal"]:
        yield _marginal(verdict)
    if verdict["finite"] and not math.isnan(number(verdict["value"])):
        yield verdict["finite"]


def _marginal(verdict: Mapping[str, Any]) -> str:
    seeds = number(verdict["seeds_needed"])
    if not seeds <= MOST_SEEDS_NAMED:
        return "marginal: no number of seeds would settle it"
    return f"marginal: about {math.ceil(seeds)} seeds would settle it"


def _changes(baseline: Mapping[str, Any] | None) -> list[Change]:
    """Return the changes from the baseline, the largest in units of its tolerance first."""
    found = [
        Change(change["measure"], _where(change), _moved(change), tuple(change["elements"]), _size(change))
        for change in (baseline["changes"] if baseline else ())
    ]
    return sorted(found, key=lambda change: -change.size)


def _where(change: Mapping[str, Any]) -> str:
    if change["kind"] == "moved":
        return str(change["element"])
    what = "new" if change["kind"] == "new" else "gone"
    return f"{change['count']} {what}" if change["elements"] else what


def _moved(change: Mapping[str, Any]) -> str:
    """Return old → new; empty for names that vanished or are new, which have no numbers."""
    return str(change["text"]) if change["kind"] == "moved" else ""


def _size(change: Mapping[str, Any]) -> float:
    """Return a shift in units of its tolerance; infinite if no number describes the change."""
    shift, tolerance = abs(number(change["shift"])), number(change["tolerance"])
    if math.isnan(shift) or math.isnan(tolerance):
        return math.inf
    return shift / tolerance if tolerance > 0 else math.inf


# Charts and tables ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shown:
    """The values of a check, ready to be drawn."""

    check: Mapping[str, Any]
    values: Mapping[str, Values]
    old: Mapping[str, Values]
    limits: Mapping[str, Limits]

    @property
    def steps(self) -> list[str]:
        return list(self.check["steps"]["names"])

    def of_steps(self) -> list[Values]:
        """Return the profiles along the chain."""
        known = {INPUT, *self.steps}
        return [v for v in self._profiles("step") if known.issuperset(v.elements)]

    def of_parameters(self) -> list[Values]:
        return self._profiles("parameter")

    def of_others(self) -> list[Values]:
        shown = {v.measure for v in (*self.of_steps(), *self.of_parameters())}
        return [v for v in self.values.values() if v.kind == "profile" and v.elements and v.measure not in shown]

    def _profiles(self, by: str) -> list[Values]:
        return [v for v in self.values.values() if v.kind == "profile" and v.by == by and v.elements]

    def growth(self) -> dict[str, Element]:
        """Return the growth rate of each step; means only where the document holds no values."""
        found = self.values.get(RATE)
        if found is not None and set(self.steps) <= set(found.elements):
            return dict(found.elements)
        return {name: Element(number(rate)) for name, rate in zip(self.steps, self.check["growth"])}

    def rms(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the root mean square of each parameter, now and in the baseline where it has changed."""
        now = {n: number(one["rms"]) for one in self.check["tensors"] for n in expand(one["name"])}
        moved = [c for c in (self.check["baseline"] or {}).get("changes") or () if c["measure"] == RMS]
        before = {
            name: number(change["old"])
            for change in moved
            if change["unit"] != "mean"
            for pattern in change["elements"]
            for name in expand(pattern)
        }
        return now, before

    def parameters(self) -> list[str]:
        """Return the parameters in program order. Buffers, which have no gradient, come last."""
        names = [n for v in self.of_parameters() for n in v.elements]
        return list(dict.fromkeys([*names, *self.rms()[0]]))

    def norms(self) -> list[Mapping[str, float]]:
        """Return gradient norms now and in the baseline, then root mean squares now and in the baseline."""
        of = [found[NORM].elements if NORM in found else {} for found in (self.values, self.old)]
        known = set(self.parameters())
        means = [{n: e.mean for n, e in elements.items() if n in known} for elements in of]
        return [*means, *({n: v for n, v in rms.items() if n in known} for rms in self.rms())]

    def course_limits(self) -> Limits | None:
        """Return the bound on the log gain; without one, that on ``lyapunov_max`` times the number of steps."""
        if GAIN in self.limits or MAX not in self.limits:
            return self.limits.get(GAIN)
        maximum = next(number(v["value"]) for v in self.check["verdicts"] if v["measure"] == MAX)
        gain, steps = number(self.check["log_gain"]["mean"]), len(self.check["growth"])
        # Not where steps are left out of the average, or have another length in time than 1.
        if not math.isclose(maximum * steps, gain, rel_tol=1e-2, abs_tol=1e-6):
            return None
        return self.limits[MAX].times(steps)

    def charts(self) -> Iterator[Chart]:
        """Yield the charts that are always shown."""
        if self.check["growth"]:
            before = self.old[RATE].elements if RATE in self.old else {}
            yield course(
                self.steps,
                self.growth(),
                before,
                limits=self.course_limits(),
                leaves=first_outside(self.check),
                along=self.check["steps"]["along"],
            )
        if self.parameters():
            yield gradients(self.parameters(), self.norms(), self.limits.get(NORM))
        for values in self.values.values():
            if values.kind == "spectrum" and values.elements:
                yield spectrum(values, self.old.get(values.measure), self.limits.get(values.measure))

    def more_charts(self) -> Iterator[Chart]:
        """Yield the charts of the other profiles."""
        for values in self.of_steps():
            states = [INPUT] if INPUT in values.elements else []
            yield self._profile(values, [*states, *self.steps], "steps")
        for values in self.of_parameters():
            if values.measure != NORM:
                yield self._profile(values, self.parameters(), "parameters")
        for place, values in enumerate(self.of_others(), 1):
            yield self._profile(values, list(values.elements), f"m{place}")

    def _profile(self, values: Values, names: Sequence[str], axis: str) -> Chart:
        return profile(values, self.old.get(values.measure), names, axis, self.limits.get(values.measure))

    def tables(self) -> Iterator[Table]:
        """Yield the numbers that the charts show."""
        if self.steps and self.check["growth"]:
            yield Table("steps", "Steps", tuple(self.steps), tuple(self._step_columns()))
        if self.parameters():
            yield Table("parameters", "Parameters", tuple(self.parameters()), tuple(self._parameter_columns()))
        for values in self.values.values():
            if values.kind == "spectrum" and values.elements:
                names = tuple(values.elements)
                yield Table("", values.label, names, tuple(self._columns(values, names)))
        for place, values in enumerate(self.of_others(), 1):
            names = tuple(values.elements)
            yield Table(f"m{place}", values.label, names, tuple(self._columns(values, names)))

    def _step_columns(self) -> Iterator[Column]:
        rates = {name: element.mean for name, element in self.growth().items()}
        yield column_of("growth, nats", self.steps, rates)
        total, found = 0.0, {}
        for name in reversed(self.steps):
            total += rates.get(name, math.nan)
            found[name] = total
        yield column_of("accumulated, nats", self.steps, found)
        for values in self.of_steps():
            yield from self._columns(values, self.steps) if values.measure != RATE else ()

    def _parameter_columns(self) -> Iterator[Column]:
        titles = ("gradient norm", "baseline", "rms", "rms, baseline")
        for title, found in zip(titles, self.norms()):
            if found:
                yield column_of(title, self.parameters(), found)
        looks = {name: one["looks"] for one in self.check["tensors"] for name in expand(one["name"])}
        if any(looks.values()):
            yield Column("entries", tuple(looks.get(name, "") for name in self.parameters()), is_text=True)
        for values in self.of_parameters():
            yield from self._columns(values, self.parameters()) if values.measure != NORM else ()

    def _columns(self, values: Values, names: Sequence[str]) -> Iterator[Column]:
        yield column_of(values.label, names, {n: e.mean for n, e in values.elements.items()})
        if values.measure in self.old:
            before = self.old[values.measure].elements
            yield column_of("baseline", names, {n: e.mean for n, e in before.items()})


# What could not be measured ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trouble:
    """A measurement that could not be made."""

    anchor: str
    error: Mapping[str, Any]
    order: int

    @property
    def status(self) -> Status:
        """How it is shown."""
        return STATUSES["expected failure" if self.error["expected"] else "not measured"]


def troubles(errors: Iterable[Mapping[str, Any]], start: int) -> list[Trouble]:
    """Return what could not be measured.

    Args:
        errors: The list ``errors`` of the document.
        start: Place of the first one in the list of checks.
    """
    texts = [f"{place} {error['test']} {error['message']}" for place, error in enumerate(errors)]
    anchors = [hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:10] for text in texts]
    return [Trouble(f"e{anchor}", error, start + k) for k, (anchor, error) in enumerate(zip(anchors, errors))]
