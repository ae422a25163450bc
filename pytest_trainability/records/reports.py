"""Records of a measurement for reports and files: plain numbers and strings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from .text import format_number, format_spread
from .values import ElementRecord, ModuleRecord, TensorRecord, ValueRecord

__all__ = ["BaselineChange", "BaselineRecord", "BaselineSummary", "CheckRecord", "CureRecord", "VerdictRecord", "plain"]


_RecordT = TypeVar("_RecordT")


@dataclass(frozen=True, slots=True)
class VerdictRecord:
    """Verdict on one bound."""

    measure: str
    value: float
    """The point estimate, which decides. For a profile it is the estimate of the worst element."""
    value_low: float
    """Lower end of the confidence interval of the value."""
    value_high: float
    """Upper end of the confidence interval of the value."""
    unit: str
    scale: str
    low: float | None
    high: float | None
    holds: bool
    marginal: bool
    """Whether other seeds might change the verdict: an interval on which it depends straddles an end of the bound."""
    margin: float
    """Distance to the nearest end of the bound; negative outside. For a log-scale measure, the log of the ratio in nats."""
    where: str = ""
    """Name of the worst element of a profile."""
    violations: int = 0
    """Number of elements outside the bound."""
    elements: int = 1
    """Number of elements that were judged."""
    worst: tuple[tuple[str, float], ...] = ()
    """Names and values of the elements outside the bound, worst first."""
    seeds_needed: float = 0
    """Approximate number of seeds that would settle a marginal verdict: infinite if none would, 0 if it is not marginal."""
    remark: str = ""
    """Remark on the value, printed in parentheses behind it."""
    finite: str = ""
    """Number of seeds on which the value is finite, such as ``finite on 1 of 8 seeds``; empty if it is on all or none."""
    worst_finite: tuple[str, ...] = ()
    """The same for each element of ``worst``."""
    names: tuple[str, ...] = ()
    """Names that were counted, for a measure of names that does not hold."""
    selection: str = ""
    """Patterns of the elements that were judged, such as ``without *.bias``; empty if all were."""
    spread: float = math.nan
    """Standard deviation of the value between seeds, of its logarithms for a log-scale measure; NaN with one seed."""

    @property
    def value_text(self) -> str:
        """The value with the spread between seeds, its unit and remark, and its interval if the verdict is marginal."""
        text = format_spread(self.value, self.spread, unit=self.unit, scale=self.scale, finite=self.finite)
        if self.remark:
            text += f" ({self.remark})"
        return f"{text}, mean within {self._interval}" if self.marginal else text

    @property
    def _interval(self) -> str:
        return f"[{format_number(self.value_low)}, {format_number(self.value_high)}]"


@dataclass(frozen=True, slots=True)
class BaselineChange:
    """One difference from a baseline: a number that moved, or names that vanished or are new."""

    measure: str
    kind: Literal["moved", "vanished", "new"]
    element: str = ""
    """Name of the element of a profile that moved; empty for a scalar."""
    elements: tuple[str, ...] = ()
    """Names of the elements that vanished or are new; empty if the whole measure vanished or is new.
    Patterns of names where ``element`` has stars."""
    old: float = math.nan
    """Mean in the baseline."""
    new: float = math.nan
    """Mean now."""
    shift: float = math.nan
    """``new - old``, or ``log(new / old)`` for a log-scale measure; NaN if infinite or NaN values differ."""
    tolerance: float = math.nan
    """Tolerance that the shift exceeds, in the same unit as the shift."""
    unit: str = ""
    scale: str = "linear"
    considered: int = 1
    """Number of elements that were compared."""
    old_finite: str = ""
    """Number of seeds of the baseline that are finite, such as ``finite on 1 of 8 seeds``; empty if all or none are."""
    new_finite: str = ""
    """Number of seeds that are finite now."""
    old_text: str = ""
    """Class of a gradient or of a module, shape, or operations, in the baseline; empty for a number."""
    new_text: str = ""
    """Class, shape or operations now."""
    count: int = 1
    """Number of elements that the change is about."""
    remark: str = ""
    """Remark on what may explain the change, printed behind it."""

    @property
    def old_to_new(self) -> str:
        """Both means and the unit, such as ``+0.22 → +1.77 nats``, or both texts."""
        if self.old_text:
            return f"{self.old_text} → {self.new_text}"
        old, new = self._side(self.old, self.old_finite), self._side(self.new, self.new_finite)
        if (old, new) == (self.old_finite, self.new_finite):
            return f"{old} → {new}"
        if new == self.new_finite:
            return " ".join(part for part in (old, self.unit, "→", new) if part)
        return " ".join(part for part in (old, "→", new, self.unit) if part)

    def _side(self, mean: float, finite: str) -> str:
        """Return the text of one side, without its unit."""
        sign = "+" if self.unit.startswith("nats") and not math.isnan(mean) else ""
        text = f"{mean + 0.0:{sign}.3g}"
        if not finite:
            return text
        return f"{text} ({finite})" if math.isfinite(mean) else finite


@dataclass(frozen=True, slots=True)
class BaselineRecord:
    """Comparison of one measurement with its baseline."""

    status: Literal["same", "changed", "missing", "recorded", "updated"]
    file: str
    """Path of the baseline file, relative to the root of the session."""
    entry: str
    """Test, model and environment that identify the entry in the file."""
    changes: tuple[BaselineChange, ...] = ()
    recorded_with: str = ""
    """Conditions of the baseline that differ from the present ones."""
    command: str = ""
    """Command that records or updates the baseline."""
    measures: tuple[str, ...] = ()
    """Names of the measures in the entry."""
    model_compared: bool = False
    """Whether initial values and modules were compared. A baseline of an earlier version has none."""
    operations_compared: bool = False
    """Whether operations were compared."""
    custom_functions: tuple[str, ...] = ()
    """Names of the custom autograd functions of the model, whose backward pass no operation shows."""
    remarks: tuple[str, ...] = ()
    """Differences that are no changes by themselves, such as other constants next to equal numbers."""
    old_values: tuple[ValueRecord, ...] = ()
    """Values of the baseline; empty unless a file of the session shows them."""

    @property
    def holds(self) -> bool:
        """Whether the baseline lets the test pass."""
        return self.status not in {"changed", "missing"}


@dataclass(frozen=True, slots=True)
class BaselineSummary:
    """Changes that a session made to the baselines, and problems that it found. Files are relative to the root."""

    written: tuple[tuple[str, int, int], ...] = ()
    """File, number of entries that were recorded, number of entries that were updated."""
    withheld: tuple[str, ...] = ()
    """Tests whose entries were not written because the tests did not pass."""
    unused: tuple[tuple[str, str, str], ...] = ()
    """File, entry that no test requested, and the entry without a baseline that has the same numbers (empty if none has)."""
    forgotten: tuple[str, ...] = ()
    """Files whose test module does not exist."""
    stale: tuple[str, ...] = ()
    """Other versions of torch with which entries were recorded."""
    pruned: bool = False
    """Whether unused entries and forgotten files were removed."""
    partial: tuple[str, ...] = ()
    """Numbers of tests that did not run to their end, such as ``3 skipped or failed``: why pruning was refused."""
    errors: tuple[str, ...] = ()
    """Messages about files that could not be read or written."""


@dataclass(frozen=True, slots=True)
class CureRecord:
    """A change of the model that was tried on copies and brings a failed measure inside its bound."""

    text: str
    """What to write in the model's code."""
    measure: str
    before: float
    after: float
    """Value on the same seeds after the change."""


@dataclass(frozen=True, slots=True)
class CheckRecord:
    """One measurement with its verdicts, as reports show it."""

    test: str
    """Node id of the test."""
    name: str
    """Name of the measurement within the test; empty if it has none."""
    model: str
    steps: str
    """Number and kind of the steps, such as ``12 × GPT2Block``; of a contract alone, the number of parameters."""
    step_names: tuple[str, ...]
    frame: str
    """``"per sample"`` or ``"joint"``."""
    mode: str
    """``"train"`` or ``"eval"``."""
    device: str
    dtype: str
    seeds: tuple[int, ...]
    """Seeds that were drawn."""
    seeds_requested: tuple[int, ...]
    """Seeds that were requested. Fewer are drawn if the bounds are settled earlier."""
    fixed: bool
    """Whether a finished module was measured: one draw of its weights, without seeds."""
    seconds: float
    """Duration of the measurement."""
    log_gain: float
    log_gain_low: float
    log_gain_high: float
    growth: tuple[float, ...]
    """Growth rate of each step in nats, in program order."""
    verdicts: tuple[VerdictRecord, ...] = ()
    leaves_band: str = ""
    """Step at which the accumulated log gain leaves the bound; empty if it does not."""
    cause: tuple[str, ...] = ()
    """Lines about the likely cause of a failure."""
    cures: tuple[CureRecord, ...] = ()
    """Changes that bring what has failed inside its bounds, the most specific one first."""
    notes: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    """Limits of a green result: parameters without a gradient, calls that are not on the chain."""
    reproduce: str = ""
    """Command that repeats the test, without seeds and device."""
    baseline: BaselineRecord | None = None
    """Comparison with the baseline; None if the test has no baseline check."""
    along: str = "depth"
    """Direction of the chain: ``"depth"`` or ``"time"``; empty for a contract that was checked without a measurement."""
    lists: tuple[tuple[str, ...], ...] = ()
    """Names that notes and cautions shorten: what they have in common, then the names."""
    log_gain_finite: str = ""
    """Number of seeds on which the log gain is finite, such as ``finite on 1 of 8 seeds``; empty if it is on all or none."""
    log_gain_spread: float = math.nan
    """Standard deviation of the log gain between seeds, nats; NaN with one seed."""
    readings: tuple[tuple[str, str], ...] = ()
    """Measures that were read and have no bound, each with its value as text."""
    gradient_of: str = ""
    """What was differentiated: ``"the loss"`` or ``"a random functional of the output"``; empty for a contract alone."""
    asserted: bool = False
    """Whether the test has judged the values in a way that leaves no verdict, such as by a plain assertion on them."""
    file: str = ""
    """Path of the test's file, relative to the root of the session."""
    line: int = 0
    """Line of the test, counted from 1; 0 if it is not known."""
    values: tuple[ValueRecord, ...] = ()
    """Values of all measures that were read; empty unless a file of the session shows them."""
    modules: tuple[ModuleRecord, ...] = ()
    """Module tree with folded repetition, in program order; empty unless a file of the session shows it."""
    tensors: tuple[TensorRecord, ...] = ()
    """Initial values where they were read; empty unless a file of the session shows them."""

    @property
    def log_gain_text(self) -> str:
        """The log gain with the spread between seeds."""
        return format_spread(self.log_gain, self.log_gain_spread, unit="nats", finite=self.log_gain_finite)

    @property
    def holds(self) -> bool:
        """Whether every bound holds, and the baseline too if there is one."""
        return all(verdict.holds for verdict in self.verdicts) and (self.baseline is None or self.baseline.holds)

    @property
    def asserts(self) -> bool:
        """Whether anything was judged: a bound, a contract, the baseline, or the values by an assertion of the test."""
        return bool(self.verdicts) or self.baseline is not None or self.asserted

    def to_plain(self) -> dict[str, Any]:
        """Return the record as dictionaries, lists, strings and numbers, for another process."""
        found: dict[str, Any] = plain(self)
        return found

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> CheckRecord:
        """Rebuild a record from the result of :meth:`to_plain`."""
        baseline = given["baseline"]
        if baseline is not None:
            changes = tuple(_rebuilt(BaselineChange, change) for change in baseline["changes"])
            old_values = tuple(_value(value) for value in baseline["old_values"])
            baseline = replace(_rebuilt(BaselineRecord, baseline), changes=changes, old_values=old_values)
        verdicts = tuple(_rebuilt(VerdictRecord, verdict) for verdict in given["verdicts"])
        return replace(
            _rebuilt(cls, given),
            verdicts=verdicts,
            baseline=baseline,
            cures=tuple(_rebuilt(CureRecord, cure) for cure in given["cures"]),
            values=tuple(_value(value) for value in given["values"]),
            modules=tuple(_rebuilt(ModuleRecord, module) for module in given["modules"]),
            tensors=tuple(_rebuilt(TensorRecord, tensor) for tensor in given["tensors"]),
        )


def _value(given: Mapping[str, Any]) -> ValueRecord:
    elements = tuple(_rebuilt(ElementRecord, element) for element in given["elements"])
    return replace(_rebuilt(ValueRecord, given), elements=elements)


def _rebuilt(record: type[_RecordT], given: Mapping[str, Any]) -> _RecordT:
    return record(**{name: _frozen(value) for name, value in given.items()})


def plain(value: Any) -> Any:
    """Convert a value to dictionaries, lists, strings and numbers, which xdist can send to another process.

    Surrogate code points, which names from a file may contain and UTF-8 cannot encode, are escaped.

    Returns:
        The same data, without classes of this package or of numpy.
    """
    if value is None or type(value) in {int, bool, float}:
        return value
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    # xdist does not send numpy numbers to another process.
    return float(value) if isinstance(value, float) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
