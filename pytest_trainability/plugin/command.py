"""Commands: compare or accept numbers that another machine has measured, or write the initialization contract of a model.

A session with ``--trainability-measured=FOLDER`` writes all numbers of ``check_baseline()`` into the folder, in the format of the
baselines and under their paths relative to the root. A job of continuous integration keeps the folder as an artifact.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .paths import relative_path

if TYPE_CHECKING:
    from ..checks.baseline_files import Contents
    from ..checks.baselines import Entry
    from ..records.reports import BaselineChange

__all__ = ["main"]

DIFFERS, CANNOT = 1, 2
"""Exit statuses: an entry has changed or is new; a file, folder or tolerance cannot be used."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry that differs from its baseline, or has no baseline."""

    test: str
    name: str
    entry: Entry
    changes: tuple[BaselineChange, ...]
    """Empty if there is no baseline."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        Exit status: 0 if nothing differs or everything was accepted, 1 if ``compare`` finds a difference, 2 if a file, folder
        or tolerance cannot be used. In the last case nothing is written.
    """
    from ..errors import TrainabilityError

    options = _parser().parse_args(arguments)
    try:
        if options.command == "contract":
            return _write_contract(options)
        found = {path: differences for path, differences in _differences(options) if differences}
        for path, differences in found.items():
            _print(relative_path(path, options.root), differences)
        if not found:
            _say(
                "Nothing has changed by these tolerances. If your tests set other tolerances, pass them with --tolerances."
            )
        if options.command == "compare":
            return DIFFERS if found else 0
        for path, differences in found.items():
            _accept(path, differences)
    except TrainabilityError as error:
        _say(f"pytest_trainability: {error}", file=sys.stderr)
        return CANNOT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pytest_trainability", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("compare", "Print the differences from the committed baselines, old → new. Exit status 1 if there are any."),
        ("accept", "Replace the committed baselines that differ by the measured ones."),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("measured", type=Path, help="Folder written by --trainability-measured.")
        command.add_argument(
            "--root", type=Path, default=Path(), help="Root of the project (default: the current folder)."
        )
        command.add_argument(
            "--tolerances",
            action="append",
            default=[],
            metavar="TOLERANCE",
            help="Tolerance of a measure, such as 'log_gain = 0.5'. May be given several times.",
        )
    text = "Print the initialization contract that a model keeps. Exit status 1 if it does not hold on other seeds."
    command = commands.add_parser("contract", help=text, description=text)
    command.add_argument("build", metavar="MODULE:FACTORY", help="Factory of the model, such as package.module:build.")
    command.add_argument("--seeds", default="8", help="Seeds to read, such as 8 or 0-7 (default: 8).")
    command.add_argument("--name", default="CONTRACT", help="Name of the dictionary (default: CONTRACT).")
    return parser


def _write_contract(options: argparse.Namespace) -> int:
    """Print the contract of a model, and check it on as many other seeds."""
    from ..checks.statistics import as_seeds
    from ..measurement.contracts import checked_contract

    text, trouble = checked_contract(_factory(options.build), as_seeds(options.seeds), options.name)
    print(text, end="")
    if trouble:
        _say("pytest_trainability: this contract does not hold on other seeds. Correct it by hand:", file=sys.stderr)
        for line in trouble.splitlines():
            _say(line, file=sys.stderr)
    return DIFFERS if trouble else 0


def _factory(place: str) -> Any:
    """Return the factory that ``package.module:build`` names. Modules of the current folder come first.

    Raises:
        UsageError: There is no such module or name.
    """
    from pkgutil import resolve_name

    from ..errors import UsageError

    sys.path.insert(0, str(Path.cwd()))
    if ":" not in place:
        msg = f"the factory must be given as MODULE:FACTORY, such as package.module:build. Got {place!r}."
        raise UsageError(msg)
    try:
        return resolve_name(place)
    except (ImportError, AttributeError, ValueError) as error:
        msg = f"{place!r} must name a factory of a model. Importing it raised {type(error).__name__}: {error}."
        raise UsageError(msg) from error


def _differences(options: argparse.Namespace) -> Iterator[tuple[Path, list[Difference]]]:
    """Compare every file of the folder with the file of the same relative path below the root."""
    from ..checks.baseline_files import read_baselines

    tolerances = _tolerances(options.tolerances)
    files = _files(options.measured)
    if not files:
        from ..errors import UsageError

        msg = f"{options.measured} must be a folder written by a session with --trainability-measured. It holds no baseline."
        raise UsageError(msg)
    for relative in files:
        target = _target(options.root, relative)
        measured, committed = read_baselines(options.measured / relative), read_baselines(target)
        yield target, list(_differing(measured, committed, tolerances))


def _files(folder: Path) -> list[Path]:
    """Return the paths of the baselines in a folder, relative to it. Links are not followed."""
    from ..checks.baseline_files import FOLDER

    found = []
    for parent, _, names in os.walk(folder):
        if Path(parent).name == FOLDER:
            found += [Path(parent, name).relative_to(folder) for name in names if name.endswith(".json")]
    return sorted(found)


def _target(root: Path, relative: Path) -> Path:
    """Return the path of the committed file for a measured file.

    Raises:
        BaselineError: Its test module does not exist, or lies outside the root.
    """
    from ..checks.baseline_files import find_test_file
    from ..errors import BaselineError

    target = root / relative
    file = find_test_file(target)
    if file is None:
        msg = f"{relative}: a baseline must have a test module. {target.parent.parent} has no {target.stem}.py. Check --root."
        raise BaselineError(msg)
    if not file.resolve().is_relative_to(root.resolve()):
        msg = f"{relative}: a baseline must lie below {root.resolve()}. {file} leads to {file.resolve()}."
        raise BaselineError(msg)
    return target


def _tolerances(lines: list[str]) -> dict[str, float]:
    from ..checks.tolerances import parse_tolerances
    from ..measures import MEASURES, find_measure

    given = parse_tolerances(lines, where="--tolerances")
    known = {measure.name: measure.tolerance for measure in MEASURES.values()}
    return known | {find_measure(name, where="--tolerances").name: value for name, value in given.items()}


def _differing(measured: Contents, committed: Contents, tolerances: Mapping[str, float]) -> Iterator[Difference]:
    from ..checks.baselines import compare, find_entry

    for test, names in measured.items():
        for name, entries in names.items():
            for entry in entries.values():
                old = find_entry(committed.get(test, {}).get(name, {}), entry)
                changes = () if old is None else compare(old, entry, tolerances)
                if old is None or changes:
                    yield Difference(test, name, entry, changes)


def _print(file: str, differences: Sequence[Difference]) -> None:
    from ..report.explain import change_lines

    width = shutil.get_terminal_size().columns - 4
    _say(file)
    for difference in differences:
        new = "" if difference.changes else ": new"
        _say(f"  {difference.test} › {difference.name} › {difference.entry.key}{new}")
        for line in change_lines(difference.changes, width):
            _say("    " + line)


def _say(line: str, file: TextIO | None = None) -> None:
    """Print one line. Names in it may come from an artifact."""
    from ..report.explain import shown_in

    file = file or sys.stdout
    print(shown_in(line, getattr(file, "encoding", None)), file=file)


def _accept(path: Path, differences: Sequence[Difference]) -> None:
    from ..checks.baseline_files import change_baselines

    change_baselines(path, partial(_with, differences))
    _say(f"{path}: {len(differences)} accepted.")


def _with(differences: Sequence[Difference], contents: Contents) -> Contents:
    """Return the contents of a file with the measured entries."""
    from ..checks.baseline_files import with_entry

    for difference in differences:
        contents = with_entry(contents, difference.test, difference.name, difference.entry)
    return contents
