"""Writing the reports of a session, in one process, at its end."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .report_files import report_paths

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..records.session import CheckOutcome, SessionRecord
    from .summary import Summary

__all__ = ["ReportWriter"]


class ReportWriter:
    """Writes the reports that the options ask for. A report that cannot be written fails the session, and loses nothing else."""

    def __init__(self, config: pytest.Config, summary: Summary) -> None:
        self._config = config
        self._summary = summary
        self._paths = {} if config.option.collectonly else report_paths(config)
        self._lines: list[tuple[str, bool]] = []
        """Lines for the terminal, and whether they are about a report that could not be written."""

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write after other plugins have settled the exit status, and before the terminal reports."""
        if not self._paths:
            return
        for kind, path in self._paths.items():
            record = self._session(session.exitstatus)
            self._write(kind, path, record)
            if any(failed for _, failed in self._lines) and session.exitstatus in {
                pytest.ExitCode.OK,
                pytest.ExitCode.NO_TESTS_COLLECTED,
            }:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _session(self, exit_status: int) -> SessionRecord:
        found = self._summary.session_record()
        return replace(
            found,
            checks=tuple(sorted(found.checks, key=lambda check: _place(check.record))),
            errors=tuple(sorted(found.errors, key=_place)),
            environment=_environment(self._config, found.checks),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            exit_status=int(exit_status),
        )

    def _write(self, kind: str, path: Path, record: SessionRecord) -> None:
        """Write one report, or note the reason why this is not possible."""
        from ..checks.atomic_files import replace_file
        from ..errors import ReportError
        from ..report.formats import report_text

        try:
            text = report_text(kind, record)
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, text)
        except (OSError, ReportError) as error:
            reason = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else str(error)
            self._lines.append((f"the report {path} could not be written. {reason}", True))
        else:
            self._lines.append((f"report written to {path}", False))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name the files, and say which ones could not be written."""
        if not self._lines:
            return
        from ..report.explain import shown_in

        encoding = getattr(terminalreporter._tw._file, "encoding", None)
        for line, failed in self._lines:
            text = shown_in(line, encoding)
            if failed:
                terminalreporter.write_line(text, red=True)
            elif terminalreporter.verbosity >= 0:
                terminalreporter.write_line(text)


def _place(record: Any) -> tuple[str, int, list[Any]]:
    """Return the place of a test in the source: workers of xdist finish in another order."""
    parts = re.split(r"(\d+)", record.test)
    return record.file, record.line, [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _environment(config: pytest.Config, checks: Iterable[CheckOutcome]) -> dict[str, Any]:
    """Return versions, machine and command line."""
    packages = ("pytest", "torch", "numpy")
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "pytest_trainability": _version("pytest-trainability"),
        "platform": f"{sys.platform} {platform.machine()}",
        "processor": _processor(),
        "devices": sorted({check.record.device for check in checks}),
        "command": shlex.join(["pytest", *map(str, config.invocation_params.args)]),
        "threads": os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count() or ""),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    """Return the name of the processor; empty where the system does not say."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        found = None
    return found[1].strip() if found else ""
