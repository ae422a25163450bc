"""What a session tells the services of continuous integration: GitHub's summary and annotations, properties for JUnit's XML."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .paths import relative_path

if TYPE_CHECKING:
    from ..records.reports import CheckRecord
    from ..records.session import SessionRecord

__all__ = ["add_properties", "append_summary", "github_annotations", "is_on_github", "repository_prefix"]

SUMMARY, WORKSPACE, PROJECT = "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE", "CI_PROJECT_DIR"
LARGEST_SUMMARY = 1_000_000
"""Largest size in bytes of the summary of a step, with what is there already. GitHub shows none above 1 MiB."""
OTHERS = ("pytest_github_actions_annotate_failures", "pytest-github-actions-annotate-failures")
"""Plugins that annotate failed tests."""
PREFIX = "trainability"


def is_on_github() -> bool:
    """Return whether the session runs in a job of GitHub Actions, or has a file for its summary."""
    return os.environ.get("GITHUB_ACTIONS") == "true" or bool(os.environ.get(SUMMARY))


def repository_prefix(root: Path) -> str:
    """Return the path of the session's root below the root of the repository, with slashes; empty if they are the same."""
    given = os.environ.get(WORKSPACE) or os.environ.get(PROJECT)
    if not given:
        return ""
    path = Path(relative_path(root.resolve(), Path(given).resolve())).as_posix()
    return "" if path == "." or path.startswith("..") or Path(path).is_absolute() else path


def append_summary(session: SessionRecord) -> None:
    """Append the session to the file of GitHub's summary, if there is one and there is something to say.

    Raises:
        OSError: The file cannot be written.
    """
    path = os.environ.get(SUMMARY)
    if not path or not (session.checks or session.errors):
        return
    from ..report.markdown import markdown_page

    file = Path(path)
    room = LARGEST_SUMMARY - (file.stat().st_size if file.exists() else 0)
    page = markdown_page(session, largest=room)
    if len(page.encode("utf-8")) <= room:
        with file.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(f"{page}\n")


def github_annotations(config: pytest.Config, session: SessionRecord) -> list[str]:
    """Return the workflow commands that annotate the lines of failed tests; none where another plugin does it.

    Args:
        config: The session's configuration.
        session: The session.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true" or any(map(config.pluginmanager.has_plugin, OTHERS)):
        return []
    from ..report.findings import findings, workflow_commands

    return workflow_commands(findings(session, repository_prefix(config.rootpath)))


def add_properties(item: pytest.Item, records: list[CheckRecord]) -> None:
    """Add properties to the XML of JUnit: log gain, and value and bound of every verdict. They replace those of an earlier run.

    Args:
        item: The test.
        records: Its measurements.
    """
    from ..records.text import visible
    from ..report.explain import bound_text

    found: list[tuple[str, Any]] = []
    for record in records:
        start = f"{PREFIX}.{record.name}." if record.name else f"{PREFIX}."
        found.append((f"{start}model", record.model))
        if record.along and "log_gain" not in {verdict.measure for verdict in record.verdicts}:
            found.append((f"{start}log_gain", record.log_gain_text))
        for verdict in record.verdicts:
            holds = "" if verdict.holds else ": does not hold"
            found.append((f"{start}{verdict.measure}", f"{verdict.value_text}, {bound_text(verdict)}{holds}"))
        if record.baseline is not None:
            found.append((f"{start}baseline", record.baseline.status))
    others = [(name, value) for name, value in item.user_properties if not name.startswith(f"{PREFIX}.")]
    item.user_properties[:] = [*others, *((visible(name), visible(str(value))) for name, value in found)]
