"""``check_baseline()`` in a test: the comparison with the committed file, and the status that the mode gives it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from .collected import BASELINE_FILE, node_id
from .options import SETTINGS
from .paths import from_text, relative_path, to_text
from .report_files import is_detailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..checks.baseline_entries import Entry
    from ..checks.baseline_files import Contents
    from ..records.reports import BaselineChange, BaselineRecord
    from ..records.values import ValueRecord

__all__ = ["BASELINES", "BASELINE_REQUESTS", "BaselineRequest", "Baselines"]


@dataclass(frozen=True, slots=True)
class BaselineRequest:
    """One entry that a test has compared with its baseline. It travels to the writing process with the test's report."""

    path: Path
    """The baseline file of the test module."""
    test: str
    """The test in the file: its node id without the module."""
    key: str
    """Identifies the measurement within the test."""
    name: str
    """Name of the measurement in the file."""
    status: str
    """Result of the comparison, as in :class:`~pytest_trainability.records.reports.BaselineRecord`."""
    entry: Entry
    """The measured numbers."""
    recorded_with: str
    """Version of torch of the baseline if it is another one, else empty."""

    @property
    def is_to_write(self) -> bool:
        """Whether the entry is to be written into the file."""
        return self.status in {"recorded", "updated"}

    def to_plain(self) -> dict[str, Any]:
        """Return dictionaries, lists, strings and numbers, which xdist can send to another process."""
        from ..checks.baseline_files import entry_to_plain
        from ..records.reports import plain

        fields = {name: getattr(self, name) for name in ("test", "key", "name", "status", "recorded_with")}
        found: dict[str, Any] = plain({**fields, "path": to_text(self.path), "entry": entry_to_plain(self.entry)})
        return found

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> BaselineRequest:
        """Rebuild a request from the result of :meth:`to_plain`. Its numbers are rounded as in a file."""
        from ..checks.baseline_files import entry_from_plain

        return cls(**{**given, "path": from_text(given["path"]), "entry": entry_from_plain(given["entry"])})


BASELINE_REQUESTS = pytest.StashKey[list[BaselineRequest]]()


class Baselines:
    """The baseline files of this session, each read once. Only the controller writes: see :mod:`.baseline_writer`."""

    def __init__(self, config: pytest.Config) -> None:
        self._mode = config.stash[SETTINGS].baseline
        self._writes_measured = config.stash[SETTINGS].measured is not None
        self._root = config.rootpath
        self._detailed = is_detailed(config)
        self._files: dict[Path, Contents] = {}

    def check(
        self,
        item: pytest.Item,
        command: str,
        key: str,
        name: str,
        entry: Entry,
        tolerances: Mapping[str, float],
        with_settings: Callable[[Entry], Entry],
    ) -> BaselineRecord:
        """Compare an entry of a test with its baseline, and note the request for the test's report.

        Args:
            item: The test.
            command: Command that repeats the test.
            key: Identifies the measurement within the test.
            name: Name of the measurement in the file.
            entry: The measured numbers.
            tolerances: Tolerances of the comparison, by measure.
            with_settings: Adds the constants in the code of modules, by another run of two seeds: where the baseline has some, or
                where they are written.

        Returns:
            The result of the comparison, for the record of the measurement.

        Raises:
            BaselineError: The file cannot be read.
            UsageError: Another measurement of the test has the same name.
        """
        from ..checks.baselines import compare, has_comparable_constants, other_constants

        requests = item.stash[BASELINE_REQUESTS]
        if any(request.name == name and request.key != key for request in requests):
            _refuse_name(item, name)
        path, test = _path_of(item), node_id(item).partition("::")[2]
        old = self._find(path, test, name, entry)
        changes = () if old is None else compare(old, entry, tolerances)
        writes = self._mode == "update" or (self._mode == "new" and old is None) or self._writes_measured
        if changes or writes or (old is not None and has_comparable_constants(old, entry)):
            entry = with_settings(entry)
            changes = () if old is None or not changes else compare(old, entry, tolerances)
        constants = other_constants(old, entry) if old is not None and not changes else ()
        torch = "" if old is None else _other_torch(old, entry)
        status = self._status(entry, old, changed=bool(changes), is_stale=bool(torch or constants))
        requests.append(BaselineRequest(path, test, key, name, status, entry, torch))
        return self._record(requests[-1], command, old, changes, constants)

    def expects(self, item: pytest.Item) -> bool:
        """Return whether a test will probably be compared: its file has an entry for it, or baselines are recorded.

        An invalid file is an error only where it is compared.
        """
        from ..checks.baseline_files import read_baselines
        from ..errors import BaselineError

        if self._mode != "check":
            return True
        path, test = _path_of(item), node_id(item).partition("::")[2]
        try:
            if path not in self._files:
                self._files[path] = read_baselines(path)
        except BaselineError:
            return False
        return test in self._files[path]

    def _find(self, path: Path, test: str, name: str, entry: Entry) -> Entry | None:
        """Return the baseline of an entry. Modes that write look in the environment of the entry only."""
        from ..checks.baseline_entries import find_entry
        from ..checks.baseline_files import read_baselines

        if path not in self._files:
            self._files[path] = read_baselines(path)
        known = self._files[path].get(test, {}).get(name, {})
        return find_entry(known, entry) if self._mode == "check" else known.get(entry.key)

    def _status(self, entry: Entry, old: Entry | None, *, changed: bool, is_stale: bool) -> str:
        if old is None:
            return "missing" if self._mode == "check" else "recorded"
        pairs = ((entry.modules, old.modules), (entry.operations, old.operations), (entry.settings, old.settings))
        is_old = any(now and not before for now, before in pairs) or (old.tables is None and entry.tables is not None)
        if self._mode == "update" and (changed or is_stale or is_old or old.seeds != entry.seeds):
            return "updated"
        return "changed" if changed else "same"

    def _record(
        self,
        request: BaselineRequest,
        command: str,
        old: Entry | None,
        changes: tuple[BaselineChange, ...],
        constants: tuple[BaselineChange, ...],
    ) -> BaselineRecord:
        """Return the record of a comparison for the test's report."""
        from ..checks.baseline_entries import CUSTOM_FUNCTIONS
        from ..records.reports import BaselineRecord
        from ..report.changes import constants_text

        mode = "new" if request.status == "missing" else "update"
        return BaselineRecord(
            status=request.status,  # type: ignore[arg-type]
            file=relative_path(request.path, self._root),
            entry=f"{request.test} › {request.name} › {request.entry.key}",
            changes=changes,
            recorded_with="" if old is None else ", ".join(_differences(old, request.entry)),
            command=f"{command} --trainability-baseline={mode}",
            measures=tuple(request.entry.measures),
            model_compared=old is not None and bool(old.modules and request.entry.modules),
            operations_compared=old is not None and bool(old.operations and request.entry.operations),
            custom_functions=tuple(filter(None, request.entry.conditions.get(CUSTOM_FUNCTIONS, "").split(", "))),
            remarks=(constants_text(constants),) if constants and request.status == "same" else (),
            old_values=() if old is None or not self._detailed else _values_of(old),
        )


def _path_of(item: pytest.Item) -> Path:
    """Return the file with the baselines of a test: that of its module, unless the test names another one."""
    from ..checks.baseline_files import baseline_path

    return item.stash.get(BASELINE_FILE, None) or baseline_path(item.path)


def _values_of(entry: Entry) -> tuple[ValueRecord, ...]:
    """Return the values of a baseline for a file that shows them."""
    from ..measurement.values import old_value_records

    return old_value_records(entry)


def _refuse_name(item: pytest.Item, name: str) -> NoReturn:
    """Refuse a second baseline of the same name in one test."""
    from ..errors import UsageError

    msg = (
        f"the baselines of a test must have different names. Two measurements of {item.nodeid} have the name {name!r}: "
        "pass name= to one of them."
    )
    raise UsageError(msg)


def _other_torch(old: Entry, new: Entry) -> str:
    """Return the version of torch that recorded the baseline, if it is not the current version."""
    version = old.environment.get("torch", "an unknown version")
    return "" if version == new.environment["torch"] else version


def _differences(old: Entry, new: Entry) -> list[str]:
    """Return the conditions of the baseline that differ from the current ones, without those that are compared."""
    from ..checks.baseline_entries import CUT_OFF, OUTPUT

    before, after = ({**entry.environment, **entry.conditions, "threads": ""} for entry in (old, new))
    compared = {OUTPUT, CUT_OFF}
    found = [f"{name} {v}" for name, v in before.items() if v != after.get(name) and name not in compared]
    if old.seeds != new.seeds:
        found.append(f"{len(old.seeds)} seeds")
    return found


BASELINES = pytest.StashKey[Baselines]()
