"""The formats of CI services, for tests: what GitLab and SARIF require of a file, and how GitHub's runner reads a log.

The schemas hold what the published ones require of the keys that the project writes: GitLab, "Code Quality report format"; OASIS,
SARIF 2.1.0, sections 3.14 to 3.30. They allow no further keys, so that a new key is looked up there first.
"""

from __future__ import annotations

import re
from typing import Any

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 1}


def _closed(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


GITLAB: dict[str, Any] = {
    "type": "array",
    "items": _closed(
        {
            "description": TEXT,
            "check_name": TEXT,
            "fingerprint": TEXT,
            "severity": {"enum": ["info", "minor", "major", "critical", "blocker"]},
            # Relative to the repository, and not starting with "./".
            "location": _closed({"path": {"type": "string", "pattern": r"^[^./]"}, "lines": _closed({"begin": COUNT})}),
        }
    ),
}
_MESSAGE = _closed({"text": TEXT})
_LOCATION = _closed(
    {
        "physicalLocation": _closed(
            {
                "artifactLocation": _closed(
                    {"uri": {"type": "string", "pattern": r"^[A-Za-z0-9._~/%-]+$"}}, uriBaseId={"const": "%SRCROOT%"}
                )
            },
            region=_closed({"startLine": COUNT}),
        )
    }
)
SARIF: dict[str, Any] = _closed(
    {
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "items": _closed(
                {
                    "tool": _closed(
                        {
                            "driver": _closed(
                                {"name": TEXT},
                                version=TEXT,
                                rules={
                                    "type": "array",
                                    "uniqueItems": True,
                                    "items": _closed({"id": TEXT}, shortDescription=_MESSAGE),
                                },
                            )
                        }
                    )
                },
                columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                results={
                    "type": "array",
                    "items": _closed(
                        {"message": _MESSAGE},
                        ruleId=TEXT,
                        ruleIndex={"type": "integer", "minimum": -1},
                        level={"enum": ["none", "note", "warning", "error"]},
                        locations={"type": "array", "items": _LOCATION},
                        partialFingerprints={"type": "object", "additionalProperties": {"type": "string"}},
                    ),
                },
            ),
        },
    },
    **{"$schema": {"type": "string", "format": "uri"}},
)

_COMMAND = re.compile(r"^::(?P<name>[a-z-]+)(?: (?P<properties>[^:]*(?::(?!:)[^:]*)*))?::(?P<message>.*)$")


def commands_in(log: str) -> list[dict[str, str]]:
    """Return the workflow commands in a log, as the runner of GitHub Actions decodes them, line by line."""
    found = []
    for line in log.splitlines():
        if match := _COMMAND.match(line.lstrip()):
            pairs = (pair.partition("=") for pair in (match["properties"] or "").split(",") if pair)
            properties = {key: _decoded(value, of_property=True) for key, _, value in pairs}
            found.append({"command": match["name"], **properties, "message": _decoded(match["message"])})
        elif "##[" in line:
            found.append({"command": "old", "message": line})
    return found


def _decoded(text: str, *, of_property: bool = False) -> str:
    pairs = [("%0D", "\r"), ("%0A", "\n"), *([("%3A", ":"), ("%2C", ",")] if of_property else []), ("%25", "%")]
    for code, character in pairs:
        text = text.replace(code, character)
    return text
