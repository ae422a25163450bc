"""``trainability_factory``: one measurement for several tests."""

from __future__ import annotations

import json

import pytest

TESTS = """
import pytest
import torch
from torch import nn
from pytest_trainability import TrainabilityFailure, at_least, within

RUNS = []


class Net(nn.Sequential):
    def forward(self, x):
        RUNS.append(x)
        return super().forward(x)


def net():
    return Net(*[layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Tanh())])


@pytest.fixture(scope="SCOPE")
def shared(trainability_factory):
    return trainability_factory(net, torch.ones(4, 8).cumsum(0), seeds=2)


class TestAll:
    @pytest.mark.trainability(log_gain=within(50))
    def test_first(self, shared):
        self.runs = len(RUNS)
        assert 0 < self.runs <= 6

    @pytest.mark.trainability(gradient_norm=at_least(1e-12))
    def test_second(self, shared):
        assert len(RUNS) <= 6

    def test_in_the_body(self, shared):
        shared.check(log_gain=within(50))
        assert shared.log_gain < 0
        assert len(RUNS) <= 6

    @pytest.mark.trainability(log_gain=within(50))
    def test_explicit(self, trainability, shared):
        found = trainability(shared, gradient_norm=at_least(1e-12))
        assert found is shared
        assert len(RUNS) <= 6
"""
FAILING = """
@pytest.mark.trainability(log_gain=within(0.001))
def test_red(shared):
    raise RuntimeError("the body is not reached")
"""


def source(scope: str = "module") -> str:
    return TESTS.replace("SCOPE", scope)


@pytest.mark.parametrize("scope", ["class", "module", "package", "session"])
def test_the_model_is_measured_once_and_each_test_is_listed(project: pytest.Pytester, scope: str) -> None:
    project.makepyfile(test_it=source(scope))
    result = project.runpytest_inprocess("--trainability-json=report.json")
    result.assert_outcomes(passed=4)
    checks = json.loads((project.path / "report.json").read_text(encoding="utf-8"))["checks"]
    assert [check["test"].rpartition("::")[2] for check in checks] == [
        "test_first",
        "test_second",
        "test_in_the_body",
        "test_explicit",
    ]
    bounded = [[verdict["measure"] for verdict in check["verdicts"]] for check in checks]
    assert bounded[0] == bounded[2] == ["log_gain"] and "gradient_norm" in bounded[1]
    assert bounded[3][-1] == "gradient_norm" and bounded[3][0] == "log_gain"


def test_workers_measure_once_each(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=source())
    project.runpytest_inprocess("-n", "1").assert_outcomes(passed=4)


def test_a_bound_fails_its_own_test_only_and_before_the_body(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=source() + FAILING)
    result = project.runpytest_inprocess("--trainability-cure=off")
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["*TrainabilityFailure: log_gain * must lie in [[]-0.001, 0.001[]]*"])
    result.stdout.no_fnmatch_line("*the body is not reached*")
    result.stdout.no_fnmatch_line("*traceback entries are hidden*")
    result.stdout.re_match_lines([r">   @pytest\.mark\.trainability", r"test_it\.py:\d+: TrainabilityFailure"])


def test_baselines_and_suggestions_are_those_of_each_test(project: pytest.Pytester) -> None:
    body = "\ndef test_a(shared):\n    shared.check_baseline()\n\ndef test_b(shared):\n    shared.check_baseline()\n"
    project.makepyfile(test_it=source() + body)
    project.runpytest_inprocess("-k", "test_a or test_b", "--trainability-baseline=new").assert_outcomes(passed=2)
    stored = json.loads((project.path / "__trainability__" / "test_it.json").read_text(encoding="utf-8"))
    assert list(stored["tests"]) == ["test_a", "test_b"]
    result = project.runpytest_inprocess("-k", "test_a or test_b", "--trainability-suggest")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["# test_it.py::test_a, 2 seeds", "# test_it.py::test_b, 2 seeds"])


def test_the_tests_are_selected_by_the_marker(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=source() + "\ndef test_other():\n    pass\n")
    project.runpytest_inprocess("-m", "not trainability").assert_outcomes(passed=1, deselected=4)


def test_a_measurement_inside_another_object_is_judged_by_a_call(project: pytest.Pytester) -> None:
    body = """
@pytest.fixture(scope="module")
def both(trainability_factory):
    return {depth: trainability_factory(net, torch.ones(4, 8).cumsum(0), seeds=2) for depth in (1, 2)}

@pytest.mark.trainability(log_gain=within(0.001))
@pytest.mark.parametrize("depth", [1, 2])
def test_one(trainability, both, depth):
    with pytest.raises(TrainabilityFailure, match="log_gain"):
        trainability(both[depth])

@pytest.mark.trainability(log_gain=within(0.001))
def test_forgotten(both):
    pass
"""
    project.makepyfile(test_it=source() + body)
    result = project.runpytest_inprocess("-k", "one or forgotten", "--trainability-cure=off")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*or trainability(measurement) for one of trainability_factory*"])


ERRORS = {
    "seeds of a marker": (
        "@pytest.mark.trainability(seeds=5)\ndef test_x(shared): pass",
        "the shared measurement of net was made with 2 seeds. Pass seeds= to trainability_factory(), or measure in the test:",
    ),
    "a type of a marker": (
        "@pytest.mark.trainability(dtype='float64')\ndef test_x(shared): pass",
        "UsageError: the marker of test_it.py::test_x sets dtype, and the shared measurement of net was made with dtype float32.",
    ),
    "inputs of a measurement": (
        "def test_x(trainability, shared): trainability(shared, torch.ones(2, 8), seeds=3)",
        "UsageError: a measurement that has been made is only judged again. It does not take inputs, seeds: pass them",
    ),
    "no inputs": (
        "def test_x(trainability): trainability(net)",
        "UsageError: trainability() needs the inputs of the model: trainability(model, inputs).",
    ),
    "a bound of the factory": (
        "def test_x(trainability_factory): trainability_factory(net, torch.ones(2, 8), log_gain=within(3))",
        "Each test has its own bounds: give log_gain to its marker, or to check() of the measurement.",
    ),
    "the fixture of one test": (
        "@pytest.fixture(scope='module')\ndef wide(trainability): pass\ndef test_x(wide): pass",
        "trainability_factory(model, inputs) measures for several tests: take this fixture instead of trainability.",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_mistakes_are_explained(project: pytest.Pytester, case: str) -> None:
    code, message = ERRORS[case]
    project.makepyfile(test_it=f"{source()}\n{code}\n")
    result = project.runpytest_inprocess("-k", "test_x")
    assert result.ret == 1
    assert message in result.stdout.str()
    result.stdout.no_fnmatch_line("*During handling of the above exception*")
    # A traceback ends in the user's own line.
    result.stdout.no_fnmatch_line("*shared.py:[0-9]*")


def test_settings_of_a_marker_that_agree_are_accepted(project: pytest.Pytester) -> None:
    marker = "@pytest.mark.trainability(seeds=2, device='cpu', dtype='float32', log_gain=within(50))"
    project.makepyfile(test_it=f"{source()}\n{marker}\ndef test_x(shared): pass\n")
    project.runpytest_inprocess("-k", "test_x").assert_outcomes(passed=1)


def test_an_error_of_the_model_is_listed_for_each_test(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=source().replace("torch.ones(4, 8)", "torch.ones(4, 7)"))
    result = project.runpytest_inprocess()
    result.assert_outcomes(errors=4)
    result.stdout.fnmatch_lines(["*4 could not be measured*"])


def test_a_factory_that_is_taken_while_the_test_runs_is_found(project: pytest.Pytester) -> None:
    body = """
def test_x(request):
    factory = request.getfixturevalue("trainability_factory")
    assert factory(net, torch.ones(4, 8).cumsum(0), seeds=2).log_gain < 0
"""
    project.makepyfile(test_it=source() + body)
    project.runpytest_inprocess("-m", "trainability", "-k", "test_x").assert_outcomes(passed=1, deselected=4)
