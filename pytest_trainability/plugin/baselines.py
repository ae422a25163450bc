"""``check_baseline()`` in a test: what the committed file says of it, and what the mode makes of that."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from .collected import node_id
from .options import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..checks.baseline_files import Contents
    from ..checks.baselines import Entry
    from ..records.reports import BaselineRecord

__all__ = ["BASELINE_REQUESTS", "BASELINES", "BaselineRequest", "Baselines"]


@dataclass(frozen=True, slots=True)
class BaselineRequest:
    """What a test has asked a baseline for: it travels with the test's report as plain data."""

    path: str
    test: str
    key: str
    """Of the measurement in the test, unlike that of any other."""
    name: str
    """Of the measurement in the file."""
    status: str
    entry: dict[str, Any]
    """What was measured, as a file holds it."""
    recorded_with: str
    """Version of torch of the baseline, where it is another."""

    @property
    def is_to_write(self) -> bool:
        """Whether the file shall hold what was measured."""
        return self.status in {"recorded", "updated"}


BASELINE_REQUESTS = pytest.StashKey[list[BaselineRequest]]()


class Baselines:
    """The files of this session, read once each. Only the controller writes: see :mod:`.baseline_writer`."""

    def __init__(self, config: pytest.Config) -> None:
        self._mode = config.stash[SETTINGS].baseline
        self._root = config.rootpath
        self._files: dict[Path, Contents] = {}

    def check(
        self, item: pytest.Item, command: str, key: str, name: str, entry: Entry, tolerances: Mapping[str, float]
    ) -> BaselineRecord:
        """Compare an entry of a test with its baseline.

        Args:
            item: The test.
            command: That repeats it.
            key: Of the measurement in the test, unlike that of any other.
            name: Of the measurement in the file.
            entry: What was measured.
            tolerances: By measure.

        Raises:
            BaselineError: The file cannot be read.
            UsageError: Another measurement of the test has this name.
        """
        from ..checks.baseline_files import baseline_path, entry_to_plain
        from ..checks.baselines import compare
        from ..errors import UsageError
        from ..records.reports import BaselineRecord

        if any(asked.name == name and asked.key != key for asked in item.stash[BASELINE_REQUESTS]):
            msg = (
                f"each baseline of a test must have a name of its own. Two measurements of {item.nodeid} are called "
                f"{name!r}: give one another with name=."
            )
            raise UsageError(msg)
        path = baseline_path(item.path)
        test = node_id(item).partition("::")[2]
        old = self._find(path, test, name, entry)
        changes = () if old is None else compare(old, entry, tolerances)
        stale = old is not None and old.environment.get("torch") != entry.environment["torch"]
        status = self._status(entry, old, changed=bool(changes), stale=stale)
        torch = old.environment.get("torch", "an unknown version") if stale and old is not None else ""
        item.stash[BASELINE_REQUESTS].append(BaselineRequest(str(path), test, key, name, status, entry_to_plain(entry), torch))
        mode = "new" if status == "missing" else "update"
        return BaselineRecord(
            status=status,  # type: ignore[arg-type]
            file=os.path.relpath(path, self._root),
            entry=f"{test} › {name} › {entry.key}",
            changes=changes,
            recorded_with="" if old is None else ", ".join(_differences(old, entry)),
            command=f"{command} --trainability-baseline={mode}",
            measures=tuple(entry.measures),
        )

    def _find(self, path: Path, test: str, name: str, entry: Entry) -> Entry | None:
        """Return the entry to compare with; what shall be recorded is compared with its own environment's only."""
        from ..checks.baseline_files import read_baselines
        from ..checks.baselines import find_entry

        if path not in self._files:
            self._files[path] = read_baselines(path)
        known = self._files[path].get(test, {}).get(name, {})
        return find_entry(known, entry) if self._mode == "check" else known.get(entry.key)

    def _status(self, entry: Entry, old: Entry | None, *, changed: bool, stale: bool) -> str:
        if old is None:
            return "missing" if self._mode == "check" else "recorded"
        if self._mode == "update" and (changed or stale or old.seeds != entry.seeds):
            return "updated"
        return "changed" if changed else "same"


def _differences(old: Entry, new: Entry) -> list[str]:
    """Return what was otherwise when the baseline was recorded."""
    before, after = ({**entry.environment, **entry.conditions, "threads": ""} for entry in (old, new))
    found = [f"{name} {value}" for name, value in before.items() if value != after.get(name)]
    if old.seeds != new.seeds:
        found.append(f"{len(old.seeds)} seeds")
    return found


BASELINES = pytest.StashKey[Baselines]()
