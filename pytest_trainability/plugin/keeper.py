"""Writing the baselines once the session has ended, in the one process that writes, and naming what nobody asks for.

The workers of xdist measure and compare; their entries come with the test reports, as plain data. A worker that crashes
takes with it what its running test measured, and nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .collection import MARKER
from .options import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..checks.baseline_files import Contents
    from ..records import BaselineSummary

__all__ = ["COLLECTED", "Collected", "Keeper", "narrowing_options", "refuse_partial_prune", "send_collected"]

_COLLECTED = "trainability_collected"


class Collected:
    """What this process has collected: test modules, tests that measure, and which of them were left to run."""

    def __init__(self) -> None:
        self.modules: set[Path] = set()
        self.measuring: dict[str, Path] = {}
        self.selected: set[str] = set()

    def add_module(self, path: Path) -> None:
        """Note a module that could be imported."""
        self.modules.add(path)

    def add_test(self, item: pytest.Item) -> None:
        """Note a test that measures, before anything deselects it."""
        if item.get_closest_marker(MARKER) is not None:
            self.measuring[item.nodeid] = item.path

    def select(self, items: Sequence[pytest.Item]) -> None:
        """Note what is left to run, whoever took the rest away."""
        self.selected = {item.nodeid for item in items if item.nodeid in self.measuring}

    def to_plain(self) -> dict[str, Any]:
        """Return what the controller of xdist, which collects nothing, wants to know."""
        from ..checks.baseline_files import FOLDER

        modules = [str(path) for path in self.modules if (path.parent / FOLDER).is_dir()]
        measuring = {test: str(path) for test, path in self.measuring.items()}
        return {"modules": modules, "measuring": measuring, "selected": sorted(self.selected)}

    def read_plain(self, plain: Mapping[str, Any]) -> None:
        """Take over what a worker has collected."""
        self.modules |= {Path(path) for path in plain["modules"]}
        self.measuring.update({test: Path(path) for test, path in plain["measuring"].items()})
        self.selected |= set(plain["selected"])


COLLECTED = pytest.StashKey[Collected]()


def narrowing_options(config: pytest.Config) -> list[str]:
    """Return the options of this session that keep some tests of a module from running."""
    options = {
        "-k": "keyword",
        "-m": "markexpr",
        "--deselect": "deselect",
        "--lf": "lf",
        "--sw": "stepwise",
        "--sw-skip": "stepwise_skip",
    }
    given = [option for option, dest in options.items() if config.getoption(dest, None)]
    return [*given, *(["a node id"] if any("::" in str(argument) for argument in config.args) else [])]


def refuse_partial_prune(config: pytest.Config) -> None:
    """Refuse to prune in a session that cannot see every test.

    Raises:
        pytest.UsageError: An option narrows the session.
    """
    narrowing = narrowing_options(config)
    if config.stash[SETTINGS].prune and narrowing:
        msg = (
            "--trainability-prune must see every test, or it would remove baselines that are in use. Leave out "
            f"{', '.join(narrowing)}."
        )
        raise pytest.UsageError(msg)


class Keeper:
    """Takes the entries from the reports, and writes them at the end of the session."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._settings = config.stash[SETTINGS]
        self._collected = config.stash[COLLECTED]
        self._entries: dict[str, list[dict[str, Any]]] = {}
        self._passed: dict[str, bool] = {}
        self.summary: BaselineSummary | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a test asked for; a test that is run again replaces its own."""
        if report.when == "setup":
            self._entries.pop(report.nodeid, None)
            self._passed[report.nodeid] = False
        if report.when == "call":
            self._passed[report.nodeid] = report.passed
        entries = getattr(report, "trainability_entries", [])
        if entries:
            self._entries[report.nodeid] = entries

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker has collected; one that crashed has nothing to say, but the others collected the same."""
        plain = getattr(node, "workeroutput", {}).get(_COLLECTED)
        if plain:
            self._collected.read_plain(plain)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write, before the terminal reports."""
        if self._settings.prune or self._entries or self._collected.modules:
            self._finish(session)

    def _finish(self, session: pytest.Session) -> None:
        from ..records import BaselineSummary

        errors: list[str] = []
        written = list(self._write(errors))
        if self._settings.measured is not None:
            self._leave_measured(Path(self._settings.measured), errors)
        partial = tuple(self._partial())
        unused = {} if narrowing_options(self._config) else dict(self._unused(errors))
        forgotten = self._forgotten()
        pruned = False
        if self._settings.prune and not partial and not errors:
            self._prune(unused, forgotten, errors)
            pruned = True
        self.summary = BaselineSummary(
            written=tuple(written),
            withheld=tuple(self._withheld()),
            unused=tuple(
                (self._shown(path), f"{test} › {name}", self._renamed(path, test, name))
                for path, entries in sorted(unused.items())
                for test, name in entries
            ),
            forgotten=tuple(map(self._shown, forgotten)),
            stale=tuple(
                sorted({entry["stale"] for entry in self._all() if entry["stale"] and entry["status"] == "same"})
            ),
            pruned=pruned,
            partial=partial if self._settings.prune else (),
            errors=tuple(errors),
        )
        refused = self._settings.prune and not pruned
        if (errors or refused) and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _all(self) -> Iterator[dict[str, Any]]:
        for entries in self._entries.values():
            yield from entries

    def _write(self, errors: list[str]) -> Iterator[tuple[str, int, int]]:
        """Write what is to be recorded or updated of tests that passed, and tell how many of each in which file."""
        by_path: dict[str, list[dict[str, Any]]] = {}
        for nodeid, entries in self._entries.items():
            for entry in entries:
                if entry["status"] in {"recorded", "updated"} and self._passed[nodeid]:
                    by_path.setdefault(entry["path"], []).append(entry)
        for path, entries in sorted(by_path.items()):
            if self._changed(Path(path), entries, errors, keep=True):
                counts = (sum(e["status"] == status for e in entries) for status in ("recorded", "updated"))
                yield (self._shown(Path(path)), *counts)

    def _changed(self, path: Path, entries: Sequence[Mapping[str, Any]], errors: list[str], *, keep: bool) -> bool:
        """Add entries to those of a file, or replace all that was there."""
        from ..checks.baseline_files import change_baselines, entry_from_plain, with_entry
        from ..errors import BaselineError

        def change(contents: Contents) -> Contents:
            found: Contents = contents if keep else {}
            for entry in entries:
                found = with_entry(found, entry["test"], entry["name"], entry_from_plain(entry["entry"]))
            return found

        try:
            change_baselines(path, change)
        except BaselineError as error:
            errors.append(str(error))
            return False
        return True

    def _leave_measured(self, folder: Path, errors: list[str]) -> None:
        """Write all that was measured, changed or not, where ``accept`` and ``compare`` read it."""
        by_path: dict[str, list[dict[str, Any]]] = {}
        for entry in self._all():
            by_path.setdefault(entry["path"], []).append(entry)
        for path, entries in sorted(by_path.items()):
            relative = os.path.relpath(path, self._config.rootpath)
            if relative.startswith(os.pardir):
                errors.append(f"{path}: only baselines below {self._config.rootpath} can be left in {folder}.")
                continue
            target = self._config.invocation_params.dir / folder / relative
            try:
                target.parent.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                errors.append(f"{target}: what was measured could not be written. {error}.")
                continue
            self._changed(target, entries, errors, keep=False)

    # What nobody asks for ---------------------------------------------------------------------------------------------

    def _partial(self) -> Iterator[str]:
        """Say why this session cannot tell which baselines are unused."""
        yield from narrowing_options(self._config)
        gone = len(self._collected.measuring.keys() - self._collected.selected)
        if gone:
            yield f"{gone} deselected"
        not_passed = sum(not self._passed.get(test, False) for test in self._collected.selected)
        if not_passed:
            yield f"{not_passed} skipped, failed or not run"

    def _unused(self, errors: list[str]) -> Iterator[tuple[Path, list[tuple[str, str]]]]:
        """Name the entries whose test is gone from its module, or has passed without asking for them."""
        from ..checks.baseline_files import baseline_path, read_baselines
        from ..errors import BaselineError

        asked = {(entry["path"], entry["test"], entry["name"]) for entry in self._all()}
        for module in sorted(self._collected.modules):
            path = baseline_path(module)
            if not path.exists():
                continue
            try:
                contents = read_baselines(path)
            except BaselineError as error:
                if str(error) not in errors:
                    errors.append(str(error))
                continue
            outcomes = self._outcomes(module)
            entries = [(test, name) for test, names in contents.items() for name in names if outcomes.get(test, True)]
            found = [(test, name) for test, name in entries if (str(path), test, name) not in asked]
            if found:
                yield path, sorted(found)

    def _outcomes(self, module: Path) -> dict[str, bool]:
        """Return the tests of a module that measure, and whether each has passed."""
        tests = (test for test, path in self._collected.measuring.items() if path == module)
        return {test.partition("::")[2]: self._passed.get(test, False) for test in tests}

    def _forgotten(self) -> list[Path]:
        """Return the baselines beside collected modules whose own module is gone."""
        from ..checks.baseline_files import FOLDER, module_of

        folders = {module.parent for module in self._collected.modules}
        files = (path for folder in folders for path in (folder / FOLDER).glob("*.json"))
        return sorted(path for path in files if not module_of(path).exists())

    def _renamed(self, path: Path, test: str, name: str) -> str:
        """Return the entry without a baseline that has the very numbers of an unused one."""
        from ..checks.baseline_files import entry_to_plain, read_baselines
        from ..errors import BaselineError

        try:
            old = [entry_to_plain(e)["measures"] for e in read_baselines(path).get(test, {}).get(name, {}).values()]
        except BaselineError:
            return ""
        for entry in self._all():
            new = entry["path"] == str(path) and entry["status"] in {"missing", "recorded"}
            if new and entry["entry"]["measures"] in old:
                return f"{entry['test']} › {entry['name']}"
        return ""

    def _prune(
        self, unused: Mapping[Path, Sequence[tuple[str, str]]], forgotten: Sequence[Path], errors: list[str]
    ) -> None:
        from ..checks.baseline_files import change_baselines
        from ..errors import BaselineError

        def without(gone: Sequence[tuple[str, str]]) -> Any:
            def change(contents: Contents) -> Contents:
                kept = {t: {n: e for n, e in names.items() if (t, n) not in gone} for t, names in contents.items()}
                return {test: names for test, names in kept.items() if names}

            return change

        try:
            for path, gone in unused.items():
                change_baselines(path, without(gone))
            for path in forgotten:
                change_baselines(path, lambda contents: {})
        except BaselineError as error:
            errors.append(str(error))

    def _withheld(self) -> Iterator[str]:
        """Name the tests whose entries were not written as they did not pass."""
        for nodeid, entries in self._entries.items():
            if not self._passed[nodeid] and any(entry["status"] in {"recorded", "updated"} for entry in entries):
                yield nodeid

    def _shown(self, path: Path) -> str:
        return os.path.relpath(path, self._config.rootpath)


def send_collected(config: pytest.Config) -> None:
    """Let the controller of xdist know what this worker has collected."""
    config.workeroutput[_COLLECTED] = config.stash[COLLECTED].to_plain()  # type: ignore[attr-defined]
