"""What has failed in a session, as findings at lines of test files: annotations, code quality and code scanning."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ..records.session import CheckOutcome, SessionRecord
from ..records.text import visible
from .changes import change_lines
from .explain import bound_text

__all__ = ["Finding", "findings", "gitlab_text", "sarif_text", "workflow_commands"]

WIDTH = 10_000
"""Columns of texts that are one line each."""
SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that has failed, at the line of its test."""

    test: str
    """Test, and the name of the measurement within it."""
    rule: str
    """Measure whose bound does not hold, ``baseline``, ``assertion``, or the class of an error."""
    message: str
    """One line."""
    file: str
    """Path relative to the root of the repository, with slashes."""
    line: int
    """Counted from 1."""

    @property
    def fingerprint(self) -> str:
        """A number that stays the same while the test has its name, whatever the measured number and the line."""
        return hashlib.sha256("\0".join((self.test, self.rule)).encode()).hexdigest()


def findings(session: SessionRecord, prefix: str = "") -> list[Finding]:
    """Return what has failed, in the order of the session.

    Args:
        session: The session.
        prefix: Path of the session's root below the root of the repository; empty if they are the same.
    """
    found = [finding for check in session.checks if check.status == "failed" for finding in _of_check(check, prefix)]
    for error in session.errors:
        if error.expected:
            continue
        place = _place(error.file, error.test, prefix)
        message = visible(f"{error.error}: {error.message}".replace("\n", " "))
        found.append(Finding(visible(error.test), error.error, message, place, max(error.line, 1)))
    return found


def _of_check(check: CheckOutcome, prefix: str) -> Iterator[Finding]:
    record = check.record
    test = visible(f"{record.test} ({record.name})" if record.name else record.test)
    place = _place(record.file, record.test, prefix), max(record.line, 1)
    reasons = [(verdict.measure, _verdict_text(verdict)) for verdict in record.verdicts if not verdict.holds]
    if record.baseline is not None and not record.baseline.holds:
        lines = change_lines(record.baseline.changes, WIDTH)
        texts = [" ".join(line.split()) for line in lines] or ["there is no baseline"]
        reasons.append(("baseline", f"changed since the baseline: {'; '.join(texts)}" if lines else texts[0]))
    for rule, text in reasons or [("assertion", check.failure or "the test failed")]:
        yield Finding(test, rule, visible(f"{record.model}: {text}"), *place)


def _verdict_text(verdict: Any) -> str:
    text = f"{verdict.measure} {verdict.value_text} {bound_text(verdict)}"
    return f"{text}, worst {verdict.where}" if verdict.where else text


def _place(file: str, test: str, prefix: str) -> str:
    path = (file or test.partition("::")[0]).replace("\\", "/")
    return visible(f"{prefix}/{path}" if prefix else path)


# GitHub ---------------------------------------------------------------------------------------------------------------


def workflow_commands(found: Sequence[Finding]) -> list[str]:
    """Return workflow commands that show findings at the lines of their tests, one for each test and measurement.

    Args:
        found: The findings.
    """
    by_test: dict[str, list[Finding]] = {}
    for finding in found:
        by_test.setdefault(finding.test, []).append(finding)
    return [_annotation(group) for group in by_test.values()]


def _annotation(group: Sequence[Finding]) -> str:
    first = group[0]
    message = "\n".join([first.test, *(finding.message for finding in group)])
    properties = f"file={_property(first.file)},line={first.line},title={_property('trainability')}"
    return f"::error {properties}::{_data(message)}"


def _data(text: str) -> str:
    """Escape the message of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Escape a property of a workflow command. Control characters of a name would end the command."""
    return _data(visible(text)).replace(":", "%3A").replace(",", "%2C")


# GitLab ---------------------------------------------------------------------------------------------------------------


def gitlab_text(found: Sequence[Finding]) -> str:
    """Return findings as a code quality report of GitLab.

    Args:
        found: The findings.
    """
    issues = [
        {
            "description": f"{finding.message} ({finding.test})",
            "check_name": f"trainability: {finding.rule}",
            "fingerprint": fingerprint,
            "severity": "major",
            "location": {"path": finding.file, "lines": {"begin": finding.line}},
        }
        for finding, fingerprint in _with_fingerprints(found)
    ]
    return json.dumps(issues, indent=1, ensure_ascii=False) + "\n"


def _with_fingerprints(found: Sequence[Finding]) -> Iterator[tuple[Finding, str]]:
    """Yield findings with different fingerprints, also those of two measurements of one name."""
    used: dict[str, int] = {}
    for finding in found:
        number = used[finding.fingerprint] = used.get(finding.fingerprint, 0) + 1
        yield (
            finding,
            finding.fingerprint
            if number == 1
            else hashlib.sha256(f"{finding.fingerprint}{number}".encode()).hexdigest(),
        )


# SARIF ----------------------------------------------------------------------------------------------------------------


def sarif_text(found: Sequence[Finding], version: str) -> str:
    """Return findings as SARIF 2.1.0.

    Args:
        found: The findings.
        version: Version of this package.
    """
    rules = list(dict.fromkeys(finding.rule for finding in found))
    results = [
        {
            "ruleId": finding.rule,
            "ruleIndex": rules.index(finding.rule),
            "level": "error",
            "message": {"text": f"{finding.message} ({finding.test})"},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": quote(finding.file), "uriBaseId": "%SRCROOT%"},
                        "region": {"startLine": finding.line},
                    }
                }
            ],
            "partialFingerprints": {"trainability/v1": fingerprint},
        }
        for finding, fingerprint in _with_fingerprints(found)
    ]
    driver = {
        "name": "pytest-trainability",
        **({"version": version} if version else {}),
        "rules": [{"id": rule, "shortDescription": {"text": _rule_text(rule)}} for rule in rules],
    }
    runs = [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}]
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": runs}, indent=1, ensure_ascii=False) + "\n"


def _rule_text(rule: str) -> str:
    known = {"baseline": "The model has changed since its baseline.", "assertion": "The test must pass."}
    if re.search("Error$|Exception$", rule):
        return "The model could not be measured."
    return known.get(rule, f"The bound on {rule} must hold.")
