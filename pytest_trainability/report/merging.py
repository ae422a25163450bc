"""One report of several: the shards of a session, or the jobs of a matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..records.session import source_order
from .document import ENVIRONMENT, summary_of, unique_id

__all__ = ["merged"]

_PLACE = ("python", "pytest", "torch", "numpy", "pytest_trainability", "platform")
"""Keys of the environment in which two runs of a test are different checks. Machines of one kind have other processors."""


def merged(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one report of several.

    A test that occurs twice in one environment, with the same versions, platform and device, has been run again: the later run
    replaces the earlier one, and its errors too. In different environments it has several checks, whose identifiers say in
    which one. The summary is counted again; the exit status is the worst one.

    Args:
        documents: Reports, one or more, in any order.

    Returns:
        A report. Its ``shards`` hold date and environment of each session, oldest first.
    """
    oldest_first = sorted(documents, key=lambda found: str(found["created"]))
    checks: list[tuple[str, Mapping[str, Any]]] = []
    errors: list[tuple[str, Mapping[str, Any]]] = []
    suggestions: list[tuple[str, Mapping[str, Any]]] = []
    shards = [shard for found in oldest_first for shard in _shards(found)]
    for found in oldest_first:
        place = _place(found["environment"])
        new, failed = _runs(place, found["checks"]), {(place, error["test"]) for error in found["errors"]}
        again = {run[:2] for run in new}
        checks = [c for c in checks if _run(*c) not in new and _run(*c)[:2] not in failed]
        errors = [(at, error) for at, error in errors if (at, error["test"]) not in again | failed]
        checks += [(place, check) for check in found["checks"]]
        errors += [(place, error) for error in found["errors"]]
        suggested = {(place, one["test"]) for one in found["suggestions"]}
        suggestions = [(at, one) for at, one in suggestions if (at, one["test"]) not in suggested]
        suggestions += [(place, one) for one in found["suggestions"]]
    checks.sort(key=lambda item: source_order(item[1]["file"], item[1]["line"], item[1]["test"]))
    errors.sort(key=lambda item: source_order(item[1]["file"], item[1]["line"], item[1]["test"]))
    others = {"errors": errors, "suggestions": suggestions}
    plain = {key: [dict(one) for _, one in found] for key, found in others.items()}
    return _written(oldest_first, shards, _identified(checks), **plain)


def _written(
    documents: Sequence[Mapping[str, Any]],
    shards: list[dict[str, Any]],
    checks: list[dict[str, Any]],
    errors: list[dict[str, Any]],
    suggestions: list[dict[str, Any]],
) -> dict[str, Any]:
    newest = documents[-1]
    summaries = [found["summary"] for found in documents]
    counted = sum(check["status"] not in {"expected failure", "nothing asserted"} for check in checks)
    return {
        **{key: newest[key] for key in ("schema", "version", "created", "tool")},
        "environment": _environment([found["environment"] for found in documents]),
        "summary": {
            **summary_of(checks, errors),
            "required": sum(summary["required"] for summary in summaries),
            "measured": counted,
            "exit_status": max(summary["exit_status"] for summary in summaries),
        },
        "checks": checks,
        "errors": errors,
        "suggestions": suggestions,
        "baselines": _baselines([found["baselines"] for found in documents if found["baselines"] is not None]),
        "shards": shards,
    }


def _shards(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the sessions of a report, which may be merged already."""
    if found["shards"]:
        return list(found["shards"])
    of_session = {key: found[key] for key in ("created", "tool", "environment")}
    return [{**of_session, "exit_status": found["summary"]["exit_status"]}]


def _place(environment: Mapping[str, Any]) -> str:
    return "\n".join(str(environment[key]) for key in _PLACE)


def _run(place: str, check: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return what identifies a run of a test: a later run with the same key replaces it."""
    return place, check["test"], check["conditions"]["device"], check["conditions"]["dtype"]


def _runs(place: str, checks: Iterable[Mapping[str, Any]]) -> set[tuple[str, str, str, str]]:
    return {_run(place, check) for check in checks}


def _identified(checks: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the checks with different identifiers: those of several runs name what differs between them."""
    runs: dict[tuple[str, str], set[tuple[str, str, str, str]]] = {}
    for place, check in checks:
        runs.setdefault((check["test"], check["name"]), set()).add(_run(place, check))
    used: set[str] = set()
    found = []
    for place, check in checks:
        others = runs[check["test"], check["name"]]
        where = _distinction(_run(place, check), others) if len(others) > 1 else ""
        name = f"{check['name']} ({where})" if check["name"] and where else check["name"] or where
        found.append({**check, "id": unique_id(check["test"], name, used)})
    return found


def _distinction(run: tuple[str, str, str, str], others: Iterable[tuple[str, str, str, str]]) -> str:
    """Return the parts of the environment and the conditions in which a run differs from some other run of its test."""

    def parts(one: tuple[str, str, str, str]) -> list[str]:
        place, _, device, dtype = one
        return [*(f"{key} {value}" for key, value in zip(_PLACE, place.split("\n"))), device, dtype]

    columns = zip(parts(run), *map(parts, others))
    return ", ".join(first for first, *rest in columns if any(other != first for other in rest))


def _environment(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the environment of all sessions: values that differ are joined by commas."""
    found: dict[str, Any] = {}
    for key in ENVIRONMENT:
        values = [environment[key] for environment in environments]
        if key == "devices":
            found[key] = sorted({device for devices in values for device in devices})
        else:
            found[key] = ", ".join(dict.fromkeys(value for value in values if value))
    return found


def _baselines(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the changes of all sessions to baselines, each once; None if no session has any."""
    if not summaries:
        return None
    found: dict[str, Any] = {}
    for key, value in summaries[0].items():
        if isinstance(value, list):
            items = [item for summary in summaries for item in summary[key]]
            found[key] = [item for index, item in enumerate(items) if item not in items[:index]]
        else:
            found[key] = any(summary[key] for summary in summaries)
    return found
