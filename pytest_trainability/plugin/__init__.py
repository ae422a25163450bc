"""pytest's side: hooks that delegate.

Loading this module must stay cheap: pytest does it in every project of a machine where the plugin is installed. What
measures and judges is imported when a test measures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from . import options
from .baseline_writer import BaselineWriter, refuse_partial_prune
from .baselines import BASELINE_REQUESTS, BASELINES, Baselines
from .collected import COLLECTED, Collected, send_collected
from .collection import mark_users, refuse_unmeasured, usage_error_of_worker, validate_markers
from .extensions import forget_measures
from .fixture import JUDGED, RECORDS, trainability
from .randomness import preserved_generators, seed_generators, seeded_fixture, seeded_module
from .summary import Summary

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["trainability"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the command line options and their ini twins."""
    options.declare(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Let other plugins extend this one."""
    from . import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and refuse settings that cannot be used before anything runs."""
    config.addinivalue_line(
        "markers",
        "trainability(**bounds): bounds that every model measured in this test must satisfy, such as "
        "lyapunov_max=within(0.05), or preset= for those of a family; also seeds=, device=, dtype=, tolerances=. Tests that use "
        "the trainability fixture carry the marker by themselves.",
    )
    options.read(config)
    refuse_partial_prune(config)
    config.stash[BASELINES] = Baselines(config)
    config.stash[COLLECTED] = Collected()
    if not hasattr(config, "workerinput"):
        keeper = BaselineWriter(config)
        config.pluginmanager.register(keeper, "trainability-baseline-writer")
        config.pluginmanager.register(Summary(config, keeper), "trainability-summary")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take the measures of other plugins away."""
    forget_measures(config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Let a module that measures draw the same numbers in every session when it is imported."""
    with seeded_module(collector):
        report = yield
    if isinstance(collector, pytest.Module) and report.passed:
        collector.config.stash[COLLECTED].add_module(collector.path)
    return report


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let ``-m trainability`` select every test that uses the fixture."""
    mark_users(item)
    item.config.stash[COLLECTED].add_test(item)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse unknown measures and impossible bounds before the first test runs, of the tests that are left to run."""
    validate_markers(config, items)


def pytest_collection_finish(session: pytest.Session) -> None:
    """See which tests are left to run."""
    session.config.stash[COLLECTED].select(session.items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker of xdist, let the controller know what was collected."""
    send_collected(session.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Say here what a worker of xdist refused."""
    usage_error_of_worker(node)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Put the global random generators back after a test that measures."""
    with preserved_generators(item):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forget what an earlier run of the same test measured."""
    item.stash[RECORDS] = {}
    item.stash[JUDGED] = False
    item.stash[BASELINE_REQUESTS] = []


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Let fixtures draw the same numbers in every session, whichever test sets them up."""
    with seeded_fixture(fixturedef, request):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Let the body of a test that measures draw the same numbers in every session."""
    seed_generators(pyfuncitem, "body")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """See that a test whose marker has bounds measures something."""
    result = yield
    refuse_unmeasured(item, judged=item.stash.get(JUDGED, False))
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Send what a test measured along with its report, as plain data that crosses processes."""
    report = yield
    if item.stash.get(RECORDS, {}) and (call.when == "call" or (call.when == "setup" and report.failed)):
        from ..records.reports import plain

        records = list(item.stash[RECORDS].values())
        if call.excinfo is not None and not call.excinfo.errisinstance((AssertionError, pytest.fail.Exception)):
            # Growth along the chain explains no error.
            records = [replace(record, cause=()) for record in records]
        report.trainability = plain(records)  # type: ignore[attr-defined]
        report.trainability_asked = plain(item.stash[BASELINE_REQUESTS])  # type: ignore[attr-defined]
    return report


def pytest_assertrepr_compare(op: str, left: Any, right: Any) -> list[str] | None:
    """Explain a failing comparison of a profile or spectrum with a number."""
    if "pytest_trainability.records.estimates" not in {type(left).__module__, type(right).__module__}:
        return None
    from ..report.explain import explain_comparison

    return explain_comparison(op, left, right)
