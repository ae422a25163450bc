"""What differs between two sessions, such as those of a branch and of the branch that it will be merged into."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..records.reports import BaselineChange, CheckRecord
from ..records.session import CheckOutcome, ErrorRecord, SessionChange, SessionRecord
from ..records.values import TensorRecord, ValueRecord
from .baseline_entries import Entry
from .baseline_values import BaselineValues, NameSet, Series
from .baselines import compare
from .initial_values import InitialRow

__all__ = ["session_changes"]


def session_changes(
    old: SessionRecord, new: SessionRecord, tolerances: Mapping[str, float]
) -> tuple[SessionChange, ...]:
    """Return the checks that differ between two sessions, in the order of the new one; then those that are gone.

    A check differs if its status does, or its numbers by the rules of the comparison with a baseline. The weights were the same
    if the initial values of every tensor were.

    Args:
        old: The session of the target branch.
        new: The session of this branch.
        tolerances: Largest tolerated shift by measure, as in :func:`~pytest_trainability.checks.baselines.compare`.
    """
    before, after = _by_name(old), _by_name(new)
    found = [_change(key, before.get(key), now, old, new, tolerances) for key, now in after.items()]
    gone = [SessionChange(key[0], key[1], _status(was), "") for key, was in before.items() if key not in after]
    return (*(change for change in found if change is not None), *gone)


def _by_name(session: SessionRecord) -> dict[tuple[str, str, int], CheckOutcome | ErrorRecord]:
    """Return checks by test, name and number among those of the same name. An error stands for the first measurement."""
    found: dict[tuple[str, str, int], CheckOutcome | ErrorRecord] = {}
    for check in session.checks:
        number = 0
        while (check.record.test, check.record.name, number) in found:
            number += 1
        found[check.record.test, check.record.name, number] = check
    for error in session.errors:
        number = 0
        while (error.test, "", number) in found:
            number += 1
        found[error.test, "", number] = error
    return found


def _status(item: CheckOutcome | ErrorRecord | None) -> str:
    if item is None:
        return ""
    return item.status


def _change(
    key: tuple[str, str, int],
    was: CheckOutcome | ErrorRecord | None,
    now: CheckOutcome | ErrorRecord,
    old: SessionRecord,
    new: SessionRecord,
    tolerances: Mapping[str, float],
) -> SessionChange | None:
    """Return the difference of one check; None if there is none."""
    changes: tuple[BaselineChange, ...] = ()
    if isinstance(was, CheckOutcome) and isinstance(now, CheckOutcome):
        same = _have_same_weights(was.record, now.record)
        entries = _entry(was.record, old, "weights"), _entry(now.record, new, "weights" if same else "other weights")
        # A measure that only one session has read says nothing about the model.
        changes = tuple(c for c in compare(*entries, tolerances) if c.kind == "moved" or c.elements)
    if not changes and _status(was) == _status(now):
        return None
    check, error = (now, None) if isinstance(now, CheckOutcome) else (None, now)
    return SessionChange(key[0], key[1], _status(was), _status(now), changes, check, error)


def _have_same_weights(old: CheckRecord, new: CheckRecord) -> bool:
    """Return whether the same numbers were drawn, as far as the initial values show it."""
    return old.seeds == new.seeds and bool(old.tensors) and repr(old.tensors) == repr(new.tensors)


def _entry(record: CheckRecord, session: SessionRecord, draw: str) -> Entry:
    """Return a check as a baseline would store it.

    Args:
        record: The check.
        session: Its session.
        draw: Stands for the numbers that were drawn.
    """
    known = session.environment
    environment = {
        "device": record.device.partition(":")[0],
        "dtype": record.dtype,
        "platform": str(known.get("platform", "")),
        "torch": str(known.get("torch", "")).partition("+")[0],
        "threads": str(known.get("threads", "")),
    }
    seeds = len(record.seeds)
    return Entry(
        environment=environment,
        conditions={"chain": record.steps, "frame": record.frame, "mode": record.mode},
        seeds=record.seeds,
        draws=(draw,) * seeds,
        measures={value.measure: _values(value, seeds) for value in record.values},
        initial={tensor.name: _row(tensor, seeds) for tensor in record.tensors},
        modules={module.name: module.kind for module in record.modules},
    )


def _values(value: ValueRecord, seeds: int) -> BaselineValues:
    if value.kind == "names":
        return NameSet(value.names)
    return Series(value.unit, value.scale, {element.name: _padded(element.values, seeds) for element in value.elements})


def _padded(values: tuple[float, ...], seeds: int) -> tuple[float | None, ...]:
    return (*values[:seeds], *[None] * (seeds - len(values)))


def _row(tensor: TensorRecord, seeds: int) -> InitialRow:
    """Return initial values with the chance of independent normal entries. A constant has none."""
    entries = math.prod(tensor.shape)
    is_constant = tensor.rms == abs(tensor.mean)
    chance = 0.0 if is_constant else 1 / math.sqrt(2 * entries) if entries > 1 else math.inf
    return InitialRow(tensor.shape, tensor.rms, tensor.mean, chance, math.nan, tensor.count * seeds)
