"""The comparison of a measurement with its baseline.

A number has changed if it has moved by more than a tolerance and by more than chance allows. There are three cases:

- Same weights, same kind of device, same platform and version of torch: unchanged code repeats its numbers up to arithmetic, and
  the tolerance alone decides.
- Same weights only: dropout masks may differ. Seeds are compared in pairs.
- Different weights: two independent samples are compared.

Infinity and NaN are compared first. See Note [Faults and outcomes].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..records.gradient_classes import without_names
from ..records.names import expanded
from ..records.reports import BaselineChange
from .baseline_entries import CUT_OFF, OUTPUT, Entry
from .baseline_values import EPSILON, NameSet, Series, are_faults, name_changes
from .class_changes import CLASSES, class_changes
from .copy_changes import copy_changes
from .initial_values import IN_ROWS, initial_changes
from .module_changes import MODULES, module_changes
from .operation_changes import is_beyond_chance, operation_changes
from .setting_changes import setting_changes
from .shifts import ShiftTest
from .table_changes import table_changes

__all__ = ["compare", "has_comparable_constants", "other_constants"]

# Note [Faults and outcomes]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~
# A value that is NaN or +inf is a fault of the model: a single seed that has one where no seed had one is a change, however the
# seeds are compared and however many there are, and so is the reverse. Two kinds of values are outcomes instead, which other
# weights may bring about in code that has not changed:
#
# - -inf, the logarithm of zero: a gradient that a narrow ReLU layer stops on one draw in twenty, or an exponent beyond a
#   numerical rank that differs from draw to draw. The growth rates of the steps before a step that stops the gradient are NaN.
# - NaN and +inf of a derived quantity on a seed whose run is finite everywhere: the condition number of a matrix that is singular
#   on some draws, or a noise scale whose estimate is not positive.
#
# On the same weights another outcome is a change; of a derived quantity on two seeds or more, because round-off may carry one
# seed across a threshold. On other weights chance decides, so that a baseline in which some seeds are -inf stays stable. Which
# runs are finite is read from the measures that every baseline holds.

FALSE_ALARMS = 1e-4
"""Probability that unchanged code is reported as changed, where chance plays a part."""
MAX_ROUND_OFF = 1e-3
"""Relative round-off error, amplified by the network, from which numbers of unchanged code no longer repeat."""
MIN_TOLERANCE = 1e-4
"""Smallest tolerance. Files hold four decimals, or five significant digits of log-scale measures."""

FIRST_STATE = "input"
"""Element of a profile by step that stands for the first state."""
PATH = "gradient path"
"""Name of the comparison of the modules that the gradient passes."""
FRAME = "frame"
"""Name of the division into trajectories, among the conditions and in reports."""
_REPEATABLE = ("device", "dtype", "platform", "torch")
"""Keys of the environment that must be equal for equal dropout masks."""
_OF_EVERY_RUN = (
    *("log_gain", "lyapunov_max", "growth_rate", "loss_log_gain", "forward_log_gain"),
    *("activation_rms", "gradient_norm", "initial_loss", "excess_loss"),
)
"""Measures that are finite or -inf wherever a run is finite. See Note [Faults and outcomes]."""


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
    return name_changes("chain", [before], [after]) if "growth_rate" not in names and before != after else ()


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
    """Return for each seed whether NaN and +inf of a measure are faults there. See Note [Faults and outcomes]."""
    if measure == "growth_rate":
        return [-math.inf not in values for values in _by_seed(measure, entry)]
    if measure in _OF_EVERY_RUN or not any(name in entry.measures for name in _OF_EVERY_RUN):
        return [True] * len(entry.seeds)
    # A derived quantity: only a run that is not finite itself is at fault.
    found = [False] * len(entry.seeds)
    for name in entry.measures.keys() & set(_OF_EVERY_RUN):
        faults = zip(_by_seed(name, entry), _faulty_seeds(name, entry))
        found = [
            known or any(are_faults(values, [is_faulty] * len(values)))
            for known, (values, is_faulty) in zip(found, faults)
        ]
    return found


def _by_seed(measure: str, entry: Entry) -> list[list[float | None]]:
    """Return the values of all elements of a measure, for each seed."""
    series = entry.measures.get(measure)
    rows = series.values.values() if isinstance(series, Series) else ()
    return [[row[index] for row in rows] for index in range(len(entry.seeds))]


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
    epsilon = EPSILON.get(old.environment["dtype"], 1.0)
    return largest < math.log(MAX_ROUND_OFF / epsilon)


def _is_same_place(old: Entry, new: Entry) -> bool:
    """Return whether device, data type, platform and version of torch are equal."""
    return all(old.environment.get(name) == new.environment.get(name) for name in _REPEATABLE)


def _is_same_version(old: Entry, new: Entry) -> bool:
    """Return whether the code of PyTorch is the same."""
    return old.environment.get("torch") == new.environment.get("torch")
