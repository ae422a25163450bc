"""Writing the reports of a session, in one process, at its end."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .ci import append_summary, github_annotations, is_on_github, repository_prefix
from .report_files import report_paths

if TYPE_CHECKING:
    from ..records.session import SessionRecord
    from .suggestions import SuggestionWriter
    from .summary import Summary

__all__ = ["ReportWriter"]


class ReportWriter:
    """Writes the reports that the options ask for. A report that cannot be written fails the session, and loses nothing else."""

    def __init__(self, config: pytest.Config, summary: Summary, suggestions: SuggestionWriter) -> None:
        self._config = config
        self._summary = summary
        self._suggestions = suggestions
        self._paths = report_paths(config)
        self._lines: list[tuple[str, bool]] = []
        """Lines for the terminal, and whether they are about a report that could not be written."""
        self._commands: list[str] = []
        """Workflow commands for the log of GitHub Actions."""

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write after other plugins have settled the exit status, and before the terminal reports.

        The JSON file comes last, so that it has the exit status of a session in which another report could not be written.
        """
        if self._config.option.collectonly or not (self._paths or is_on_github()):
            return
        found = self._summary.session_record()
        for kind, path in self._paths.items():
            self._write(kind, path, self._complete(found, session.exitstatus))
            self._fail(session)
        if is_on_github():
            self._tell_github(self._complete(found, session.exitstatus))
            self._fail(session)

    def _fail(self, session: pytest.Session) -> None:
        """Fail the session if a report could not be written."""
        passed = session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}
        if passed and any(failed for _, failed in self._lines):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _complete(self, found: SessionRecord, exit_status: int) -> SessionRecord:
        """Return the session with its environment and date, and its checks in the order of the source."""
        from ..report.environment import environment, now

        command = shlex.join(["pytest", *map(str, self._config.invocation_params.args)])
        return replace(
            found,
            checks=tuple(sorted(found.checks, key=lambda check: _place(check.record))),
            errors=tuple(sorted(found.errors, key=_place)),
            environment=environment(command, (check.record.device for check in found.checks)),
            created=now(),
            exit_status=int(exit_status),
            suggestions=tuple(self._suggestions.suggestions()),
        )

    def _tell_github(self, record: SessionRecord) -> None:
        """Append to the summary of the step, and keep the annotations for the terminal."""
        try:
            append_summary(record)
        except OSError as error:
            self._lines.append((f"GITHUB_STEP_SUMMARY could not be written. {_reason(error)}", True))
        self._commands = github_annotations(self._config, record)

    def _write(self, kind: str, path: Path, record: SessionRecord) -> None:
        """Write one report, or note the reason why this is not possible."""
        from ..checks.atomic_files import replace_file
        from ..errors import ReportError
        from ..report.formats import report_text

        try:
            text = report_text(kind, record, repository_prefix(self._config.rootpath))
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, text)
        except (OSError, ReportError) as error:
            self._lines.append((f"the report {path} could not be written. {_reason(error)}", True))
        else:
            self._lines.append((f"report written to {path}", False))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name the files, say which ones could not be written, and annotate the lines of failed tests."""
        if not self._lines and not self._commands:
            return
        from ..report.layout import is_encodable, shown_in, to_ascii

        encoding = getattr(terminalreporter._tw._file, "encoding", None)
        for line, failed in self._lines:
            text = shown_in(line, encoding)
            if failed:
                terminalreporter.write_line(text, red=True)
            elif terminalreporter.verbosity >= 0:
                terminalreporter.write_line(text)
        for command in self._commands:
            terminalreporter.write_line(command if is_encodable(command, encoding) else to_ascii(command))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error.strerror or error}" if isinstance(error, OSError) else str(error)


def _place(record: Any) -> Any:
    from ..records.session import source_order

    return source_order(record.file, record.line, record.test)
