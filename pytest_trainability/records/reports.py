"""What a report and a file hold of one measurement: plain numbers and strings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from .text import format_value

__all__ = ["BaselineChange", "BaselineRecord", "BaselineSummary", "CheckRecord", "StepFacts", "VerdictRecord", "plain"]


_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What is known about one step beside its numbers, for the likely cause of a failure."""

    name: str
    kind: str
    """Class of the step's module."""
    weight_std: float
    """Standard deviation of its largest weight; NaN without one."""
    fan_in: int
    weights: int
    """How many parameters of two or more dimensions it holds."""
    operations: tuple[str, ...]
    """Autograd nodes on the way through it, such as ``TanhBackward0``, in the order of the last ones of each."""
    recurrent: bool = False
    """Whether it is a step in time."""
    forget_bias: float = math.nan
    """Mean bias of an LSTM's forget gate; NaN for others."""


@dataclass(frozen=True, slots=True)
class VerdictRecord:
    """One bound, judged."""

    measure: str
    value: float
    """The point estimate, which decides; for a profile that of its worst element."""
    value_low: float
    """Lower end of its interval."""
    value_high: float
    unit: str
    scale: str
    low: float | None
    high: float | None
    holds: bool
    marginal: bool
    """Another draw of seeds might have told otherwise: the intervals of all that decides straddle an end of the bound."""
    margin: float
    """Distance to the nearest end of the bound; negative outside. In nats of ratio for a scale."""
    where: str = ""
    """The worst element of a profile."""
    violations: int = 0
    elements: int = 1
    worst: tuple[tuple[str, float], ...] = ()
    """Elements outside the bound, worst first, at most five."""
    seeds_needed: float = 0
    """About how many seeds would settle a marginal verdict; infinite where none would, 0 where it is not marginal."""
    remark: str = ""
    """What the value ought to be."""

    @property
    def value_text(self) -> str:
        """The value with its interval and unit, and what is remarked on it."""
        text = format_value(self.value, self.value_low, self.value_high, unit=self.unit, scale=self.scale)
        return f"{text} ({self.remark})" if self.remark else text


@dataclass(frozen=True, slots=True)
class BaselineChange:
    """One measure, or one element of it, that is not what the baseline says."""

    measure: str
    kind: Literal["moved", "vanished", "new"]
    element: str = ""
    """Which of a profile has moved."""
    elements: tuple[str, ...] = ()
    """Which have vanished or are new; empty where the whole measure is."""
    old: float = math.nan
    new: float = math.nan
    shift: float = math.nan
    """New less old, in nats of ratio for a scale; NaN where one of them is not finite."""
    tolerance: float = math.nan
    unit: str = ""
    scale: str = "linear"
    considered: int = 1
    """How many elements were compared."""

    @property
    def old_to_new(self) -> str:
        """As in ``+0.22 → +1.77 nats``."""
        sign = "+" if self.unit.startswith("nats") else ""
        old, new = (f"{value + 0.0:{sign}.3g}" for value in (self.old, self.new))
        return " ".join(part for part in (old, "→", new, self.unit) if part)


@dataclass(frozen=True, slots=True)
class BaselineRecord:
    """How one measurement compares with its baseline."""

    status: Literal["same", "changed", "missing", "recorded", "updated"]
    file: str
    """From the root of the session."""
    entry: str
    """Test, model and environment within the file."""
    changes: tuple[BaselineChange, ...] = ()
    recorded_with: str = ""
    """Conditions of the baseline that differ from those of now."""
    command: str = ""
    """That records or updates it."""
    measures: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the test may pass."""
        return self.status not in {"changed", "missing"}


@dataclass(frozen=True, slots=True)
class BaselineSummary:
    """What a session did to the baselines, and what it found there. Files are named from the root of the session."""

    written: tuple[tuple[str, int, int], ...] = ()
    """File, and how many entries were recorded and how many updated."""
    withheld: tuple[str, ...] = ()
    """Tests whose entries were not written, as they did not pass."""
    unused: tuple[tuple[str, str, str], ...] = ()
    """File, entry that no test asked for, and the entry without a baseline that has its numbers."""
    forgotten: tuple[str, ...] = ()
    """Files whose test module is gone."""
    stale: tuple[str, ...] = ()
    """Versions of torch other than this one that entries were recorded with."""
    pruned: bool = False
    """Whether what is unused and forgotten was removed."""
    partial: tuple[str, ...] = ()
    """Why it was not, although asked for."""
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckRecord:
    """All that a report needs to know about one measurement and its verdicts."""

    test: str
    name: str
    model: str
    steps: str
    step_names: tuple[str, ...]
    frame: str
    mode: str
    device: str
    dtype: str
    seeds: tuple[int, ...]
    """Seeds that were drawn."""
    seeds_requested: tuple[int, ...]
    """Seeds that were requested. Fewer are drawn if the bounds are settled earlier."""
    fixed: bool
    """A finished module: one draw of its weights."""
    seconds: float
    log_gain: float
    log_gain_low: float
    log_gain_high: float
    growth: tuple[float, ...]
    verdicts: tuple[VerdictRecord, ...] = ()
    leaves_band: str = ""
    cause: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    """What a green result does not cover: parameters without a gradient, calls that are not on the chain."""
    reproduce: str = ""
    """Command that repeats the test, but for seeds and device."""
    baseline: BaselineRecord | None = None
    """None where the test does not ask for it."""
    along: str = "depth"
    """What the chain goes along: ``"depth"`` or ``"time"``."""

    @property
    def log_gain_text(self) -> str:
        """The log gain with its interval."""
        return format_value(self.log_gain, self.log_gain_low, self.log_gain_high, unit="nats")

    @property
    def holds(self) -> bool:
        """Whether every bound that was judged holds, and the baseline does."""
        return all(verdict.holds for verdict in self.verdicts) and (self.baseline is None or self.baseline.holds)

    def to_plain(self) -> dict[str, Any]:
        """Return dictionaries, lists, strings and numbers only, for another process or a file."""
        found: dict[str, Any] = plain(self)
        return found

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> CheckRecord:
        """Rebuild the record that :meth:`to_plain` wrote."""
        baseline = given["baseline"]
        if baseline is not None:
            changes = tuple(_rebuilt(BaselineChange, change) for change in baseline["changes"])
            baseline = replace(_rebuilt(BaselineRecord, baseline), changes=changes)
        verdicts = tuple(_rebuilt(VerdictRecord, verdict) for verdict in given["verdicts"])
        return replace(_rebuilt(cls, given), verdicts=verdicts, baseline=baseline)


def _rebuilt(record: type[_Record], given: Mapping[str, Any]) -> _Record:
    return record(**{name: _frozen(value) for name, value in given.items()})


def plain(value: Any) -> Any:
    """Return dictionaries, lists, texts and numbers only, such as xdist can send to another process.

    Names may come from a file that somebody else wrote: half characters, which are no UTF-8, are escaped.
    """
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    # A number of numpy's would not cross to another process.
    return float(value) if isinstance(value, float) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
