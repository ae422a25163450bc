"""The records of a session, rebuilt from its JSON report, so that every text can be printed again."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ..records.reports import BaselineSummary, CheckRecord
from ..records.session import CheckOutcome, ErrorRecord, SessionRecord
from .explain import reproduce_command

__all__ = ["session_of"]

_Record = TypeVar("_Record")


def session_of(found: Mapping[str, Any]) -> SessionRecord:
    """Return the session of a report. Numbers have the digits that the report has.

    Args:
        found: A report, as :func:`~pytest_trainability.report.document.read_document` returns it.
    """
    summary, baselines = found["summary"], found["baselines"]
    return SessionRecord(
        checks=tuple(CheckOutcome(_check(check), check["outcome"], check["failure"]) for check in found["checks"]),
        errors=tuple(_rebuilt(ErrorRecord, error) for error in found["errors"]),
        baselines=None if baselines is None else _rebuilt(BaselineSummary, baselines),
        required=summary["required"],
        measured=summary["measured"],
        environment=found["environment"],
        created=found["created"],
        exit_status=summary["exit_status"],
    )


def _check(check: Mapping[str, Any]) -> CheckRecord:
    """Return the record of a check, whose command has neither seeds nor device: both are added when it is printed."""
    gain, steps = check["log_gain"], check["steps"]
    of_chain = {
        "log_gain": gain["mean"],
        **{f"log_gain_{key}": gain[key] for key in ("low", "high", "finite", "spread")},
    }
    of_steps = {"steps": steps["text"], "step_names": steps["names"], "along": steps["along"]}
    record = _rebuilt(CheckRecord, {**check, **check["conditions"], **of_chain, **of_steps, "reproduce": ""})
    return replace(record, reproduce=check["reproduce"].removesuffix(reproduce_command(record)))


def _rebuilt(record: type[_Record], given: Mapping[str, Any]) -> _Record:
    hints = _hints(cast("type", record))
    return record(**{name: _typed(hint, given[name]) for name, hint in hints.items() if name in given})


@cache
def _hints(record: type) -> dict[str, Any]:
    return get_type_hints(record)


def _typed(hint: Any, value: Any) -> Any:
    """Return a value of a report as the type that a field of a record has. Words for numbers become numbers."""
    if value is None:
        return value
    if hint is float:
        return float(value)
    if is_dataclass(hint):
        return _rebuilt(hint, value)  # type: ignore[arg-type]
    origin, parts = get_origin(hint), get_args(hint)
    if origin in {Union, types.UnionType}:
        return _typed(next(part for part in parts if part is not type(None)), value)
    if origin is tuple:
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_typed(kind, item) for kind, item in zip(kinds, value))
    return value
