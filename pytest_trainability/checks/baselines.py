"""Baselines: the entries that are stored, and their comparison with a new measurement.

A number has changed if it has moved by more than a tolerance and by more than chance allows. There are three cases:

- Same weights, same kind of device, same platform and version of torch: unchanged code repeats its numbers up to arithmetic, and
  the tolerance alone decides.
- Same weights only: dropout masks may differ. Seeds are compared in pairs.
- Different weights: two independent samples are compared.

Infinity and NaN are compared first. A value that is NaN or +inf is a fault of the model: a single seed that has one where no seed
had one is a change, however the seeds are compared and however many there are, and so is the reverse. Two kinds of values are
outcomes instead, which other weights may bring about in code that has not changed:

- -inf, the logarithm of zero: a gradient that a narrow ReLU layer stops on one draw in twenty, or an exponent beyond a numerical
  rank that differs from draw to draw. The growth rates of the steps before a step that stops the gradient are NaN.
- NaN and +inf of a derived quantity on a seed whose run is finite everywhere: the condition number of a matrix that is singular
  on some draws, or a noise scale whose estimate is not positive.

On the same weights another outcome is a change; of a derived quantity on two seeds or more, because round-off may carry a single
seed across a threshold. On other weights chance decides, so that a baseline in which some seeds are -inf stays stable. Which runs
are finite is read from the measures that every baseline holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal, TypeAlias

from ..records.gradient_classes import without_names
from ..records.names import expanded
from ..records.reports import BaselineChange
from ..records.tensors import Projections
from ..records.text import format_finite
from .class_changes import CLASSES, class_changes
from .copy_changes import copy_changes
from .initial_values import IN_ROWS, InitialRow, initial_changes
from .module_changes import MODULES, module_changes
from .operation_changes import is_beyond_chance, operation_changes
from .setting_changes import setting_changes
from .shifts import Sample, ShiftTest
from .table_changes import table_changes

__all__ = [
    "CUSTOM_FUNCTIONS",
    "CUT_OFF",
    "OUTPUT",
    "BaselineValues",
    "Entry",
    "NameSet",
    "Series",
    "compare",
    "environment_key",
    "find_entry",
    "has_comparable_constants",
    "other_constants",
]

FALSE_ALARMS = 1e-4
"""Probability that unchanged code is reported as changed, where chance plays a part."""
MAX_ROUND_OFF = 1e-3
"""Relative round-off error, amplified by the network, from which numbers of unchanged code no longer repeat."""
ROUND_OFF_UNITS = 10
"""Elements of a profile below this many units of round-off of the largest element of both sides have not moved. A gradient that
is zero except for round-off, such as that of a bias that a softmax cancels, differs between any two machines."""
MIN_TOLERANCE = 1e-4
"""Smallest tolerance. Files hold four decimals, or five significant digits of log-scale measures."""

FIRST_STATE = "input"
"""Element of a profile by step that stands for the first state."""
OUTPUT = "output"
"""Name of the shapes of the output, among the conditions and in reports. They are not in an older baseline."""
CUSTOM_FUNCTIONS = "custom functions"
"""Name of the condition that lists custom autograd functions."""
CUT_OFF = "without gradient to the inputs"
"""Name of the condition that lists the modules from which no gradient gets to the inputs."""
PATH = "gradient path"
"""Name of the comparison of the modules that the gradient passes."""
FRAME = "frame"
"""Name of the division into trajectories, among the conditions and in reports."""
_ARITHMETIC = ("platform", "threads", "torch")
"""Keys of the environment that change only arithmetic and dropout masks."""
_REPEATABLE = ("device", "dtype", "platform", "torch")
"""Keys of the environment that must be equal for equal dropout masks."""
_OF_EVERY_RUN = (
    *("log_gain", "lyapunov_max", "growth_rate", "loss_log_gain", "forward_log_gain"),
    *("activation_rms", "gradient_norm", "initial_loss", "excess_loss"),
)
"""Measures that are finite or -inf wherever a run is finite. See the top of this file."""
_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


@dataclass(frozen=True, slots=True)
class NameSet:
    """Names that a measure found on every seed. A name that random dropping hides on some seed is not included."""

    names: tuple[str, ...]

    def changes_from(self, old: NameSet, *, measure: str) -> Iterator[BaselineChange]:
        """Yield the names that have vanished and the names that are new."""
        before, after = set(old.names), set(self.names)
        return _name_changes(measure, before - after, after - before)


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers of one measure, one per element and seed."""

    unit: str
    scale: Literal["linear", "log"]
    values: Mapping[str, tuple[float | None, ...]]
    """Values by element, one per seed; ``""`` is the element of a scalar. None if the model of a seed lacks the element."""

    def changes_from(
        self,
        old: Series,
        *,
        measure: str,
        test: ShiftTest,
        floors: tuple[float, float],
        faulty: tuple[Sequence[bool], Sequence[bool]],
        in_order: bool,
    ) -> Iterator[BaselineChange]:
        """Yield the elements that have vanished or are new, then the elements that have moved, largest shift first.

        An element that is round-off on both sides has not moved, however large the other elements have become. One that is not
        counts even if it is small next to an element that has exploded.

        Args:
            old: The same measure in the baseline.
            measure: Name of the measure.
            test: Test for one element, with the error probability of the whole measure.
            floors: Levels of round-off of a log-scale measure, of the baseline and now.
            faulty: Whether NaN and +inf are faults on each seed, of the baseline and now. See the top of this file.
            in_order: Whether elements are in the order of the forward pass: the first one that has moved comes first, as the
                others may be its consequences.
        """
        fresh = self.on_every_seed() | {e for e, row in self.values.items() if any(_faults(row, faulty[1]))}
        yield from _name_changes(measure, old.on_every_seed() - set(self.values), fresh - set(old.values))
        shared = [element for element in self.values if element in old.values]
        test = test.for_each_of(len(shared))
        floor = min(floors)

        def change_of(element: str) -> BaselineChange | None:
            rows = old.values[element], self.values[element]
            if old.scale == "log" and all(_is_round_off(*of, test.tolerance) for of in zip(rows, floors)):
                return None
            samples = (
                Sample([_on_scale(value, old.scale, floor) for value in row], _faults(row, seeds))
                for row, seeds in zip(rows, faulty)
            )
            shift = test.shift(*samples)
            return None if shift is None else self._moved(measure, element, rows, old.scale, shift, test.tolerance)

        moved = [replace(c, considered=len(shared)) for element in shared if (c := change_of(element)) is not None]
        first, others = (moved[:1], moved[1:]) if in_order else ([], moved)
        yield from (*first, *sorted(others, key=lambda change: -_size(change)))

    def _moved(
        self,
        measure: str,
        element: str,
        rows: tuple[Sequence[float | None], Sequence[float | None]],
        scale: str,
        shift: float,
        tolerance: float,
    ) -> BaselineChange:
        """Return the change of one element. A finite shift is that of the finite seeds, and so are the means shown with it."""
        old_finite, new_finite = map(format_finite, rows)
        is_shown = math.isfinite if math.isfinite(shift) else lambda value: True
        old, new = (_mean([v for v in row if v is not None and is_shown(v)], scale) for row in rows)
        if scale == "log" and math.isfinite(shift) and 0 < old < math.inf and 0 < new < math.inf:
            # The level of round-off decides whether an element has moved, and not how far.
            shift = max(shift, math.log(new / old), key=abs)
        return BaselineChange(
            measure,
            "moved",
            element=element,
            old=old,
            new=new,
            shift=shift,
            tolerance=tolerance,
            unit=self.unit,
            scale=scale,
            old_finite=old_finite,
            new_finite=new_finite,
        )

    def on_every_seed(self) -> set[str]:
        """Return the elements that every seed has. Others may be missing by chance, such as steps that are randomly dropped."""
        return {element for element, values in self.values.items() if None not in values}

    def round_off(self, dtype: str) -> float:
        """Return the level of round-off of a profile on a logarithmic scale; 0 for other values.

        Args:
            dtype: Floating type of the measurement.
        """
        if self.scale != "log" or len(self.values) < 2:
            return 0.0
        known = (v for v in chain.from_iterable(self.values.values()) if v is not None and math.isfinite(v))
        return ROUND_OFF_UNITS * _EPSILON.get(dtype, 0.0) * max(known, default=0)


BaselineValues: TypeAlias = "Series | NameSet"
"""One measure in a baseline."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Measurement of one model in one test, in one environment."""

    environment: Mapping[str, str]
    """``device`` (its kind), ``dtype``, ``platform``, ``torch`` (its version), ``threads``, and keys that plugins add."""
    conditions: Mapping[str, str]
    """``chain``, ``frame``, ``mode``, and facts about the code, as information for readers. ``chain`` is compared along time,
    and ``output``, the shapes of the output, wherever both sides have it."""
    seeds: tuple[int, ...]
    draws: tuple[str, ...]
    """Digests per seed: of the initial weights and inputs, then, after a space, of the random numbers that the run used."""
    measures: Mapping[str, BaselineValues]
    initial: Mapping[str, InitialRow] = field(default_factory=dict)
    """Initial values of parameters and buffers, by pattern of names; empty in a baseline of schema 1."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Classes of the modules, by pattern of names; empty in a baseline of schema 1."""
    operations: Mapping[str, str] = field(default_factory=dict)
    """Operations that the signal passes, by pattern of the names of steps; empty in a baseline of schema 1."""
    settings: Mapping[str, str] | None = None
    """Calls with the constants that they are given, by pattern of the names of modules. None where they are not known: in an
    older baseline, and in a new entry until they are read. They explain a change, and are none."""
    tables: Mapping[str, Projections] | None = None
    """Projections of the tensors that are the same on all seeds, by pattern of names. None in an older baseline, and for a single
    seed."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Tensors that equal earlier ones entry by entry, by pattern of names; empty in an older baseline, and without copies."""

    @property
    def key(self) -> str:
        """Key of the environment in a file."""
        return environment_key(self.environment)


def environment_key(environment: Mapping[str, str]) -> str:
    """Return the key of an environment, such as ``cpu float32``.

    Platform, version of torch and number of threads are not part of it: they change only arithmetic and dropout masks.
    """
    first = ("device", "dtype")
    rest = sorted(set(environment) - {*first, *_ARITHMETIC})
    return " ".join([*(environment[name] for name in first), *(f"{name}={environment[name]}" for name in rest)])


def find_entry(entries: Mapping[str, Entry], new: Entry) -> Entry | None:
    """Return the baseline of a new entry.

    Args:
        entries: Entries of the same measurement by the key of their environment.
        new: The new measurement.

    Returns:
        The entry of the same environment. If there is none, the entry of another kind of device: the same weights were drawn, and
        the numbers agree up to arithmetic. None if there is no such entry either.
    """
    if new.key in entries:
        return entries[new.key]
    device = {"device": new.environment["device"]}
    elsewhere = (e for _, e in sorted(entries.items()) if environment_key({**e.environment, **device}) == new.key)
    return next(elsewhere, None)


def compare(old: Entry, new: Entry, tolerances: Mapping[str, float]) -> tuple[BaselineChange, ...]:
    """Return the changes of a measurement since its baseline.

    Args:
        old: The baseline.
        new: The new measurement.
        tolerances: Largest tolerated shift by measure, in the unit of the measure; in nats for the log of a ratio of a
            log-scale measure. 0 for measures that are not named.

    Returns:
        Changes of initial values, of copies, of tables, of modules, of operations and of constants; then changes of measures in
        the order in which ``new`` names them: shifts, and measures or elements that have vanished or are new. The largest shift
        of a profile is first; of a profile by step the first step that has moved is, and the largest of the others follows.
        Empty if nothing has changed. Operations that chance or another environment may have changed are listed next to other
        changes only, and so are constants and the frame.

    Source: Student, Biometrika 6, 1 (1908), for pairs that need not repeat; Welch, Biometrika 34, 28 (1947), otherwise,
    with the degrees of freedom capped by those of two samples of the smaller size. The error probability is divided among
    measures and, within a measure, among elements (Bonferroni).
    """
    pairs = _pairs(old, new)
    faulty = {name: (_faulty_seeds(name, old), _faulty_seeds(name, new)) for name in {*old.measures, *new.measures}}
    repeatable = all(old.draws[i] == new.draws[j] for i, j in pairs) and _is_repeatable(old, new)
    names = list(dict.fromkeys([*new.measures, *old.measures]))
    comparisons = len(names) + bool(old.initial and new.initial)
    error = FALSE_ALARMS / max(comparisons, 1)
    of_model = list(_model_changes(old, new, error, max(tolerances.get(IN_ROWS[0], 0.0), MIN_TOLERANCE)))
    operations = list(operation_changes(old.operations, new.operations, same_environment=_is_same_place(old, new)))
    changes = list(_chain_changes(old, new, names))
    changes += _class_changes(old, new)
    for name in names:
        tolerance = max(tolerances.get(name, 0.0), MIN_TOLERANCE)
        test = ShiftTest(pairs, repeatable, tolerance, error, derived=name not in _OF_EVERY_RUN)
        changes += _changes(name, old, new, test, faulty[name])
    shapes = list(_output_changes(old, new))
    of_code = (operations and _is_repeated_code(old, new, pairs)) or (shapes and pairs and _is_same_place(old, new))
    if not (of_model or changes or of_code):
        return ()
    path = _path_changes(new, changes)
    settings = _constants(old, new, of_model)
    return (*of_model, *shapes, *operations, *settings, *path, *_frames(old, new, changes), *changes)


def _output_changes(old: Entry, new: Entry) -> Iterator[BaselineChange]:
    """Yield another shape of the output."""
    before, after = (entry.conditions.get(OUTPUT, "") for entry in (old, new))
    if before and after and before != after:
        yield BaselineChange(OUTPUT, "moved", old_text=before, new_text=after)


def _path_changes(new: Entry, changes: Iterable[BaselineChange]) -> Iterator[BaselineChange]:
    """Yield the steps of the baseline from which no gradient gets to the inputs any longer."""
    gone = [name for c in changes if (c.measure, c.kind) == ("growth_rate", "vanished") for name in c.elements]
    lost = [name for name in new.conditions.get(CUT_OFF, "").split(", ") if name in gone]
    if lost:
        yield BaselineChange(PATH, "vanished", elements=tuple(lost))


def other_constants(old: Entry, new: Entry) -> tuple[BaselineChange, ...]:
    """Return the constants in the code that differ from those of a baseline of the same version of torch.

    They explain changes, and are none by themselves: the code may be written in other words.

    Args:
        old: The baseline.
        new: The new measurement.
    """
    return tuple(_constants(old, new, ()))


def has_comparable_constants(old: Entry, new: Entry) -> bool:
    """Return whether a baseline has constants that those of a new measurement can be compared with."""
    return old.settings is not None and _is_same_version(old, new)


def _constants(old: Entry, new: Entry, of_model: Sequence[BaselineChange]) -> Iterator[BaselineChange]:
    if old.settings is not None and new.settings is not None and has_comparable_constants(old, new):
        of_other_class = {n for c in of_model if c.measure == MODULES for p in c.elements for n in expanded(p)}
        names = [{n or kind for p, kind in entry.modules.items() for n in expanded(p)} for entry in (old, new)]
        yield from setting_changes(old.settings, new.settings, but=of_other_class, shared=names[0] & names[1])


def _frames(old: Entry, new: Entry, changes: Iterable[BaselineChange]) -> Iterator[BaselineChange]:
    """Yield another division into trajectories, unless gradients that are not finite have decided on it."""
    before, after = (entry.conditions.get(FRAME, "") for entry in (old, new))
    all_finite = all(
        math.isfinite(c.old) and math.isfinite(c.new) for c in changes if c.kind == "moved" and not c.old_text
    )
    if before and after and before != after and all_finite:
        yield BaselineChange(FRAME, "moved", old_text=before, new_text=after)


def _model_changes(old: Entry, new: Entry, error: float, tolerance: float) -> Iterator[BaselineChange]:
    """Compare initial values, copies, tables and modules. An older baseline has none, which is no change."""
    of_values: list[BaselineChange] = []
    if old.initial and new.initial:
        drawn = [[draw.partition(" ")[0] for draw in entry.draws] for entry in (old, new)]
        repeatable = old.seeds == new.seeds and drawn[0] == drawn[1]
        of_values += initial_changes(
            old.initial,
            new.initial,
            repeatable=repeatable,
            error=error,
            tolerance=tolerance,
            # Both are recorded since the same version.
            knows_parts=old.settings is not None,
        )
        yield from of_values
        names = [[name for pattern in rows for name in expanded(pattern)] for rows in (old.initial, new.initial)]
        yield from copy_changes(old.copies, new.copies, known=(names[0], names[1]))
    if old.tables is not None and new.tables is not None:
        known = {name for change in of_values for pattern in change.elements for name in expanded(pattern)}
        drawn_rows = old.initial, new.initial
        yield from table_changes(old.tables, new.tables, drawn=drawn_rows, but=known, tolerance=tolerance)
    if old.modules and new.modules:
        yield from module_changes(old.modules, new.modules)


def _is_repeated_code(old: Entry, new: Entry, pairs: Sequence[tuple[int, int]]) -> bool:
    """Return whether unchanged code repeats its operations: in one environment, on the same weights or beyond chance."""
    if not _is_same_place(old, new):
        return False
    seeds = len(old.seeds), len(new.seeds)
    return bool(pairs) or is_beyond_chance(old.operations, new.operations, seeds, FALSE_ALARMS)


def _chain_changes(old: Entry, new: Entry, names: Sequence[str]) -> Iterable[BaselineChange]:
    """Compare the descriptions of the chains, unless ``growth_rate`` names the steps."""
    before, after = (entry.conditions.get("chain", "") for entry in (old, new))
    # Nothing else reports that a chain along time has become longer or shorter.
    return _name_changes("chain", [before], [after]) if "growth_rate" not in names and before != after else ()


def _class_changes(old: Entry, new: Entry) -> Iterable[BaselineChange]:
    """Compare the classes of gradients. An older baseline has none, which is no change."""
    before, after = old.measures.get(CLASSES), new.measures.get(CLASSES)
    if not isinstance(before, NameSet) or not isinstance(after, NameSet):
        return ()
    norms = [entry.measures.get("gradient_norm") for entry in (old, new)]
    used = [set(norm.values) if isinstance(norm, Series) else set() for norm in norms]
    unused = [entry.measures.get("unused_parameters") for entry in (old, new)]
    known = [u | (set(n.names) if isinstance(n, NameSet) else set()) for u, n in zip(used, unused)]
    known = [k | set(without_names(lines.names)) for k, lines in zip(known, (before, after))]
    return class_changes(
        before.names,
        after.names,
        gone=known[0] ^ known[1] if all(used) else (),
        repeatable=_is_repeatable(old, new),
        considered=len(known[0] | known[1]),
    )


def _changes(
    measure: str, old: Entry, new: Entry, test: ShiftTest, faulty: tuple[Sequence[bool], Sequence[bool]]
) -> Iterable[BaselineChange]:
    before, after = old.measures.get(measure), new.measures.get(measure)
    if measure == CLASSES:
        return ()
    if isinstance(before, NameSet) and isinstance(after, NameSet):
        return after.changes_from(before, measure=measure)
    if isinstance(before, Series) and isinstance(after, Series):
        floors = before.round_off(old.environment["dtype"]), after.round_off(new.environment["dtype"])
        in_order = set(after.values) <= {FIRST_STATE, *_steps(new)}
        return after.changes_from(
            before,
            measure=measure,
            test=test,
            floors=floors,
            faulty=faulty,
            in_order=in_order and len(after.values) > 1,
        )
    vanished = [BaselineChange(measure, "vanished")] if before is not None else []
    return [*vanished, *([BaselineChange(measure, "new")] if after is not None else [])]


def _steps(entry: Entry) -> Iterable[str]:
    """Return the names of the steps of the chain; none if they were not recorded."""
    rates = entry.measures.get("growth_rate")
    return rates.values if isinstance(rates, Series) else ()


def _faulty_seeds(measure: str, entry: Entry) -> list[bool]:
    """Return for each seed whether NaN and +inf of a measure are faults there. See the top of this file."""
    if measure == "growth_rate":
        return [-math.inf not in values for values in _by_seed(measure, entry)]
    if measure in _OF_EVERY_RUN or not any(name in entry.measures for name in _OF_EVERY_RUN):
        return [True] * len(entry.seeds)
    # A derived quantity: only a run that is not finite itself is at fault.
    found = [False] * len(entry.seeds)
    for name in entry.measures.keys() & set(_OF_EVERY_RUN):
        faults = zip(_by_seed(name, entry), _faulty_seeds(name, entry))
        found = [
            known or any(_faults(values, [is_faulty] * len(values)))
            for known, (values, is_faulty) in zip(found, faults)
        ]
    return found


def _by_seed(measure: str, entry: Entry) -> list[list[float | None]]:
    """Return the values of all elements of a measure, for each seed."""
    series = entry.measures.get(measure)
    rows = series.values.values() if isinstance(series, Series) else ()
    return [[row[index] for row in rows] for index in range(len(entry.seeds))]


def _faults(row: Sequence[float | None], faulty: Sequence[bool]) -> list[bool]:
    """Return for each value whether it is NaN or +inf on a seed where that is a fault."""
    return [
        is_faulty and value is not None and (math.isnan(value) or value == math.inf)
        for value, is_faulty in zip(row, faulty)
    ]


def _pairs(old: Entry, new: Entry) -> list[tuple[int, int]]:
    """Return the positions of the common seeds in both entries. Empty if any of them drew different weights."""
    common = [(old.seeds.index(seed), index) for index, seed in enumerate(new.seeds) if seed in old.seeds]
    is_subset = len(common) == min(len(old.seeds), len(new.seeds))
    same_weights = all(old.draws[i].split(" ")[0] == new.draws[j].split(" ")[0] for i, j in common)
    return common if is_subset and same_weights else []


def _is_repeatable(old: Entry, new: Entry) -> bool:
    """Return whether unchanged code repeats its numbers on the same draws: dropout masks are equal and round-off stays small.

    A perturbation of the first state grows by the log gain at most, like the gradient. Chaos over hundreds of steps makes
    round-off as large as the numbers.
    """
    if not _is_same_place(old, new):
        return False
    gains = [entry.measures.get("log_gain") for entry in (old, new)]
    values = [v for gain in gains if isinstance(gain, Series) for row in gain.values.values() for v in row]
    largest = max((v for v in values if v is not None and v != -math.inf), default=0.0)
    epsilon = _EPSILON.get(old.environment["dtype"], 1.0)
    return largest < math.log(MAX_ROUND_OFF / epsilon)


def _is_same_place(old: Entry, new: Entry) -> bool:
    """Return whether device, data type, platform and version of torch are equal."""
    return all(old.environment.get(name) == new.environment.get(name) for name in _REPEATABLE)


def _is_same_version(old: Entry, new: Entry) -> bool:
    """Return whether the code of PyTorch is the same."""
    return old.environment.get("torch") == new.environment.get("torch")


def _name_changes(measure: str, vanished: Iterable[str], new: Iterable[str]) -> Iterator[BaselineChange]:
    if vanished:
        yield BaselineChange(measure, "vanished", elements=tuple(sorted(vanished)))
    if new:
        yield BaselineChange(measure, "new", elements=tuple(sorted(new)))


def _size(change: BaselineChange) -> float:
    """Return the size of a shift, infinite if it is NaN."""
    size = abs(change.shift)
    return math.inf if math.isnan(size) else size


def _is_round_off(row: Sequence[float | None], floor: float, tolerance: float) -> bool:
    """Return whether the values of an element do not exceed the level of round-off by more than the tolerance, on average."""
    known = [value for value in row if value is not None]
    if not known or not floor or not all(map(math.isfinite, known)):
        return False
    above = [math.log(max(value, floor) / floor) for value in known]
    return math.fsum(above) <= tolerance * len(above)


def _on_scale(value: float | None, scale: str, floor: float) -> float | None:
    """Return a value, or the logarithm of a value of a log-scale measure; values below the floor are raised to it."""
    if value is None or scale != "log":
        return value
    value = max(value, floor) if value == value else value
    return math.log(value) if value > 0 else -math.inf if value == 0 else math.nan


def _mean(values: Iterable[float | None], scale: str) -> float:
    """Return the mean of the known values, the geometric mean for a log-scale measure; NaN if no value is known."""
    known = [value for value in (_on_scale(v, scale, 0.0) for v in values) if value is not None]
    mean = sum(known) / len(known) if known else math.nan
    if scale != "log":
        return mean
    return math.exp(min(mean, 709.0)) if mean < math.inf else mean
