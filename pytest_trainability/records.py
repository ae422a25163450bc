"""Plain numbers with names: what is measured, judged, stored and shown.

Everything here is frozen, picklable and free of tensors, so that a record means the same in a worker process, in a
report and in a file.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any, Literal, TypeVar, overload

__all__ = [
    "BaselineChange",
    "BaselineRecord",
    "BaselineSummary",
    "CheckRecord",
    "Estimate",
    "Listed",
    "Names",
    "Profile",
    "Spectrum",
    "StepFacts",
    "Steps",
    "VerdictRecord",
    "format_names",
    "format_number",
    "format_value",
    "plain",
]


_Record = TypeVar("_Record")
_Item = TypeVar("_Item")


class Listed(Sequence[_Item]):
    """A record that is a sequence of what it holds."""

    __slots__ = ()

    def _items(self) -> Sequence[_Item]:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> _Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[_Item]: ...
    def __getitem__(self, index: int | slice) -> _Item | Sequence[_Item]:
        return self._items()[index]

    def __len__(self) -> int:
        return len(self._items())


def format_number(value: float, digits: int = 3) -> str:
    """Write ``value`` as a person would: ``0.0123``, ``3.1e-09``, ``−inf`` stays ``-inf``.

    >>> format_number(0.012345), format_number(3.14159e-9), format_number(-14.4042)
    ('0.0123', '3.14e-09', '-14.4')
    """
    if not math.isfinite(value):
        return str(value)
    return f"{value + 0.0:.{digits}g}"


def format_names(names: Sequence[str], most: int = 2) -> str:
    """Write the first few names.

    >>> format_names(["a", "b", "c"])
    'a, b, …'
    """
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def format_value(mean: float, low: float, high: float, *, unit: str = "", scale: str = "linear") -> str:
    """Write a mean with its interval: ``-14.4 ± 0.3 nats``; a scale with the factor either way.

    >>> format_value(-14.41, -14.7, -14.12, unit="nats"), format_value(3e-9, 2e-9, 4.5e-9, scale="log")
    ('-14.41 ± 0.29 nats', '3.00e-09 ×/÷ 1.5')
    """
    sign = "+" if unit.startswith("nats") and not math.isnan(mean) else ""
    half = (high - low) / 2
    if not (math.isfinite(half) and math.isfinite(mean)) or half <= 0:
        parts = [f"{mean:{sign}.4g}", unit]
    elif scale == "log":
        parts = [
            f"{mean:.3g}" if mean >= 1e-3 else f"{mean:.2e}",
            f"×/÷ {_factor(math.sqrt(high / low))}" if low > 0 else "",
            unit,
        ]
    else:
        decimals = 1 - math.floor(math.log10(half))
        if 0 <= decimals <= 6:
            parts = [f"{mean:{sign}.{decimals}f} ± {half:.{decimals}f}", unit]
        else:
            parts = [f"{mean:{sign}.3g} ± {half:.2g}", unit]
    return " ".join(part for part in parts if part)


def _factor(ratio: float) -> str:
    return f"{ratio:.3g}" if ratio < 1.095 else f"{ratio:.2g}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Estimate:
    """One number, averaged over seeds, with its interval.

    It compares and computes like the float :attr:`mean`; arithmetic with a number gives an estimate again, so that a
    failing ``assert abs(result.lyapunov_max) < 0.1`` shows mean, interval and number of seeds.

    >>> x = Estimate(mean=-0.25, low=-0.31, high=-0.19, values=(-0.25, -0.24, -0.26), unit="nats/step")
    >>> x
    -0.250 ± 0.060 nats/step (3 seeds)
    >>> abs(x) < 0.3, x + 1 > 0.5, float(x)
    (True, True, -0.25)
    """

    mean: float
    """Average over seeds; the geometric one where ``scale`` is ``"log"``."""
    low: float
    """Lower end of the Student-t interval; ``nan`` with one seed."""
    high: float
    """Upper end of the interval."""
    values: tuple[float, ...]
    """One value per seed, in the order of the seeds."""
    unit: str = ""
    name: str = ""
    """The element of a profile that this is, such as a parameter's name; empty for a scalar."""
    scale: Literal["linear", "log"] = "linear"
    """``"log"`` where logarithms are averaged."""

    def __float__(self) -> float:
        return self.mean

    def _affine(self, scale: float, shift: float) -> Estimate:
        ends = sorted((scale * self.low + shift, scale * self.high + shift))
        return replace(
            self,
            mean=scale * self.mean + shift,
            low=ends[0],
            high=ends[1],
            values=tuple(scale * value + shift for value in self.values),
        )

    def __neg__(self) -> Estimate:
        return self._affine(-1.0, 0.0)

    def __pos__(self) -> Estimate:
        return self

    def __abs__(self) -> Estimate:
        magnitudes = abs(self.low), abs(self.high)
        low = 0.0 if self.low <= 0.0 <= self.high else min(magnitudes)
        return replace(
            self, mean=abs(self.mean), low=low, high=max(magnitudes), values=tuple(abs(v) for v in self.values)
        )

    @overload
    def __add__(self, other: Estimate) -> float: ...
    @overload
    def __add__(self, other: float) -> Estimate: ...
    def __add__(self, other: Any) -> Any:
        return self.mean + other.mean if isinstance(other, Estimate) else _with_number(self, other, 1.0, 1.0)

    def __radd__(self, other: float) -> Any:
        return _with_number(self, other, 1.0, 1.0)

    @overload
    def __sub__(self, other: Estimate) -> float: ...
    @overload
    def __sub__(self, other: float) -> Estimate: ...
    def __sub__(self, other: Any) -> Any:
        return self.mean - other.mean if isinstance(other, Estimate) else _with_number(self, other, 1.0, -1.0)

    def __rsub__(self, other: float) -> Any:
        return _with_number(self, other, -1.0, 1.0)

    @overload
    def __mul__(self, other: Estimate) -> float: ...
    @overload
    def __mul__(self, other: float) -> Estimate: ...
    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Estimate):
            return self.mean * other.mean
        return self._affine(float(other), 0.0) if isinstance(other, Real) else NotImplemented

    def __rmul__(self, other: Any) -> Any:
        return self._affine(float(other), 0.0) if isinstance(other, Real) else NotImplemented

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, Estimate):
            return self.mean / other.mean
        return self._affine(1.0 / float(other), 0.0) if isinstance(other, Real) else NotImplemented

    def __rtruediv__(self, other: float) -> float:
        return other / self.mean

    def __pow__(self, exponent: float) -> float:
        return float(self.mean**exponent)

    def __rpow__(self, base: float) -> float:
        return float(base**self.mean)

    def __floordiv__(self, other: Any) -> float:
        return float(self.mean // float(other))

    def __mod__(self, other: Any) -> float:
        return float(self.mean % float(other))

    def __int__(self) -> int:
        return int(self.mean)

    def __round__(self, digits: int | None = None) -> float:
        return round(self.mean, digits) if digits is not None else round(self.mean)

    def __bool__(self) -> bool:
        return self.mean != 0

    def _compare(self, other: Any, judge: Callable[[float, float], bool]) -> Any:
        return judge(self.mean, float(other)) if isinstance(other, Real) else NotImplemented

    def __lt__(self, other: Any) -> Any:
        return self._compare(other, float.__lt__)

    def __le__(self, other: Any) -> Any:
        return self._compare(other, float.__le__)

    def __gt__(self, other: Any) -> Any:
        return self._compare(other, float.__gt__)

    def __ge__(self, other: Any) -> Any:
        return self._compare(other, float.__ge__)

    def __eq__(self, other: Any) -> Any:
        return self._compare(other, float.__eq__)

    def __ne__(self, other: Any) -> Any:
        return self._compare(other, float.__ne__)

    def __hash__(self) -> int:
        return hash(self.mean)

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return format_value(self.mean, self.low, self.high, unit=self.unit, scale=self.scale)

    def __repr__(self) -> str:
        count = f"{len(self.values)} seed{'s' if len(self.values) != 1 else ''}"
        return f"{self} ({self.name}, {count})" if self.name else f"{self} ({count})"

    def __format__(self, spec: str) -> str:
        return format(self.mean, spec) if spec else str(self)


def _with_number(estimate: Estimate, other: Any, scale: float, sign: float) -> Any:
    return estimate._affine(scale, sign * float(other)) if isinstance(other, Real) else NotImplemented


# For pytest.approx and whoever else asks: an estimate stands for a real number.
Real.register(Estimate)


class _Elements:
    """Comparison of a collection of estimates with a number: it holds when it holds for every element, and for one."""

    __slots__ = ()

    def _estimates(self) -> Sequence[Estimate]:
        raise NotImplementedError

    def __lt__(self, other: float) -> bool:
        return bool(self._estimates()) and all(e < other for e in self._estimates())

    def __le__(self, other: float) -> bool:
        return bool(self._estimates()) and all(e <= other for e in self._estimates())

    def __gt__(self, other: float) -> bool:
        return bool(self._estimates()) and all(e > other for e in self._estimates())

    def __ge__(self, other: float) -> bool:
        return bool(self._estimates()) and all(e >= other for e in self._estimates())


@dataclass(frozen=True, slots=True, repr=False)
class Spectrum(_Elements, Listed[Estimate]):
    """Lyapunov exponents, largest first."""

    exponents: tuple[Estimate, ...]

    def __post_init__(self) -> None:
        named = (replace(e, name=e.name or f"exponent {number}") for number, e in enumerate(self.exponents, 1))
        object.__setattr__(self, "exponents", tuple(named))

    def _items(self) -> Sequence[Estimate]:
        return self.exponents

    _estimates = _items

    def __repr__(self) -> str:
        shown = ", ".join(str(e.mean if not math.isfinite(e.mean) else round(e.mean, 4)) for e in self.exponents[:8])
        more = f", … {len(self) - 8} more" if len(self) > 8 else ""
        unit = f" {self.exponents[0].unit}" if self.exponents and self.exponents[0].unit else ""
        return f"Spectrum([{shown}{more}]{unit})"


@dataclass(frozen=True, slots=True, repr=False)
class Profile(_Elements, Mapping[str, Estimate]):
    """Estimates by name: along the chain by step, or by parameter.

    Comparing it with a number asks every element: ``profile > 1e-7`` holds when the smallest does.
    """

    estimates: Mapping[str, Estimate] = field(default_factory=dict)

    def _estimates(self) -> Sequence[Estimate]:
        return tuple(self.estimates.values())

    def __getitem__(self, name: str) -> Estimate:
        try:
            return self.estimates[name]
        except KeyError:
            near = difflib.get_close_matches(str(name), self.estimates, n=3)
            hint = f" Nearest: {', '.join(near)}." if near else ""
            msg = f"a profile must have the element asked for. {name!r} is none of {len(self)}.{hint}"
            raise KeyError(msg) from None

    def __contains__(self, name: object) -> bool:
        return name in self.estimates

    def __iter__(self) -> Iterator[str]:
        return iter(self.estimates)

    def __len__(self) -> int:
        return len(self.estimates)

    def matching(self, *patterns: str) -> Profile:
        """Return the elements whose names match one of the shell patterns, such as ``"*.weight"``."""
        return Profile({n: e for n, e in self.estimates.items() if any(fnmatchcase(n, p) for p in patterns)})

    def excluding(self, *patterns: str) -> Profile:
        """Return the elements whose names match none of the shell patterns.

        >>> profile = Profile(
        ...     {"key.weight": Estimate(1.0, 1.0, 1.0, (1.0,)), "key.bias": Estimate(0.0, 0.0, 0.0, (0.0,))}
        ... )
        >>> list(profile.excluding("*key.bias"))
        ['key.weight']
        """
        return Profile({n: e for n, e in self.estimates.items() if not any(fnmatchcase(n, p) for p in patterns)})

    def _extreme(self, choose: Callable[..., str]) -> str:
        if not self.estimates:
            msg = "a profile must have an element for `.min` and `.max`. This one is empty: nothing was measured."
            raise ValueError(msg)
        undefined = [name for name, e in self.estimates.items() if math.isnan(e.mean)]
        return undefined[0] if undefined else choose(self.estimates, key=lambda name: self.estimates[name].mean)

    @property
    def argmin(self) -> str:
        """Name of the smallest element; a NaN counts as the worst of both."""
        return self._extreme(min)

    @property
    def argmax(self) -> str:
        """Name of the largest element; a NaN counts as the worst of both."""
        return self._extreme(max)

    @property
    def min(self) -> Estimate:
        """Smallest element; it knows its name."""
        return self.estimates[self.argmin]

    @property
    def max(self) -> Estimate:
        """Largest element; it knows its name."""
        return self.estimates[self.argmax]

    def __repr__(self) -> str:
        if not self.estimates:
            return "Profile(empty)"
        return f"Profile({len(self)} elements, min {self.min!r}, max {self.max!r})"


@dataclass(frozen=True, slots=True)
class Steps(Listed[str]):
    """What was taken as the steps of the chain, in program order."""

    names: tuple[str, ...]
    """Module paths; ``cell[3]`` is the fourth call of ``cell``."""
    description: str
    """As in ``12 × GPT2Block``."""
    left_out: str = ""
    """Calls of the same kind that do not lie on the chain, such as a second tower."""

    def _items(self) -> Sequence[str]:
        return self.names

    def __str__(self) -> str:
        return self.description


@dataclass(frozen=True, slots=True)
class Names(Listed[str]):
    """Names of what is at fault, over all seeds; empty is good."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    """How many there were, per seed."""

    def _items(self) -> Sequence[str]:
        return self.names


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
    """Those that were drawn."""
    asked: tuple[int, ...]
    """Those that could have been; fewer are drawn where bounds are settled before."""
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
