"""Writing the baselines once the session has ended, in the one process that writes, and naming what nobody asks for.

The workers of xdist measure and compare; what they ask for comes with the test reports, as plain data. A worker that crashes
takes with it what its running test measured, and nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .baselines import BaselineRequest
from .collected import COLLECTED, narrowing_options, without_group
from .options import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ..checks.baseline_files import Contents
    from ..records.reports import BaselineSummary

__all__ = ["BaselineWriter", "refuse_partial_prune"]


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


class BaselineWriter:
    """Takes what the tests ask for from their reports, and writes at the end of the session."""

    def __init__(self, config: pytest.Config) -> None:
        self._root = config.rootpath
        self._settings = config.stash[SETTINGS]
        self._collected = config.stash[COLLECTED]
        self._narrowing = narrowing_options(config)
        self._grouped = config.getoption("dist", None) == "loadgroup"
        self._measured = config.invocation_params.dir / (self._settings.measured or "")
        self._asked: dict[str, list[BaselineRequest]] = {}
        self._passed: dict[str, bool] = {}
        self._errors: list[str] = []
        self._files: dict[Path, Contents] = {}
        self.summary: BaselineSummary | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a test asked for; a test that is run again replaces its own."""
        test = without_group(report.nodeid, grouped=self._grouped)
        if report.when == "setup":
            self._asked.pop(test, None)
            self._passed[test] = False
        if report.when == "call":
            self._passed[test] = report.passed
        if report.failed:
            # In whatever phase; and in none where a worker of xdist has crashed.
            self._passed[test] = False
        asked = getattr(report, "trainability_asked", [])
        if asked:
            self._asked[test] = [BaselineRequest(**plain) for plain in asked]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker of xdist has collected."""
        self._collected.read_worker(node)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write, before the terminal reports, and let the session fail where that was not possible."""
        if not (self._settings.prune or self._asked or self._collected.modules):
            return
        refused = self._finish()
        if (self._errors or refused) and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _finish(self) -> bool:
        """Write and prune, and sum it up.

        Returns:
            Whether pruning was asked for and refused.
        """
        from ..records.reports import BaselineSummary

        written = tuple(self._write())
        if self._settings.measured is not None:
            self._leave_measured()
        partial = tuple(self._partial()) if self._settings.prune else ()
        unused, forgotten = list(self._unused()), self._forgotten()
        renamed = [self._renamed(*entry) for entry in unused]
        pruned = self._settings.prune and not partial and not self._errors
        if pruned:
            self._prune(unused, forgotten)
        self.summary = BaselineSummary(
            written=written,
            withheld=tuple(test for test, asked in sorted(self._asked.items()) if self._is_withheld(test, asked)),
            unused=tuple((self._shown(path), f"{t} › {n}", new) for (path, t, n), new in zip(unused, renamed)),
            forgotten=tuple(map(self._shown, forgotten)),
            stale=tuple(sorted({a.recorded_with for a in self._all() if a.recorded_with and a.status == "same"})),
            pruned=pruned,
            partial=partial,
            errors=tuple(self._errors),
        )
        return self._settings.prune and not pruned

    def _all(self) -> Iterator[BaselineRequest]:
        for asked in self._asked.values():
            yield from asked

    def _shown(self, path: Path) -> str:
        return os.path.relpath(path, self._root)

    # Writing ----------------------------------------------------------------------------------------------------------

    def _write(self) -> Iterator[tuple[str, int, int]]:
        """Write what is to be recorded or updated of tests that passed, and tell how many of each in which file."""
        passed = (asked for test, entries in self._asked.items() if self._passed[test] for asked in entries)
        for path, entries in _by_path(asked for asked in passed if asked.is_to_write):
            if self._change(path, lambda contents, entries=entries: _with(contents, entries)):  # type: ignore[misc]
                recorded = sum(asked.status == "recorded" for asked in entries)
                yield self._shown(path), recorded, len(entries) - recorded

    def _is_withheld(self, test: str, asked: Iterable[BaselineRequest]) -> bool:
        """Whether something of a test was not written, as the test did not pass."""
        return not self._passed[test] and any(one.is_to_write for one in asked)

    def _leave_measured(self) -> None:
        """Write all that was measured, changed or not, where ``accept`` and ``compare`` read it."""
        for path, entries in _by_path(self._all()):
            relative = self._shown(path)
            if relative.startswith(os.pardir):
                self._errors.append(f"{path}: only baselines below {self._root} can be left in {self._measured}.")
                continue
            target = self._measured / relative
            if target.resolve() == path.resolve():
                self._errors.append(
                    f"{path}: --trainability-measured must name a folder of its own, or what is recorded would be lost. Got "
                    f"{self._settings.measured!r}, which is the root."
                )
                continue
            try:
                target.parent.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                self._errors.append(f"{target}: what was measured could not be written. {error}.")
                continue
            self._change(target, lambda _, entries=entries: _with({}, entries))  # type: ignore[misc]

    def _change(self, path: Path, change: Callable[[Contents], Contents]) -> bool:
        """Change a file, or note why it could not be."""
        from ..checks.baseline_files import change_baselines
        from ..errors import BaselineError

        try:
            change_baselines(path, change)
        except BaselineError as error:
            self._errors.append(str(error))
            return False
        return True

    # What nobody asks for ---------------------------------------------------------------------------------------------

    def _partial(self) -> Iterator[str]:
        """Say why this session cannot tell all that is unused."""
        gone = len(self._collected.measuring.keys() - self._collected.selected)
        if gone:
            yield f"{gone} deselected"
        not_passed = sum(not self._passed.get(test, False) for test in self._collected.selected)
        if not_passed:
            yield f"{not_passed} skipped, failed or not run"

    def _unused(self) -> Iterator[tuple[Path, str, str]]:
        """Name the entries whose test is gone from its module, or has passed without asking for them."""
        from ..checks.baseline_files import baseline_path

        asked = {(one.path, one.test, one.name) for one in self._all()}
        for module in sorted(self._collected.modules) if not self._narrowing else []:
            path = baseline_path(module)
            contents = self._read(path)
            outcomes = self._outcomes(module) if contents else {}
            entries = ((test, name) for test, names in contents.items() for name in names)
            for test, name in sorted(entries):
                if outcomes.get(test, True) and (str(path), test, name) not in asked:
                    yield path, test, name

    def _read(self, path: Path) -> Contents:
        """Read a file once, after it was written. One that cannot be read has failed the tests that need it already."""
        from ..checks.baseline_files import read_baselines
        from ..errors import BaselineError

        if path not in self._files:
            try:
                self._files[path] = read_baselines(path)
            except BaselineError as error:
                if self._settings.prune:
                    self._errors.append(str(error))
                self._files[path] = {}
        return self._files[path]

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
        from ..checks.baseline_files import entry_to_plain

        old = [entry_to_plain(entry)["measures"] for entry in self._read(path).get(test, {}).get(name, {}).values()]
        new = (asked for asked in self._all() if asked.path == str(path) and asked.status in {"missing", "recorded"})
        return next((f"{asked.test} › {asked.name}" for asked in new if asked.entry["measures"] in old), "")

    def _prune(self, unused: Sequence[tuple[Path, str, str]], forgotten: Sequence[Path]) -> None:
        for path in {path for path, _, _ in unused}:
            gone = {(test, name) for where, test, name in unused if where == path}
            self._change(path, lambda contents, gone=gone: _without(contents, gone))  # type: ignore[misc]
        for path in forgotten:
            self._change(path, lambda _: {})


def _by_path(asked: Iterable[BaselineRequest]) -> Iterator[tuple[Path, list[BaselineRequest]]]:
    found: dict[str, list[BaselineRequest]] = {}
    for one in asked:
        found.setdefault(one.path, []).append(one)
    return ((Path(path), entries) for path, entries in sorted(found.items()))


def _with(contents: Contents, entries: Iterable[BaselineRequest]) -> Contents:
    from ..checks.baseline_files import entry_from_plain, with_entry

    for asked in entries:
        contents = with_entry(contents, asked.test, asked.name, entry_from_plain(asked.entry))
    return contents


def _without(contents: Contents, gone: set[tuple[str, str]]) -> Contents:
    kept = {t: {n: entries for n, entries in names.items() if (t, n) not in gone} for t, names in contents.items()}
    return {test: names for test, names in kept.items() if names}
