"""The same verdicts in every configuration of pytest, and together with other plugins.

``tests/matrix.py`` runs these tests in separate environments.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
import torch

if TYPE_CHECKING:
    from pathlib import Path

    from _pytest.pytester import Pytester, RunResult

SUITE = """
import pytest, torch
from pytest_trainability import at_least, at_most, within
from small_nets import images, net, tower


@pytest.mark.trainability(log_gain=within(100), gradient_norm=at_least(1e-30))
def test_green(trainability):
    trainability(net, images, seeds=2)


@pytest.mark.trainability(log_gain=within(0.5), gradient_norm=at_least(10))
def test_red_by_marker(trainability):
    trainability(net, images, seeds=2)


def test_red_by_assert(trainability):
    assert trainability(net, images, seeds=2).log_gain > 0


class TestClass:
    def test_method(self, trainability):
        trainability(net(), torch.randn(4, 8)).check(nonfinite=at_most(0))


@pytest.mark.parametrize("depth", [3, 5])
def test_depth(trainability, depth):
    trainability(tower(depth), images, seeds=2)
    trainability(tower(2 * depth), images, seeds=1, name="twice")


@pytest.mark.xfail(reason="tanh with default weights", strict=True)
def test_xfail(trainability):
    trainability(net, images, seeds=2).check(log_gain=within(0.5))


def test_skip(trainability):
    trainability(net, images, seeds=2)
    pytest.skip("not on this machine")


@pytest.fixture
def broken(trainability):
    trainability(net, images, seeds=2)
    raise OSError("no data")


def test_error(broken):
    pass


def test_measures_nothing():
    pass
"""
KINDS = {
    "test_green": "passed",
    "test_red_by_marker": "failure",
    "test_red_by_assert": "failure",
    "TestClass.test_method": "passed",
    "test_depth[3]": "passed",
    "test_depth[5]": "passed",
    "test_xfail": "skipped",
    "test_skip": "skipped",
    "test_error": "error",
    "test_measures_nothing": "passed",
}
"""Outcome of each test, as JUnit names it."""
LINES = 11
"""Lines of the section: one for each measurement of the suite."""


@dataclass(frozen=True)
class Outcome:
    """The results of a session, without times and order."""

    ret: int
    phases: dict[str, list[tuple[str, str]]]
    """Outcomes of setup, call and teardown, by test."""
    records: dict[str, list[str]]
    """Records of the reports, by test."""
    section: list[str]


def run(project: Pytester, *args: str) -> RunResult:
    """Run a session in this process; it must not warn or have an internal error."""
    result = project.runpytest_inprocess(*args)
    reprec = result.reprec  # type: ignore[attr-defined]
    assert [str(call.warning_message) for call in reprec.getcalls("pytest_warning_recorded")] == []
    assert reprec.getcalls("pytest_internalerror") == []
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    return result


def outcome(result: RunResult) -> Outcome:
    phases, records = defaultdict(list), {}
    for report in result.reprec.getreports("pytest_runtest_logreport"):  # type: ignore[attr-defined]
        phases[report.nodeid].append((report.when, report.outcome))
        if hasattr(report, "trainability"):
            # As text, in which NaN equals NaN.
            records[report.nodeid] = [repr({**plain, "seconds": 0}) for plain in report.trainability]
    return Outcome(int(result.ret), dict(phases), records, section(result))


PLAIN: list[Outcome] = []
"""The results of the suite without options, once a test has asked for them."""


def plain_outcome(project: Pytester) -> Outcome:
    """Return the results of the suite without options, of one session for all tests."""
    if not PLAIN:
        PLAIN.append(outcome(run(project)))
    return PLAIN[0]


def section(result: RunResult) -> list[str]:
    """Return the sorted lines of the terminal section, without the time."""
    text = result.stdout.str()
    inside = re.search(r"^=+ trainability =+\n(.*?)^=+ ", text, re.DOTALL | re.MULTILINE)
    return sorted(re.sub(r"[\d.]+ s$", "… s", line) for line in inside[1].splitlines()) if inside else []


def rows(result: RunResult) -> list[str]:
    """Return tick and test of each line of the section."""
    return [line.split("  ")[1] for line in section(result) if re.match(r"  [✔○✘x] ", line)]


def judged(path: Path, family: str) -> dict[str, str]:
    """Return the outcome of each test in a JUnit file, and check that the file is consistent."""
    tree = ElementTree.parse(path)
    (suite,) = tree.iter("testsuite")
    cases = list(suite.iter("testcase"))
    assert {"file" in case.attrib for case in cases} == {family == "xunit1"}
    found = {}
    for case in cases:
        kind = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        found[f"{case.get('classname')}.{case.get('name')}".removeprefix("test_suite.")] = kind
    assert len(found) == len(cases)
    for plural, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.get(plural, "0")) == list(found.values()).count(kind)
    (message,) = (node.get("message") for node in suite.iter("failure") if "must lie in" in str(node.get("message")))
    assert str(message).endswith("; gradient_norm fails, too")
    return found


CONFIGURATIONS = [
    "-n 0",
    "-n 2",
    "-p no:xdist",
    "-p no:terminal",
    "-p no:cacheprovider",
    "-p no:xdist -p no:cacheprovider",
    "-p no:xdist -p no:terminal -p no:cacheprovider",
    "-p no:assertion",
    "-p no:logging -p no:capture",
    "-W error",
    "-W error -p no:warnings",
    "-o junit_family=xunit1",
    "-o junit_family=xunit2",
]


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_every_configuration_has_the_same_verdicts(project: Pytester, options: str) -> None:
    """Exit status, reports, records, section and JUnit file are the same."""
    if "-n" in options.split():
        pytest.importorskip("xdist", reason="workers come with pytest-xdist")
    project.makepyfile(test_suite=SUITE)
    plain = plain_outcome(project)
    assert plain.ret == pytest.ExitCode.TESTS_FAILED
    assert sum(map(len, plain.records.values())) == LINES
    assert sum(re.match(r"  [✔○✘x] ", line) is not None for line in plain.section) == LINES

    result = run(project, *options.split(), "--junitxml=report.xml")
    here = outcome(result)
    assert judged(project.path / "report.xml", "xunit1" if "xunit1" in options else "xunit2") == KINDS
    assert here.ret == plain.ret
    assert here.phases == plain.phases
    assert here.records == plain.records
    if "no:terminal" in options:
        assert result.stdout.str() == ""
    else:
        assert here.section == plain.section


HIDE = """
import importlib.metadata, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("xdist", "execnet"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def distributions(*args, **kwargs):
    return (one for one in installed(*args, **kwargs) if one.metadata["Name"] != "pytest-xdist")

sys.meta_path.insert(0, Refuse())
installed, importlib.metadata.distributions = importlib.metadata.distributions, distributions
"""


def test_without_xdist_installed_the_verdicts_are_the_same(project: Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter finds neither the module nor its entry point."""
    project.makepyfile(test_suite=SUITE)
    plain = plain_outcome(project)
    project.makepyfile(sitecustomize=HIDE)
    monkeypatch.setenv("PYTHONPATH", str(project.path), prepend=os.pathsep)
    result = project.runpytest_subprocess("--junitxml=report.xml")
    text = result.stdout.str() + result.stderr.str()
    assert "xdist-" not in text, "the header lists plugins that are installed"
    assert "INTERNALERROR" not in text
    assert judged(project.path / "report.xml", "xunit2") == KINDS
    assert result.parseoutcomes() == {"failed": 2, "passed": 5, "skipped": 1, "xfailed": 1, "errors": 1}
    assert int(result.ret) == plain.ret
    assert section(result) == plain.section


def test_crashed_worker_loses_only_its_running_test(project: Pytester) -> None:
    pytest.importorskip("xdist", reason="workers come with pytest-xdist")
    project.makepyfile(
        test_it="""
        import os
        from small_nets import images, net

        def test_dies(trainability):
            trainability(net, images, seeds=2)
            os._exit(3)

        def test_lives(trainability):
            trainability(net, images, seeds=2)
        """
    )
    result = project.runpytest_inprocess("-n", "1")
    result.assert_outcomes(passed=1, failed=1)
    assert rows(result) == ["○ test_lives"]


# Other plugins: each test needs one of them. tests/matrix.py installs them.


def test_pytest_benchmark_can_time_a_measurement(project: Pytester) -> None:
    """One test can use both fixtures, and the report has both sections."""
    pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark")
    project.makepyfile(
        test_it="""
        import pytest
        from small_nets import images, net

        @pytest.mark.trainability(log_gain=(-100, 100))
        def test_forward(trainability, benchmark):
            trainability(net, images, seeds=2)
            benchmark.pedantic(net(), (images,), rounds=2)

        def test_measurement(trainability, benchmark):
            result = benchmark.pedantic(trainability, (net, images), {"seeds": 2}, rounds=2)
            assert result.log_gain < 0
        """
    )
    result = project.runpytest_inprocess("-p", "no:randomly")
    result.assert_outcomes(passed=2)
    assert rows(result) == ["✔ test_forward", "○ test_measurement", "✔ test_measurement (measurement 2)"]
    assert re.search(r"^-+ benchmark: 2 tests -+$", result.stdout.str(), re.MULTILINE)
    project.runpytest_inprocess("--benchmark-skip").assert_outcomes(skipped=2)


def test_syrupy_stores_estimates_and_profiles(project: Pytester) -> None:
    """The numbers are the same in the next session, and differ with other seeds."""
    pytest.importorskip("syrupy", reason="needs syrupy")
    project.makepyfile(
        test_it="""
        from small_nets import images, net

        def test_estimate(trainability, snapshot):
            assert trainability(net, images).log_gain == snapshot

        def test_profile(trainability, snapshot):
            assert snapshot == trainability(net, images).gradient_norm

        def test_text(trainability, snapshot):
            assert str(trainability(net, images)) == snapshot
        """
    )
    first = project.runpytest_inprocess("--snapshot-update", "--trainability-seeds=2")
    assert "3 snapshots generated" in first.stdout.str()
    project.runpytest_inprocess("--trainability-seeds=0-1").assert_outcomes(passed=3)
    other = project.runpytest_inprocess("--trainability-seeds=2-3")
    other.assert_outcomes(failed=3)
    assert sorted(rows(other)) == ["✘ test_estimate", "✘ test_profile", "✘ test_text"]
    assert "3 snapshots failed" in other.stdout.str()
    assert re.search(r"^E +- +mean=-", other.stdout.str(), re.MULTILINE), "syrupy explains the difference"


def test_hypothesis_finds_the_smallest_failing_model(project: Pytester) -> None:
    """A measurement depends on its example only: nothing is flaky, and the shrunk example is reported."""
    pytest.importorskip("hypothesis", reason="needs hypothesis")
    project.makepyfile(
        test_it="""
        from hypothesis import HealthCheck, given, settings, strategies
        from pytest_trainability import within
        from small_nets import images, tower

        allowed = settings(
            database=None,
            deadline=None,
            derandomize=True,
            max_examples=10,
            suppress_health_check=[HealthCheck.function_scoped_fixture],
        )

        @allowed
        @given(depth=strategies.integers(2, 12))
        def test_green(trainability, depth):
            trainability(tower(depth), images, seeds=1).check(log_gain=within(100))

        @allowed
        @given(depth=strategies.integers(2, 12))
        def test_red(trainability, depth):
            result = trainability(tower(depth), images, seeds=1)
            result.check(log_gain=within(0.9 * abs(result.log_gain) if depth >= 4 else 100))

        @settings(database=None, max_examples=2)
        @given(depth=strategies.integers(2, 12))
        def test_refused(trainability, depth):
            trainability(tower(depth), images, seeds=1)
        """
    )
    result = project.runpytest_inprocess("-p", "no:randomly")
    result.assert_outcomes(passed=1, failed=2)
    text = result.stdout.str()
    (refusal,) = re.findall(r"^E +.*FailedHealthCheck: (.*)$", text, re.MULTILINE)
    for part in ("unction-scoped fixture 'trainability'", "'test_it.py::test_refused'"):
        assert part in refusal, "hypothesis says so, in the words of its version"
    assert re.search(r"^E +depth=4,$", text, re.MULTILINE), "the smallest depth that fails"
    assert re.search(r"^E +measured +\S+: 4 × Linear, ", text, re.MULTILINE)
    assert "Flaky" not in text
    assert len(re.findall(r"^  [✔○✘] test_green ", text, re.MULTILINE)) == 1, "one line for all examples"


def test_pytest_cov_counts_the_lines_of_a_model_in_workers(project: Pytester) -> None:
    pytest.importorskip("pytest_cov", reason="needs pytest-cov")
    pytest.importorskip("xdist", reason="workers come with pytest-xdist")
    project.makepyfile(test_suite=SUITE)
    plain = plain_outcome(project)
    project.makepyfile(
        test_model="""
        from model import Model
        from small_nets import images

        def test_model(trainability):
            trainability(Model, images, seeds=2)
        """,
        model="""
        from torch import nn

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

            def forward(self, x):
                for layer in self.layers:
                    x = layer(x).tanh()
                return x
        """,
    )
    result = project.runpytest_subprocess("-n", "2", "--cov=model", "--cov-report=term-missing")
    assert re.search(r"^model\.py +9 +0 +100%$", result.stdout.str(), re.MULTILINE)
    assert int(result.ret) == plain.ret
    assert [line for line in plain.section if line not in section(result) and " hold, " not in line] == []
    assert "○ test_model" in rows(result)


def test_pytest_rerunfailures_shows_the_last_attempt(project: Pytester) -> None:
    pytest.importorskip("pytest_rerunfailures", reason="needs pytest-rerunfailures")
    project.makepyfile(
        test_it="""
        from pathlib import Path
        import pytest, torch
        from pytest_trainability import within
        from small_nets import images, net

        def attempts(name):
            path = Path(f"{name}.attempts")
            path.write_text((path.read_text() if path.exists() else "") + ".")
            return len(path.read_text())

        def test_marker(trainability):
            trainability(net, torch.randn(4, 8), seeds=2).check(log_gain=within(0.1 if attempts("a") == 1 else 100))

        @pytest.fixture
        def measured(trainability):
            result = trainability(net, images, seeds=2)
            assert attempts("b") > 1
            return result

        def test_fixture(measured):
            pass

        def test_never(trainability):
            assert trainability(net, images, seeds=2).log_gain > 0

        def test_renamed(trainability):
            count = attempts("c")
            trainability(net, images, seeds=2, name=f"{count}").check(log_gain=within(0.1 if count == 1 else 100))

        def test_breaks(trainability):
            if attempts("d") > 1:
                pytest.fail("no data")
            assert trainability(net, images, seeds=2).log_gain > 0
        """
    )
    result = project.runpytest_inprocess("-p", "no:randomly", "--reruns=1")
    assert result.parseoutcomes() == {"passed": 3, "failed": 2, "rerun": 5}
    assert sorted(rows(result)) == ["○ test_fixture", "✔ test_marker", "✔ test_renamed (2)", "✘ test_never"]
    alone = outcome(project.runpytest_inprocess("-k", "test_marker"))
    assert alone.records == {"test_it.py::test_marker": outcome(result).records["test_it.py::test_marker"]}


def test_pytest_timeout_during_a_measurement_does_not_affect_the_next_test(project: Pytester) -> None:
    pytest.importorskip("pytest_timeout", reason="needs pytest-timeout")
    project.makepyfile(
        test_it="""
        import time
        import pytest, torch
        from torch import nn
        from small_nets import images, net

        class Hangs(nn.Linear):
            def forward(self, x):
                time.sleep(600)

        @pytest.mark.timeout(0.5, method="signal")
        def test_hangs(trainability):
            trainability(lambda: nn.Sequential(nn.Linear(8, 8), Hangs(8, 8)), images, dtype="float64")

        def test_next(trainability):
            trainability(net, torch.randn(4, 8), seeds=2)
        """
    )

    def state() -> Sequence[Any]:
        hooks = torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks
        return torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.is_grad_enabled(), *map(len, hooks)

    before = state()
    together = project.runpytest_inprocess("-p", "no:randomly")
    together.assert_outcomes(passed=1, failed=1)
    assert "Timeout (>0.5s) from pytest-timeout" in together.stdout.str()
    assert state() == before
    assert rows(together) == ["○ test_next"]
    alone = outcome(project.runpytest_inprocess("-k", "test_next"))
    assert outcome(together).records == alone.records


def test_pytest_randomly_changes_no_number(project: Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-randomly shuffles tests, and seeds ``random`` and numpy before each one; measuring tests are seeded afterwards."""
    pytest.importorskip("pytest_randomly", reason="needs pytest-randomly")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    project.makepyfile(
        test_it="""
        import random
        import numpy, pytest
        import torch
        from small_nets import net

        torch_of_module = torch.randn(4, 8)

        def drawn():
            return torch.randn(4, 8) + torch.tensor(numpy.random.rand(8)).float() + random.random()

        @pytest.fixture(scope="module")
        def shared():
            return drawn()

        @pytest.fixture
        def batch():
            return drawn()

        @pytest.mark.parametrize("number", range(4))
        def test_numbers(trainability, shared, batch, number):
            for inputs in (torch_of_module, shared, batch, drawn()):
                trainability(net, inputs, seeds=2)

        def test_plain():
            print("PLAIN", random.random())
        """
    )
    seeded = [project.runpytest_inprocess("-s", f"--randomly-seed={seed}") for seed in (1, 2)]
    plain = project.runpytest_inprocess("-p", "no:randomly")
    orders = [list(outcome(result).phases) for result in (*seeded, plain)]
    assert orders[0] != orders[1], "nothing was shuffled"
    records = [outcome(result).records for result in (*seeded, plain)]
    assert len(records[0]) == 4
    assert records[0] == records[1] == records[2]
    # Tests that do not measure keep the seeds of pytest-randomly.
    printed = [re.search(r"PLAIN \S+", result.stdout.str()) for result in seeded]
    again = project.runpytest_inprocess("-s", "--randomly-seed=1", "-k", "test_plain")
    assert printed[0] and printed[1]
    assert printed[0][0] != printed[1][0]
    assert printed[0][0] in again.stdout.str()


def test_pytest_torch_and_this_plugin_share_a_test(project: Pytester) -> None:
    """Fixtures, markers and options have different names, and neither plugin seeds the tests of the other."""
    pytest.importorskip("pytest_torch", reason="needs pytest-torch")
    project.makepyfile(
        test_it="""
        import pytest, torch
        from small_nets import images, net

        @pytest.mark.torch_threads(1)
        @pytest.mark.trainability(log_gain=(-100, 100))
        def test_both(trainability, torch_device, torch_dtype):
            trainability(net, torch.randn(4, 8), device=torch_device, dtype=torch_dtype, seeds=2)

        def test_theirs(torch_seed):
            print("THEIRS", torch.rand(1).item())

        def test_ours(trainability):
            trainability(net, torch.randn(4, 8), seeds=2)
        """
    )
    args = ("-p", "no:randomly", "-s", "--strict-markers", "--torch-device=cpu", "--torch-dtype=float64")
    both = project.runpytest_inprocess(*args)
    both.assert_outcomes(passed=3)
    assert sorted(row.partition("[")[0] for row in rows(both)) == ["○ test_ours", "✔ test_both"]
    assert "test_it.py · cpu · float64 · train · per sample · seeds 0-1" in section(both)
    autoseeded = project.runpytest_inprocess(*args, "--torch-autoseed", "--torch-seed=5")
    assert outcome(autoseeded).records == outcome(both).records
    # pytest-torch seeds its test as it does without this plugin.
    theirs = [project.runpytest_inprocess(*args, *more, "-k", "theirs") for more in ([], ["-p", "no:trainability"])]
    assert len({re.search(r"THEIRS \S+", result.stdout.str())[0] for result in (both, *theirs)}) == 1  # type: ignore[index]
    project.runpytest_inprocess(*args, "-m", "trainability").assert_outcomes(passed=2, deselected=1)
    listed = project.runpytest_inprocess("--markers").stdout.str()
    names = re.findall(r"^@pytest\.mark\.(\w+)", listed, re.MULTILINE)
    assert names.count("trainability") == 1
    assert len(set(names)) == len(names), "two plugins register the same marker"
