"""Writing the baselines at the end of a session, in one process, and finding entries that no test uses.

Workers of xdist measure and compare. Their requests arrive with the test reports, as plain data. If a worker crashes, only the
request of its running test is lost.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .baselines import BaselineRequest
from .collected import COLLECTED, narrowing_options, without_group, without_parameters
from .options import SETTINGS
from .paths import relative_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from ..checks.baseline_entries import Entry
    from ..checks.baseline_files import Contents
    from ..records.reports import BaselineSummary

__all__ = ["BaselineWriter", "refuse_partial_prune"]


def refuse_partial_prune(config: pytest.Config) -> None:
    """Refuse to prune in a session whose options leave tests out.

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
    """Collects the requests of all tests from their reports, and writes the files at the end of the session."""

    def __init__(self, config: pytest.Config) -> None:
        self._root = config.rootpath
        self._settings = config.stash[SETTINGS]
        self._collected = config.stash[COLLECTED]
        self._narrowing = narrowing_options(config)
        self._sees_all_files = config.args_source is not pytest.Config.ArgsSource.ARGS
        self._grouped = config.getoption("dist", None) == "loadgroup"
        self._measured = config.invocation_params.dir / (self._settings.measured or "")
        self._requests: dict[str, list[BaselineRequest]] = {}
        self._passed: dict[str, bool] = {}
        self._errors: list[str] = []
        self._files: dict[Path, Contents] = {}
        self.summary: BaselineSummary | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Store the requests of a test. A test that runs again replaces its earlier requests."""
        test = without_group(report.nodeid, grouped=self._grouped)
        if report.when == "setup":
            self._requests.pop(test, None)
            self._passed[test] = False
        if report.when == "call":
            self._passed[test] = report.passed
        if report.failed:
            # In any phase, and without a phase after the crash of an xdist worker.
            self._passed[test] = False
        requests = getattr(report, "trainability_baseline_requests", [])
        if requests:
            self._requests[test] = [BaselineRequest.from_plain(plain) for plain in requests]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over the tests and files that a worker of xdist has collected."""
        self._collected.read_worker(node)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write before the terminal reports, and fail the session if writing or pruning was not possible."""
        if not (self._settings.prune or self._requests or self._collected.files):
            return
        refused = self._finish()
        if (self._errors or refused) and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _finish(self) -> bool:
        """Write, prune and fill the summary.

        Returns:
            Whether pruning was requested and refused.
        """
        from ..records.reports import BaselineSummary

        written = tuple(self._write())
        if self._settings.measured is not None:
            self._write_measured()
        partial_session = tuple(self._partial()) if self._settings.prune else ()
        unused, forgotten = list(self._unused()), self._forgotten()
        renamed = list(self._renamed(unused))
        pruned = self._settings.prune and not partial_session and not self._errors
        if pruned:
            self._prune(unused, forgotten)
        self.summary = BaselineSummary(
            written=written,
            withheld=tuple(sorted(filter(self._is_withheld, self._requests))),
            unused=tuple((self._shown(path), f"{t} › {n}", new) for (path, t, n), new in zip(unused, renamed)),
            forgotten=tuple(map(self._shown, forgotten)),
            stale=tuple(sorted({r.recorded_with for r in self._all() if r.recorded_with and r.status == "same"})),
            pruned=pruned,
            partial=partial_session,
            errors=tuple(self._errors),
        )
        return self._settings.prune and not pruned

    def _all(self) -> Iterator[BaselineRequest]:
        for requests in self._requests.values():
            yield from requests

    def _shown(self, path: Path) -> str:
        return relative_path(path, self._root)

    # Writing ----------------------------------------------------------------------------------------------------------

    def _write(self) -> Iterator[tuple[str, int, int]]:
        """Write the new and updated entries of tests that passed; yield each file with the numbers of both."""
        passed = (request for test, requests in self._requests.items() if self._passed[test] for request in requests)
        for path, requests in _by_path(request for request in passed if request.is_to_write):
            if self._change(path, partial(_with, requests)):
                recorded = sum(request.status == "recorded" for request in requests)
                yield self._shown(path), recorded, len(requests) - recorded

    def _is_withheld(self, test: str) -> bool:
        """Whether entries of a test were not written because the test did not pass."""
        return not self._passed[test] and any(request.is_to_write for request in self._requests[test])

    def _write_measured(self) -> None:
        """Write all measured entries, changed or not, into the folder that ``accept`` and ``compare`` read."""
        for path, requests in _by_path(self._all()):
            shown = self._shown(path)
            target = self._measured / shown
            if shown.startswith(os.pardir) or Path(shown).is_absolute():
                self._errors.append(f"{path}: {self._measured} can hold only baselines below {self._root}.")
            elif target.resolve() == path.resolve():
                self._errors.append(
                    f"{path}: --trainability-measured must name a separate folder, or the recorded numbers would be lost. Got "
                    f"{self._settings.measured!r}, which is the root."
                )
            elif self._make_folder(target):
                self._change(target, partial(_only, requests))

    def _make_folder(self, target: Path) -> bool:
        """Make the folder of a test module, or note the reason why this is not possible."""
        try:
            target.parent.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._errors.append(f"{target}: the measured numbers could not be written. {error}.")
            return False
        return True

    def _change(self, path: Path, change: Callable[[Contents], Contents]) -> bool:
        """Change a file, or note the reason why this is not possible."""
        from ..checks.baseline_files import change_baselines
        from ..errors import BaselineError

        try:
            change_baselines(path, change)
        except BaselineError as error:
            self._errors.append(str(error))
            return False
        return True

    # Unused entries ---------------------------------------------------------------------------------------------------

    def _partial(self) -> Iterator[str]:
        """Yield the reasons why this session cannot find all unused entries."""
        deselected = len(self._collected.measuring - self._collected.selected)
        if deselected:
            yield f"{deselected} deselected"
        not_passed = sum(not self._passed.get(test, False) for test in self._collected.selected)
        if not_passed:
            yield f"{not_passed} skipped, failed or not run"

    def _unused(self) -> Iterator[tuple[Path, str, str]]:
        """Yield file, test and name of each entry whose test does not exist, or has passed without a request for it."""
        requested = {(request.path, request.test, request.name) for request in self._all()}
        not_passed = self._not_passed()
        for path, files in sorted(self._used_by().items()) if not self._narrowing else []:
            contents = self._read(path)
            open_tests = {test for file in files for test in not_passed.get(file, ())}
            entries = ((test, name) for test, names in contents.items() for name in names)
            for test, name in sorted(entries):
                is_collected = all(_is_of_doctest(test, file) in self._collected.files[file] for file in files)
                may_ask = without_parameters(test) in open_tests or not is_collected
                if not may_ask and (path, test, name) not in requested:
                    yield path, test, name

    def _used_by(self) -> dict[Path, list[Path]]:
        """Return the collected files whose tests may use a baseline file, by its path.

        Files that tables name belong to no folder. So tables of other folders may use them, unless all have been collected.
        """
        from ..checks.baseline_files import baseline_path

        found: dict[Path, list[Path]] = {}
        for file in sorted(self._collected.files):
            named = self._collected.named.get(file, set()) if self._sees_all_files else set()
            for path in {baseline_path(file), *named}:
                found.setdefault(path, []).append(file)
        return found

    def _read(self, path: Path) -> Contents:
        """Read a file once, after it was written. An unreadable file has already failed the tests that use it."""
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

    def _not_passed(self) -> dict[Path, set[str]]:
        """Return the tests of each file, without parameters, that have not passed: they may still ask for an entry.

        A test that takes the fixture while it runs is not known to measure. A test that is skipped because its list of
        parameters is empty has asked for entries with other parameters.
        """
        found: dict[Path, set[str]] = {}
        for test, path in self._collected.tests.items():
            if not self._passed.get(test, False):
                found.setdefault(path, set()).add(without_parameters(test.partition("::")[2]))
        return found

    def _forgotten(self) -> list[Path]:
        """Return the baseline files, next to collected files, whose test file does not exist."""
        from ..checks.baseline_files import FOLDER, find_test_file

        folders = {file.parent for file in self._collected.files}
        files = {path for folder in folders for path in (folder / FOLDER).glob("*.json")}
        return sorted(
            path for path in files - {request.path for request in self._all()} if find_test_file(path) is None
        )

    def _renamed(self, unused: Collection[tuple[Path, str, str]]) -> Iterator[str]:
        """Yield for each unused entry the first one without a baseline that has the same numbers, of the same file."""
        paths, new = {path for path, _, _ in unused}, dict[tuple[Path, str], str]()
        for request in self._all():
            if request.path in paths and request.status in {"missing", "recorded"}:
                new.setdefault((request.path, _numbers(request.entry)), f"{request.test} › {request.name}")
        for path, test, name in unused:
            old = self._read(path).get(test, {}).get(name, {}).values() if new else ()
            yield next((new[key] for entry in old if (key := (path, _numbers(entry))) in new), "")

    def _prune(self, unused: Collection[tuple[Path, str, str]], forgotten: Iterable[Path]) -> None:
        for path in {path for path, _, _ in unused}:
            self._change(path, partial(_without, {(test, name) for where, test, name in unused if where == path}))
        for path in forgotten:
            self._change(path, partial(_only, []))


def _numbers(entry: Entry) -> str:
    """Return the measured numbers of an entry as text, in which NaN equals NaN."""
    from ..checks.baseline_files import entry_to_plain

    return json.dumps(entry_to_plain(entry)["measures"], sort_keys=True)


def _is_of_doctest(test: str, file: Path) -> bool:
    """Whether an entry belongs to a doctest. The name of a Python test has no dot, and other files hold doctests only."""
    if file.suffix != ".py" or "." in without_parameters(test):
        return True
    # The doctest of a module has the name of the module, as a function of it may have.
    try:
        return test == file.stem and b"getfixture(" in file.read_bytes()
    except OSError:
        return True


def _by_path(requests: Iterable[BaselineRequest]) -> Iterator[tuple[Path, list[BaselineRequest]]]:
    found: dict[Path, list[BaselineRequest]] = {}
    for request in requests:
        found.setdefault(request.path, []).append(request)
    return iter(sorted(found.items()))


def _with(requests: Iterable[BaselineRequest], contents: Contents) -> Contents:
    """Return the contents of a file with the requested entries."""
    from ..checks.baseline_files import with_entries

    return with_entries(contents, ((request.test, request.name, request.entry) for request in requests))


def _only(requests: Iterable[BaselineRequest], contents: Contents) -> Contents:
    """Return the requested entries in place of the contents of a file."""
    return _with(requests, {})


def _without(unused: set[tuple[str, str]], contents: Contents) -> Contents:
    """Return the contents of a file without unused entries, which are given by test and name."""
    kept = {t: {n: entries for n, entries in names.items() if (t, n) not in unused} for t, names in contents.items()}
    return {test: names for test, names in kept.items() if names}
