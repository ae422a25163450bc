"""Compare or accept numbers that another machine has measured.

A session with ``--trainability-measured=FOLDER`` writes all numbers of ``check_baseline()`` into the folder, in the format of the
baselines and under their paths relative to the root. A job of continuous integration keeps the folder as an artifact.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..plugin.paths import relative_path
from .arguments import DIFFERS, Subparsers, declared, say
from .tolerances import add_tolerances, tolerances_of

if TYPE_CHECKING:
    from ..checks.baseline_entries import Entry
    from ..checks.baseline_files import Contents
    from ..records.reports import BaselineChange

__all__ = ["accept", "add_root", "compare_folder", "declare"]

_OF_OTHERS = frozenset({"node_modules", "site-packages", "__pycache__"})
"""Folders without tests of the project."""
UNCHANGED = "Nothing has changed by these tolerances. If your tests set other tolerances, pass them with --tolerances."


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry that differs from its baseline, or has no baseline."""

    test: str
    name: str
    entry: Entry
    changes: tuple[BaselineChange, ...]
    """Empty if there is no baseline."""


def declare(commands: Subparsers) -> None:
    """Declare the command ``accept``."""
    text = "Replace the committed baselines that differ by the measured ones."
    command = declared(commands, "accept", text, "accept measured --root .", accept)
    command.add_argument("measured", type=Path, help="Folder written by --trainability-measured.")
    add_root(command)
    add_tolerances(command)


def add_root(command: argparse.ArgumentParser) -> None:
    """Add the option that names the root of the project."""
    command.add_argument("--root", type=Path, default=Path(), help="Root of the project (default: the current folder).")


def compare_folder(options: argparse.Namespace) -> int:
    """Print the differences of a folder of measured numbers from the committed baselines."""
    return DIFFERS if _found(options) else 0


def accept(options: argparse.Namespace) -> int:
    """Print the differences, and write them into the committed baselines."""
    for path, differences in _found(options).items():
        _accept(path, differences)
    return 0


def _found(options: argparse.Namespace) -> dict[Path, list[Difference]]:
    """Return the differences by committed file, and print them."""
    found = {path: differences for path, differences in _differences(options) if differences}
    for path, differences in found.items():
        _print(relative_path(path, options.root), differences)
    if not found:
        say(UNCHANGED)
    return found


def _differences(options: argparse.Namespace) -> Iterator[tuple[Path, list[Difference]]]:
    """Compare every file of the folder with the file of the same relative path below the root."""
    from ..checks.baseline_files import read_baselines

    tolerances = tolerances_of(options)
    files = _files(options.measured, options.root)
    if not files:
        from ..errors import UsageError

        msg = f"{options.measured} must be a folder written by a session with --trainability-measured. It holds no baseline."
        raise UsageError(msg)
    for relative in files:
        target = _target(options.root, relative)
        measured, committed = read_baselines(options.measured / relative), read_baselines(target)
        yield target, list(_differing(measured, committed, tolerances))


def _files(folder: Path, root: Path) -> list[Path]:
    """Return the paths of the baselines in a folder, relative to it. Links are not followed."""
    found = []
    for parent, _, names in os.walk(folder):
        found += [Path(parent, name).relative_to(folder) for name in names if name.endswith(".json")]
    # Other files may be kept in the same folder, such as a report.
    named = {target.relative_to(root.resolve()) for target in _named(root)} if any(map(_is_elsewhere, found)) else set()
    left_out = sorted(file for file in found if _is_elsewhere(file) and file not in named)
    for file in left_out:
        say(f"{file}: left out. No table of a trainability.toml below {root.resolve()} names it as its baseline.")
    return sorted(set(found) - set(left_out))


def _is_elsewhere(relative: Path) -> bool:
    """Whether a file is not in the folder of the baselines of test modules."""
    from ..checks.baseline_files import FOLDER

    return relative.parent.name != FOLDER


def _named(root: Path) -> set[Path]:
    """Return the baseline files below the root that tables name."""
    from ..gate.reading import FILE, PROJECT

    found: set[Path] = set()
    for parent, folders, names in os.walk(root.resolve()):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _OF_OTHERS]
        for name in {FILE, PROJECT}.intersection(names):
            found |= _named_in(Path(parent, name))
    return {path for path in found if path.is_relative_to(root.resolve())}


def _named_in(file: Path) -> set[Path]:
    """Return the baseline files that the tables of a file name.

    Raises:
        BaselineError: It cannot be read.
    """
    from ..errors import BaselineError
    from ..gate.reading import InvalidGateError, named_baselines

    try:
        return named_baselines(file)
    except InvalidGateError as error:
        msg = f"{file} names baselines, and must be read. {error}"
        raise BaselineError(msg) from None


def _target(root: Path, relative: Path) -> Path:
    """Return the path of the committed file for a measured file.

    Raises:
        BaselineError: Its test module does not exist, or lies outside the root.
    """
    from ..checks.baseline_files import find_test_file
    from ..errors import BaselineError

    target = root / relative
    if _is_elsewhere(relative):
        return target
    file = find_test_file(target)
    if file is None:
        msg = f"{relative}: a baseline must have a test module. {target.parent.parent} has no {target.stem}.py. Check --root."
        raise BaselineError(msg)
    if not file.resolve().is_relative_to(root.resolve()):
        msg = f"{relative}: a baseline must lie below {root.resolve()}. {file} leads to {file.resolve()}."
        raise BaselineError(msg)
    return target


def _differing(measured: Contents, committed: Contents, tolerances: Mapping[str, float]) -> Iterator[Difference]:
    from ..checks.baseline_entries import find_entry
    from ..checks.baselines import compare

    for test, names in measured.items():
        for name, entries in names.items():
            for entry in entries.values():
                old = find_entry(committed.get(test, {}).get(name, {}), entry)
                changes = () if old is None else compare(old, entry, tolerances)
                if old is None or changes:
                    yield Difference(test, name, entry, changes)


def _print(file: str, differences: Sequence[Difference]) -> None:
    from ..report.changes import change_lines

    width = shutil.get_terminal_size().columns - 4
    say(file)
    for difference in differences:
        new = "" if difference.changes else ": new"
        say(f"  {difference.test} › {difference.name} › {difference.entry.key}{new}")
        for line in change_lines(difference.changes, width):
            say("    " + line)


def _accept(path: Path, differences: Sequence[Difference]) -> None:
    from ..checks.baseline_files import change_baselines

    change_baselines(path, partial(_with, differences))
    say(f"{path}: {len(differences)} accepted.")


def _with(differences: Sequence[Difference], contents: Contents) -> Contents:
    """Return the contents of a file with the measured entries."""
    from ..checks.baseline_files import with_entries

    return with_entries(contents, ((one.test, one.name, one.entry) for one in differences))
