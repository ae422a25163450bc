"""The files of reports that a session writes: their options, and whether they can be written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FORMATS", "declare", "is_detailed", "refuse_unusable", "report_paths", "writes_properties"]

FORMATS = {
    "html": "Write the report of the session as one self-contained page.",
    "markdown": "Write the report of the session as Markdown, as for the summary of a job.",
    "gitlab": "Write what has failed as a code quality report of GitLab.",
    "sarif": "Write what has failed as SARIF 2.1.0, for code scanning.",
    "json": "Write everything that was measured as JSON, for the commands of python -m pytest_trainability.",
}
"""Formats of reports, and the help of their options, in the order in which they are written."""
_DETAILED = ("json", "html")
"""Formats that hold all values, the modules and the initial values."""


def declare(parser: pytest.Parser, group: pytest.OptionGroup) -> None:
    """Declare ``--trainability-json=FILE`` and the like, and the ini values of the same names."""
    for name, text in FORMATS.items():
        group.addoption(
            f"--trainability-{name}", dest=f"trainability_{name}", metavar="FILE", default=None, help=f"{text}"
        )
        parser.addini(
            f"trainability_{name}", f"{text} Relative to the folder of the ini file.", type="string", default=None
        )
    text = "Write status, log gain and verdicts as properties into the file of --junitxml."
    group.addoption("--trainability-junit", dest="trainability_junit", action="store_true", default=None, help=text)
    parser.addini("trainability_junit", text, type="bool", default=False)


def writes_properties(config: pytest.Config) -> bool:
    """Return whether tests get properties for JUnit's XML."""
    given = config.getoption("trainability_junit")
    return bool(config.getini("trainability_junit") if given is None else given)


def is_detailed(config: pytest.Config) -> bool:
    """Return whether records hold all values, for a file that shows them."""
    return any(_given(config, name)[0] is not None for name in _DETAILED)


def _given(config: pytest.Config, name: str) -> tuple[str | None, str, Path]:
    """Return the file of a format, the place where it is set, and the folder that it is relative to."""
    given = config.getoption(f"trainability_{name}")
    if given is not None:
        return str(given), f"--trainability-{name}", config.invocation_params.dir
    folder = config.inipath.parent if config.inipath else config.rootpath
    given = config.getini(f"trainability_{name}")
    return None if given is None else str(given), f"the ini value trainability_{name}", folder


def report_paths(config: pytest.Config) -> dict[str, Path]:
    """Return the path of each report that the session writes, by format."""
    found = {name: _given(config, name) for name in FORMATS}
    return {name: (folder / given).resolve() for name, (given, _, folder) in found.items() if given is not None}


def refuse_unusable(config: pytest.Config) -> None:
    """Refuse files of reports that cannot be written, before any test runs. A worker of xdist writes none.

    Raises:
        pytest.UsageError: A path is empty, a folder, in a folder that cannot be written, or that of another report.
    """
    if hasattr(config, "workerinput"):
        return
    for name in FORMATS:
        given, where, _ = _given(config, name)
        if given is not None and not given.strip():
            msg = f"{where} must name a file. Got {given!r}."
            raise pytest.UsageError(msg)
    paths = report_paths(config)
    for name, path in paths.items():
        if trouble := _trouble(path):
            msg = f"{_given(config, name)[1]} must name a file that can be written. {trouble}"
            raise pytest.UsageError(msg)
    _refuse_same(config, paths)
    if "html" in paths:
        _refuse_missing_package()


def _refuse_missing_package() -> None:
    """Refuse to write a page without the package that it needs.

    Raises:
        pytest.UsageError: It is not installed.
    """
    from ..errors import ReportError
    from ..report.formats import html_writer

    try:
        html_writer()
    except ReportError as error:
        msg = f"--trainability-html: {error}"
        raise pytest.UsageError(msg) from None


def _trouble(path: Path) -> str:
    """Return why a file cannot be written, as far as that is known beforehand; empty if it probably can."""
    if path.exists() and not path.is_file():
        return f"{path} is {'a folder' if path.is_dir() else 'no regular file'}."
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        return f"{folder} is no folder."
    # Replacing a file makes another one next to it.
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"The folder {folder} is not writable."


def _refuse_same(config: pytest.Config, paths: Mapping[str, Path]) -> None:
    """Refuse a file that two reports would write, the one of JUnit among them.

    Raises:
        pytest.UsageError: There is one.
    """
    options = {f"--trainability-{name}": path for name, path in paths.items()}
    if xml := getattr(config.option, "xmlpath", None):
        options = {"--junitxml": Path(os.path.expandvars(xml)).resolve(), **options}
    known: dict[Path, str] = {}
    for option, path in options.items():
        if path in known:
            msg = f"{known[path]} and {option} must name different files. Both name {path}."
            raise pytest.UsageError(msg)
        known[path] = option
