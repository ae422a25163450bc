"""The JSON report of a session: writing it, and reading it back as data that nothing executes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ReportError
from ..records.names import MOST_NAMES, number_of_names
from ..records.reports import BaselineRecord, BaselineSummary, plain
from ..records.session import NOT_MEASURED, CheckOutcome, SessionRecord, counts
from ..records.suggestions import TestSuggestions
from .explain import bound_text, explain_lines, reproduce_command
from .schema import Check, InvalidError, validator
from .suggestions import suggested_bounds

__all__ = ["SCHEMA", "VERSION", "check_in_full", "document", "read_document", "rendered", "schema", "summary_of"]

VERSION = 1
"""Version of the format that is written and read."""
SCHEMA = f"urn:pytest-trainability:report:{VERSION}"
"""Identifier of the JSON Schema, and value of the key ``schema``."""
DIGITS = 6
"""Significant digits of numbers. Single precision has seven, and other numbers of threads change the last one."""
WIDTH = 100
"""Columns of the explanation of a failure."""
LARGEST_FILE = 512 * 2**20
"""Largest size in bytes of a file that is read. Five hundred models of two hundred layers need a tenth of it."""
LARGEST_NUMBER_OF_NAMES = 10 * MOST_NAMES
"""Largest number of names that all patterns of a file may stand for. Five hundred models of two hundred layers have a million."""
LARGEST_WHOLE = 1e15
"""Size up to which numbers without a fraction are written without a point."""
LONGEST_NUMBER = 25
"""Largest number of digits of a whole number that is read. Seeds have up to twenty."""
ENVIRONMENT = (
    *("python", "pytest", "torch", "numpy", "pytest_trainability", "platform", "processor", "devices"),
    *("command", "threads"),
)
"""Keys of the environment, in their order."""


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the report."""
    text = files(__package__).joinpath(f"report-{VERSION}.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


# Writing --------------------------------------------------------------------------------------------------------------


def document(session: SessionRecord) -> dict[str, Any]:
    """Return the report of a session as dictionaries, lists, strings and finite numbers, in a fixed order of keys.

    Args:
        session: The session.

    Returns:
        Data that follows :func:`schema`.
    """
    used: set[str] = set()
    checks = [_check(check, used) for check in session.checks]
    environment = {key: session.environment.get(key, [] if key == "devices" else "") for key in ENVIRONMENT}
    found: dict[str, Any] = _encoded(
        {
            "schema": SCHEMA,
            "version": VERSION,
            "created": session.created,
            "tool": f"pytest-trainability {environment['pytest_trainability']}".strip(),
            "environment": environment,
            "summary": {
                "checks": len(session.checks),
                **session.counts,
                "seconds": _seconds(math.fsum(check.record.seconds for check in session.checks)),
                "required": session.required,
                "measured": session.measured,
                "exit_status": int(session.exit_status),
            },
            "checks": checks,
            "errors": [plain(error) for error in session.errors],
            # Workers of xdist look for unused entries in other files, and find none either.
            "suggestions": [_suggested(test) for test in session.suggestions],
            "baselines": None if session.baselines == BaselineSummary() else plain(session.baselines),
            "shards": [],
        }
    )
    return found


def _suggested(test: TestSuggestions) -> dict[str, Any]:
    without = [found for found in test.suggestions if found.missing and found.current is None]
    return {
        **{key: getattr(test, key) for key in ("test", "model", "seeds", "fixed", "passed", "table")},
        "settings": [{"name": name, "code": code} for name, code in test.settings],
        "bounds": [plain(bound) for bound in suggested_bounds(test.suggestions)],
        "without_bound": [{"measure": found.measure, "reason": found.missing} for found in without],
    }


def check_in_full(check: CheckOutcome) -> dict[str, Any]:
    """Return a check as in a report, with all digits of its numbers.

    Args:
        check: The check.
    """
    found: dict[str, Any] = _encoded(_check(check, set()), rounds=False)
    return found


def _check(check: CheckOutcome, used: set[str]) -> dict[str, Any]:
    record = check.record
    written = record.to_plain()
    of_chain = record.log_gain, record.log_gain_low, record.log_gain_high
    is_explained = check.status == "failed" or not record.holds
    conditions = ("frame", "mode", "device", "dtype", "gradient_of", "seeds", "seeds_requested", "fixed")
    return {
        "id": unique_id(record.test, record.name, used),
        **{key: written[key] for key in ("test", "name", "file", "line")},
        "status": check.status,
        "outcome": check.outcome,
        "failure": check.failure,
        **{key: written[key] for key in ("asserted", "model")},
        "steps": {"text": written["steps"], "names": written["step_names"], "along": record.along},
        "conditions": {key: written[key] for key in conditions},
        "seconds": _seconds(record.seconds),
        "log_gain": {
            **dict(zip(("mean", "low", "high"), of_chain)),
            "finite": record.log_gain_finite,
            "spread": record.log_gain_spread,
        },
        **{key: written[key] for key in ("growth", "leaves_band")},
        "verdicts": [
            {**fields, "text": verdict.value_text, "bound": bound_text(verdict)}
            for fields, verdict in zip(written["verdicts"], record.verdicts)
        ],
        "baseline": None if record.baseline is None else _baseline(record.baseline, written["baseline"]),
        **{key: written[key] for key in ("cause", "cures", "notes", "cautions", "lists", "readings")},
        "reproduce": reproduce_command(record) if record.reproduce else "",
        "explanation": explain_lines(record, width=WIDTH) if is_explained else [],
        **{key: written[key] for key in ("values", "modules", "tensors")},
    }


def unique_id(test: str, name: str, used: set[str]) -> str:
    """Return an identifier of a check that is not used yet, and note it.

    Args:
        test: Node id of the test.
        name: Name of the measurement within the test.
        used: Identifiers so far.
    """
    found = f"{test} › {name}" if name else test
    while found in used:
        found += "'"
    used.add(found)
    return found


def _baseline(baseline: BaselineRecord, written: dict[str, Any]) -> dict[str, Any]:
    changes = [{**fields, "text": change.old_to_new} for fields, change in zip(written["changes"], baseline.changes)]
    return {**written, "changes": changes}


def _seconds(seconds: float) -> float:
    return round(seconds, 3)


def _encoded(value: Any, *, rounds: bool = True) -> Any:
    """Return plain data, by default with rounded numbers, and words for those that are not finite. Surrogates are escaped."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, float) and rounds:
        return _rounded(value)
    if isinstance(value, dict):
        return {plain(key): _encoded(item, rounds=rounds) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encoded(item, rounds=rounds) for item in value]
    return plain(value)


def _rounded(value: float) -> float:
    """Return a number with the digits of a file. One without a fraction is written as such, whatever type it had."""
    rounded = float(f"{value:.{DIGITS}g}")
    if not math.isfinite(rounded):
        return float(value)
    return int(rounded) if rounded.is_integer() and abs(rounded) < LARGEST_WHOLE else rounded


def rendered(found: Mapping[str, Any]) -> str:
    """Return the text of a file: one line for each check, so that differences of two files are readable.

    Args:
        found: A report.
    """
    parts = []
    for key, value in found.items():
        if isinstance(value, list) and value:
            inside = ",\n  ".join(map(_in_one_line, value))
            parts.append(f" {_in_one_line(key)}: [\n  {inside}\n ]")
        else:
            parts.append(f" {_in_one_line(key)}: {_in_one_line(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _in_one_line(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def summary_of(checks: list[dict[str, Any]], errors: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the counted part of the summary of a report.

    Args:
        checks: Checks of the report.
        errors: Its errors.
    """
    of_errors = ("expected failure" if error["expected"] else NOT_MEASURED for error in errors)
    by_status = counts([*(check["status"] for check in checks), *of_errors])
    seconds = math.fsum(float(check["seconds"]) for check in checks)
    return {"checks": len(checks), **by_status, "seconds": _seconds(seconds)}


# Reading --------------------------------------------------------------------------------------------------------------


@cache
def _validator() -> Check:
    return validator(schema())


def read_document(path: Path) -> dict[str, Any]:
    """Return the report in a file.

    Args:
        path: A file that ``--trainability-json`` or the command ``merge`` has written.

    Raises:
        ReportError: The file cannot be read, or is no report that this version reads. The message is one line.
    """
    try:
        if not path.is_file():
            what = "it does not exist" if not path.exists() else "it is not a regular file"
            _refuse(path, what)
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except OSError as error:
        _refuse(path, f"it cannot be read. {type(error).__name__}: {error.strerror or error}")
    if len(raw) > LARGEST_FILE:
        _refuse(path, f"it is larger than {LARGEST_FILE // 2**20} MB")
    return _parsed(raw, path)


def _parsed(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_short,
        )
    except UnicodeDecodeError as error:
        _refuse(path, f"it must be UTF-8; byte {error.start} is not")
    except (ValueError, RecursionError) as error:
        what = (
            "it is nested too deeply" if isinstance(error, RecursionError) else f"it is not JSON, or cut short: {error}"
        )
        _refuse(path, what)
    try:
        _refuse_other_versions(found)
        _validator()(found)
        _refuse_contradictions(found)
    except InvalidError as error:
        _refuse(path, str(error))
    # Half characters are legal in JSON, and UTF-8 cannot encode them.
    written: dict[str, Any] = plain(found)
    return written


def _refuse(path: Path, what: str) -> NoReturn:
    msg = f"{path} cannot be used as a report: {what}. A report is a file that --trainability-json has written."
    raise ReportError(msg) from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        msg = "a key occurs twice in one object"
        raise ValueError(msg)
    return found


def _no_constant(name: str) -> NoReturn:
    msg = f"{name} is not a JSON number"
    raise ValueError(msg)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        msg = f"{text[:LONGEST_NUMBER]} is too large for a number"
        raise ValueError(msg)
    return value


def _short(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        msg = f"{text[:LONGEST_NUMBER]}… is too large for a whole number"
        raise ValueError(msg)
    return int(text)


def _refuse_other_versions(found: Any) -> None:
    """Refuse what is no report at all, and a report of another version, before any detail is looked at.

    Raises:
        InvalidError: It is no report of this version.
    """
    if not isinstance(found, dict) or not str(found.get("schema", "")).startswith("urn:pytest-trainability:report:"):
        msg = f"must have the key 'schema' with the value {SCHEMA!r}"
        raise InvalidError(msg)
    version = found.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        msg = f"has version {version}, but this pytest-trainability reads versions up to {VERSION}: upgrade it"
        raise InvalidError(msg)


def _refuse_contradictions(found: Mapping[str, Any]) -> None:
    """Refuse what a schema cannot express: lists that belong together, identifiers, and patterns of names.

    Raises:
        InvalidError: The parts of a report contradict each other.
    """
    used: set[str] = set()
    names: float = 0
    for check in found["checks"]:
        if check["id"] in used:
            msg = f"must have checks with different ids; {check['id']!r:.80} occurs twice"
            raise InvalidError(msg)
        used.add(check["id"])
        if len(check["growth"]) != len(check["steps"]["names"]):
            msg = f"must have one growth rate for each step; {check['id']!r:.80} has not"
            raise InvalidError(msg)
        try:
            names += sum(map(number_of_names, _patterns(check)))
        except ValueError:
            # A number of thousands of digits.
            names = math.inf
        if names > LARGEST_NUMBER_OF_NAMES:
            msg = f"must have patterns that stand for at most {LARGEST_NUMBER_OF_NAMES} names"
            raise InvalidError(msg)


def _patterns(check: Mapping[str, Any]) -> Iterator[str]:
    """Yield the patterns of names that a report of a check writes out."""
    yield from (part["name"] for key in ("modules", "tensors") for part in check[key])
    for change in (check["baseline"] or {"changes": []})["changes"]:
        yield from change["elements"]
