"""A model that is named by options is a test, without a file."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.pytester import Pytester

TOWER = "--trainability-model=small_nets:net"
INPUT = "--trainability-input=4x8"
TEST = "look::small_nets:net"


def test_a_model_is_the_only_test_without_paths(project: Pytester) -> None:
    project.makepyfile(test_other="def test_other(): assert False")
    result = project.runpytest_inprocess(
        TOWER, INPUT, "-v", "--trainability-json=report.json", "--trainability-seeds=2"
    )
    result.assert_outcomes(passed=1)
    (check,) = json.loads((project.path / "report.json").read_text())["checks"]
    assert check["test"] == TEST and check["outcome"] == "passed"
    assert {"log_gain", "nonfinite", "dead_fraction"} <= {verdict["measure"] for verdict in check["verdicts"]}, "of mlp"
    project.runpytest_inprocess(TOWER, INPUT, "test_other.py").assert_outcomes(passed=1, failed=1)
    project.runpytest_inprocess(TOWER, INPUT, "-k", "other").assert_outcomes(deselected=1)


def test_a_failure_stands_at_the_command(project: Pytester) -> None:
    result = project.runpytest_inprocess(
        TOWER, INPUT, "--trainability-bounds=log_gain = [-1, 1]", "--trainability-steps=layers"
    )
    result.assert_outcomes(failed=1)
    lines = result.outlines
    place = lines.index(f">   pytest {TOWER} {INPUT} --trainability-steps=layers")
    assert lines[place + 1].startswith("E   pytest_trainability.TrainabilityFailure: log_gain -")
    (again,) = re.findall(r"E +reproduce +pytest (.*)", result.stdout.str())
    assert again.startswith(f"{TOWER} {INPUT} --trainability-steps=layers '--trainability-bounds=log_gain = [-1, 1]'")
    assert "<command line>:1: TrainabilityFailure" in lines


def test_the_preset_that_is_chosen_goes_first(project: Pytester) -> None:
    run = project.inline_run(TOWER, INPUT, "--trainability-preset=transformer", "--trainability-seeds=1")
    (plain,) = (r.trainability[0] for r in run.getreports("pytest_runtest_logreport") if hasattr(r, "trainability"))
    assert {v["measure"]: v["high"] for v in plain["verdicts"]}["log_gain"] > 15


def test_targets_and_loss(project: Pytester) -> None:
    given = ("--trainability-targets=ids:4<8", "--trainability-loss=cross_entropy", "--trainability-seeds=1")
    run = project.inline_run(TOWER, INPUT, *given)
    (plain,) = (r.trainability[0] for r in run.getreports("pytest_runtest_logreport") if hasattr(r, "trainability"))
    assert plain["gradient_of"] == "the loss"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((INPUT,), "--trainability-input must come with --trainability-model."),
        (("--trainability-model= ",), "--trainability-model must have a value. Got ' '."),
        ((TOWER, INPUT, "--trainability-loss="), "--trainability-loss must have a value. Got ''."),
        ((TOWER, INPUT, "--trainability-input= "), "--trainability-input must have a value. Got ' '."),
    ],
)
def test_options_that_name_nothing_are_refused(project: Pytester, arguments: tuple[str, ...], said: str) -> None:
    result = project.runpytest_inprocess(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {said.replace('[', '[[]')}"])


def test_a_misspelt_model_is_one_clear_line(project: Pytester) -> None:
    result = project.runpytest_inprocess("--trainability-model=small_nets:nett", INPUT)
    result.assert_outcomes(failed=1)
    (line,) = (line for line in result.outlines if line.startswith("E   "))
    assert "there is no 'nett'. Nearest: net" in line


def test_a_worker_measures_it(project: Pytester) -> None:
    pytest.importorskip("xdist", reason="workers come with pytest-xdist")
    project.makepyfile(test_other="def test_other(): assert False")
    project.runpytest_inprocess(TOWER, INPUT, "-n", "1").assert_outcomes(passed=1)
