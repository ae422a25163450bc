"""The pytest plugin: hooks that delegate.

pytest loads this module in every session on a machine where the plugin is installed, and loading it must stay cheap. The modules
that measure and judge are imported when a test measures.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from . import command_line, options, report_files
from .baseline_writer import BaselineWriter, refuse_partial_prune
from .baselines import BASELINE_REQUESTS, BASELINES, Baselines
from .ci import add_properties
from .collected import COLLECTED, Collected, node_id, send_collected
from .collection import (
    MARKER,
    mark_users,
    refuse_invalid,
    refuse_unmeasured,
    usage_error_of_worker,
    validate_markers,
)
from .cures import CureWriter
from .extensions import forget_measures
from .fixture import CALLED, JUDGED, MEASUREMENTS, RECORDS, TAKEN, explain_assertions, trainability
from .gate import add_files_of_root, gate_file
from .progress import PROGRESS, Progress
from .randomness import preserved_generators, seed_generators, seeded_fixture, seeded_module
from .reports import ReportWriter
from .shared import SHARED, SharedMeasurements, judge_shared, trainability_factory, wide_scope_explained
from .suggestions import SuggestionWriter, suggestions_for
from .summary import SUMMARY, Summary
from .swallowed import UNEXPECTED, Unexpected, refuse_swallowed
from .unmeasured import NOT_MEASURED, error_of, explained_checks, shorten_summary

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

__all__ = ["trainability", "trainability_factory"]

SENT = pytest.StashKey["list[Any]"]()
"""The records of a test that its last report carried."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the command line options and the ini values of the same names."""
    options.declare(parser)
    command_line.declare(parser.getgroup(options.PREFIX))


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks by which other plugins extend this one."""
    from . import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and refuse invalid settings before any test runs."""
    config.addinivalue_line(
        "markers",
        "trainability(**bounds): bounds that every model measured in this test must satisfy, such as "
        "lyapunov_max=within(0.05), or preset= for the bounds of a family; also seeds=, device=, dtype=, tolerances=. Tests that "
        "use the trainability fixture get the marker automatically.",
    )
    options.read(config)
    command_line.refuse_incomplete(config)
    command_line.add_model(config)
    add_files_of_root(config)
    report_files.refuse_unusable(config)
    refuse_partial_prune(config)
    config.stash[BASELINES] = Baselines(config)
    config.stash[COLLECTED] = Collected()
    config.stash[SHARED] = SharedMeasurements()
    config.stash[PROGRESS] = Progress(config)
    config.pluginmanager.register(config.stash[PROGRESS], "trainability-progress")
    if not hasattr(config, "workerinput"):
        suggestions = SuggestionWriter()
        if config.stash[options.SETTINGS].suggest:
            # What is registered first prints last.
            config.pluginmanager.register(suggestions, "trainability-suggestions")
        writer = BaselineWriter(config)
        config.pluginmanager.register(writer, "trainability-baseline-writer")
        summary = config.stash[SUMMARY] = Summary(config, writer)
        config.pluginmanager.register(summary, "trainability-summary")
        config.pluginmanager.register(ReportWriter(config, summary, suggestions), "trainability-reports")
        if config.stash[options.SETTINGS].cure == "patch":
            config.pluginmanager.register(CureWriter(config), "trainability-cures")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the measures that other plugins have added."""
    forget_measures(config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Seed torch while a module that measures is imported: it draws the same numbers in every session."""
    with seeded_module(collector):
        report = yield
    collector.config.stash[COLLECTED].add_file(collector, complete=report.passed)
    return report


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect the tests that a file holds as tables."""
    return gate_file(file_path, parent)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let ``-m trainability`` select every test that uses the fixture."""
    mark_users(item)
    item.config.stash[COLLECTED].add_test(item)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse unknown measures and invalid bounds of the session, and note those of each test, before the first one runs."""
    validate_markers(config, items)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note the tests that were selected to run."""
    session.config.stash[COLLECTED].select(session.items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker of xdist, send the collected tests to the controller."""
    send_collected(session.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Raise the usage error of an xdist worker in the controller."""
    usage_error_of_worker(node)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Restore the global random generators after a test that measures. Ctrl-C keeps what was measured."""
    try:
        with preserved_generators(item):
            return (yield)
    except KeyboardInterrupt:
        if SUMMARY in item.config.stash:
            item.config.stash[SUMMARY].keep(item, item.stash.get(RECORDS, {}).values())
        raise
    finally:
        item.config.stash[PROGRESS].finish()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Discard the measurements of an earlier run of the same test."""
    item.stash[RECORDS] = {}
    item.stash[MEASUREMENTS] = []
    item.stash[TAKEN] = item.stash[CALLED] = item.stash[JUDGED] = False
    item.stash[BASELINE_REQUESTS] = []
    item.stash[NOT_MEASURED] = []
    item.stash[SENT] = []
    item.stash[UNEXPECTED] = Unexpected()
    with _failure_is_shown(item), wide_scope_explained():
        return (yield)


@contextmanager
def _failure_is_shown(item: pytest.Item) -> Iterator[None]:
    """Forget the failed checks of a phase that fails in any case: only what a later phase swallows is left to find."""
    try:
        yield
    except BaseException:
        item.stash[UNEXPECTED] = Unexpected()
        raise


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Seed fixtures: they draw the same numbers in every session, in any order of the tests."""
    with seeded_fixture(fixturedef, request):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Judge shared measurements. Seed the body of a test that measures: it draws the same numbers in every session."""
    __tracebackhide__ = True
    judge_shared(pyfuncitem)
    seed_generators(pyfuncitem, "body")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Seed a test that measures and is not a function, such as a doctest. Fail a test whose bounds are invalid or not judged."""
    __tracebackhide__ = True
    refuse_invalid(item)
    seed_generators(item, "body")
    with _failure_is_shown(item):
        result = yield
    taken, called, judged = (item.stash.get(key, False) for key in (TAKEN, CALLED, JUDGED))
    refuse_unmeasured(item, taken=taken, called=called, judged=judged)
    refuse_swallowed(item, item.stash.get(RECORDS, {}))
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a teardown in which a check has failed unnoticed."""
    result = yield
    refuse_swallowed(item, item.stash.get(RECORDS, {}))
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the records of a test to its report, as plain data that can be sent to another process."""
    suggestions = suggestions_for(item, call)
    explain_assertions(item, call)
    if item.stash.get(RECORDS, {}) and report_files.writes_properties(item.config):
        add_properties(item, list(item.stash[RECORDS].values()))
    report = yield
    if suggestions:
        report.trainability_suggestions = suggestions  # type: ignore[attr-defined]
    if (error := error_of(item, call)) is not None:
        report.trainability_error = error  # type: ignore[attr-defined]
    if call.excinfo is not None and item.get_closest_marker(MARKER) is not None:
        explained = [(node_id(item), name) for name in explained_checks(call.excinfo.value)]
        report.trainability_explained = explained  # type: ignore[attr-defined]
        shorten_summary(report, call.excinfo.value)
    if _carries_records(item, report):
        from ..records.reports import plain

        records = item.stash[SENT] = list(item.stash[RECORDS].values())
        if call.excinfo is not None and not call.excinfo.errisinstance((AssertionError, pytest.fail.Exception)):
            # Growth along the chain does not explain an error.
            records = [replace(record, cause=()) for record in records]
        report.trainability = plain(records)  # type: ignore[attr-defined]
        requests = [request.to_plain() for request in item.stash[BASELINE_REQUESTS]]
        report.trainability_baseline_requests = requests  # type: ignore[attr-defined]
    return report


def _carries_records(item: pytest.Item, report: pytest.TestReport) -> bool:
    """Return whether a report carries the records: that of a call, a setup that ended the test, a teardown that measured more."""
    records = list(item.stash.get(RECORDS, {}).values())
    if report.when == "teardown":
        return records != item.stash.get(SENT, [])
    return bool(records) and (report.when == "call" or not report.passed)


def pytest_assertrepr_compare(config: pytest.Config, op: str, left: Any, right: Any) -> list[str] | None:
    """Explain a failing comparison of a profile or spectrum with a number."""
    if "pytest_trainability.records.estimates" not in {type(left).__module__, type(right).__module__}:
        return None
    from ..report.comparisons import explain_comparison

    return explain_comparison(op, left, right, full=config.getoption("verbose", default=0) > 0)
