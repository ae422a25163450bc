"""A plugin of pytest that notes where a session spends its time and how much memory it takes. ``benchmarks/suite.py`` loads it.

Each process of the session writes one JSON file into the folder that the environment variable ``SUITE_PROBE`` names. Seconds are
those of the process's processor and belong to the innermost part: the build of a model inside of a run counts as a build only.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

PARTS = ("start", "collection", "pytest", "build", "run", "judging", "baseline", "report")
"""Parts of a session: the start and the imports, the collection, pytest itself, and the parts of measurements."""
COUNTED_EVERY = 10
"""Tests between two looks at the memory."""
WRAPPED = (
    ("pytest_trainability.engine.runs.building", "_build", "build"),
    ("pytest_trainability.measurement.seed_runs", "ensemble", "run"),
    ("pytest_trainability.measurement", "measure_in", "judging"),
    ("pytest_trainability.measurement.result:Measurement", "check", "judging"),
    ("pytest_trainability.measurement.result:Measurement", "check_baseline", "baseline"),
    ("pytest_trainability.plugin.baseline_writer:BaselineWriter", "pytest_runtest_logreport", "baseline"),
    ("pytest_trainability.plugin.baseline_writer:BaselineWriter", "pytest_sessionfinish", "baseline"),
    ("pytest_trainability.plugin.baseline_writer:BaselineWriter", "pytest_testnodedown", "baseline"),
    ("pytest_trainability.plugin.summary:Summary", "pytest_runtest_logreport", "report"),
    ("pytest_trainability.plugin.summary:Summary", "pytest_terminal_summary", "report"),
    ("pytest_trainability.plugin.reports:ReportWriter", "pytest_sessionfinish", "report"),
    ("pytest_trainability.measurement.result:Measurement", "_report", "report"),
    ("pytest_trainability.measurement.seed_runs", "is_settled", "judging"),
)
"""Module (and class), function, and the part of the session that it belongs to."""
HOOKS = "pytest_trainability.plugin."
"""Modules that pytest loads in any session. The others are imported when a test measures."""


class Clock:
    """Seconds of the processor by part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.seconds["start"] = time.process_time()
        self.part, self.since = "pytest", time.process_time()

    def switch(self, part: str) -> str:
        """Begin a part; return the one that has ended."""
        now, before = time.process_time(), self.part
        self.seconds[before] += now - self.since
        self.part, self.since = part, now
        return before

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Let a block count as a part."""
        before = self.switch(part)
        try:
            yield
        finally:
            self.switch(before)

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Let the calls of a function count as a part."""
        function: Callable[..., Any] = getattr(owner, name)

        @wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.during(part):
                return function(*arguments, **options)

        setattr(owner, name, timed)


def resident(entry: str) -> float:
    """Return the resident memory of this process (``VmRSS``) or its peak (``VmHWM``) in MB."""
    found = re.search(rf"{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else 0.0


class Probe:
    """Notes the time and the memory of one process."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.began, self.finished, self.wrapped = time.perf_counter(), 0, False
        self.memory: list[tuple[int, float, float]] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self) -> None:
        """Wrap the hooks of classes before these are registered."""
        self._wrap(hooks=True)

    def _wrap(self, *, hooks: bool) -> None:
        for path, name, part in WRAPPED:
            module, _, owner = path.partition(":")
            if module.startswith(HOOKS) == hooks:
                found = importlib.import_module(module)
                self.clock.wrap(getattr(found, owner) if owner else found, name, part)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self) -> Generator[None, Any, Any]:
        """Count the collection, which imports torch with the first file of tests."""
        with self.clock.during("collection"):
            return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self) -> None:
        """Wrap what measures before the first test. By then its file has imported torch."""
        if not self.wrapped and "torch" in sys.modules:
            self.wrapped = True
            with self.clock.during("collection"):
                self._wrap(hooks=False)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        """Count what makes the report of a test."""
        with self.clock.during("report"):
            return (yield)

    def pytest_runtest_logfinish(self) -> None:
        """Look at the memory now and then."""
        self.finished += 1
        if self.finished % COUNTED_EVERY == 0:
            self.memory.append((self.finished, resident("VmRSS"), resident("VmHWM")))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the file of a worker of xdist, which is ended soon after."""
        if hasattr(session.config, "workerinput"):
            self._write()

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Write the file of any other process."""
        if not hasattr(config, "workerinput"):
            self._write()

    def _write(self) -> None:
        self.clock.switch("pytest")
        found = {
            "seconds": self.clock.seconds,
            "wall": time.perf_counter() - self.began,
            "tests": self.finished,
            "memory": [*self.memory, (self.finished, resident("VmRSS"), resident("VmHWM"))],
            "torch": "torch" in sys.modules,
        }
        name = os.environ.get("PYTEST_XDIST_WORKER", "main")
        Path(os.environ["SUITE_PROBE"], f"{name}.json").write_text(json.dumps(found), encoding="utf-8")


class Records:
    """Saves what the report of a test carries, or lets every test of a session carry the same."""

    def __init__(self, config: pytest.Config) -> None:
        self.save, self.kind = config.getoption("suite_save"), config.getoption("suite_kind")
        path = config.getoption("suite_load")
        self.sample = json.loads(Path(path).read_text(encoding="utf-8")) if path else None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Save or carry."""
        report = yield
        if report.when == "call" and self.save:
            names = ("trainability", "trainability_baseline_requests")
            Path(self.save).write_text(json.dumps({name: getattr(report, name) for name in names}), encoding="utf-8")
        if report.when == "call" and self.sample:
            self._carry(item, report)
        return report

    def _carry(self, item: pytest.Item, report: Any) -> None:
        """Attach the records of this test, which hold or not."""
        from pytest_trainability.plugin.paths import to_text

        (record,), (asked,) = (json.loads(json.dumps(part)) for part in self.sample.values())
        record |= {"test": item.nodeid, "file": item.path.name}
        folder, test = item.path.parent / "__trainability__", item.nodeid.partition("::")[2]
        asked |= {"path": to_text(folder / f"{item.path.stem}.json"), "test": test, "status": "same"}
        if self.kind in {"recorded", "missing"}:
            record["baseline"]["status"] = asked["status"] = self.kind
        if self.kind == "errors":
            error = {
                "test": item.nodeid,
                "error": "ModelError",
                "message": "the model cannot be run",
                "file": item.path.name,
            }
            report.trainability_error = {**error, "line": 1}
        if self.kind in {"fails", "errors", "missing"}:
            report.outcome, report.longrepr = "failed", "the check has failed"
        if self.kind == "fails":
            record["verdicts"][0]["holds"] = False
        if self.kind != "errors":
            report.trainability = [record]
        report.trainability_baseline_requests = [] if self.kind in {"errors", "unused"} else [asked]


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the probe."""
    for name in ("save", "load", "kind"):
        parser.addoption(f"--suite-{name}", dest=f"suite_{name}", default=None)
    pluginmanager.register(Probe(), "suite-probe-of-this-process")


def pytest_configure(config: pytest.Config) -> None:
    """Register what carries records."""
    config.pluginmanager.register(Records(config), "suite-records")
