"""Initialization contracts in whole sessions, and the command that writes them: the examples of docs/initialization.md."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_trainability import commands as command

if TYPE_CHECKING:
    from _pytest.pytester import Pytester

PAGE = (Path(__file__).parents[2] / "docs" / "initialization.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(EXAMPLE,) = [code for code in CODE if "class GPT" in code]
SHOWN, TABLE, COMMAND = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_of_the_page_fails_with_the_printed_message(project: Pytester) -> None:
    project.makepyfile(test_gpt=EXAMPLE)
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    printed = [re.sub(r"[\d.]+", "#", line.removeprefix("E").strip()) for line in result.outlines]
    assert [
        line for line in SHOWN.splitlines() if not any(re.sub(r"[\d.]+", "#", line.strip()) in p for p in printed)
    ] == []


def test_the_example_passes_with_the_scaling(project: Pytester) -> None:
    scaled = EXAMPLE.replace(
        "            nn.init.zeros_(layer.bias)\n",
        "            nn.init.zeros_(layer.bias)\n        nn.init.normal_(self.c_proj.weight, std=0.02 / math.sqrt(24))\n",
    )
    project.makepyfile(test_gpt=scaled)
    project.runpytest_inprocess().assert_outcomes(passed=1)


def test_the_table_of_the_page_is_printed() -> None:
    from pytest_trainability import initialization

    names: dict[str, Any] = {}
    exec(EXAMPLE, names)
    assert f"{initialization(names['GPT'])}\n" == TABLE


def test_a_test_reads_the_forms_of_a_model_that_it_does_not_run(project: Pytester) -> None:
    (reading,) = [code for code in CODE if code.startswith("found = ")]
    project.makepyfile(
        test_gpt=EXAMPLE.partition("def test_gpt")[0]
        + "def test_forms(trainability):\n"
        + textwrap.indent(reading, "    ")
        + '    assert found.parameters["h.0.ln.weight"].form == "constant"\n'
        + '    assert found.parameters["lm_head.weight"].text == "tied to wte.weight"\n'
        + "    assert not trainability.initialization(GPT).unusual\n"
    )
    project.runpytest_inprocess().assert_outcomes(passed=1)


def test_rules_of_the_page_are_rules() -> None:
    import math

    from pytest_trainability import init

    (rules,) = [code for code in CODE if code.startswith("init.normal(std=0.02).with_zero_row")]
    for line in rules.splitlines():
        eval(line, {"init": init, "math": math})


def test_the_command_prints_the_contract_of_the_page(project: Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    project.makepyfile(gpt=EXAMPLE)
    (words,) = re.findall(r"^python -m pytest_trainability (.*)$", COMMAND, re.MULTILINE)
    assert command.main(words.split()) == 0
    names: dict[str, object] = {}
    source = capsys.readouterr().out
    exec(source, names)
    (expected,) = [
        code for code in CODE if 'init.tied("wte.weight"),\n    "*.ln.weight"' in code and "class" not in code
    ]
    assert source.replace("'", '"').splitlines()[-7:] == expected.splitlines()[-7:]


def test_a_contract_that_does_not_hold_on_other_seeds(project: Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    project.makepyfile(
        odd="""
        import torch

        def build():
            model = torch.nn.LayerNorm(4)
            torch.nn.init.constant_(model.bias, float(torch.initial_seed() >= 3))
            return model
        """
    )
    assert command.main(["contract", "odd:build", "--seeds", "3", "--name", "LIMITS"]) == 1
    captured = capsys.readouterr()
    assert "LIMITS = {" in captured.out
    assert "does not hold on other seeds" in captured.err
    assert "bias: all entries are 1" in captured.err


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("gpt", "must be given as MODULE:FACTORY"),
        ("gpt:GTP", "Importing it raised AttributeError"),
        ("no_such_module:build", "Importing it raised ModuleNotFoundError"),
        ("gpt:CONTRACT", "the model must be a torch.nn.Module"),
    ],
)
def test_the_command_says_what_is_wrong(
    project: Pytester, capsys: pytest.CaptureFixture[str], place: str, message: str
) -> None:
    project.makepyfile(gpt=EXAMPLE)
    assert command.main(["contract", place]) == 2
    assert message in capsys.readouterr().err


SUITE = """
import pytest, torch
from torch import nn
from pytest_trainability import TrainabilityFailure, init
from small_nets import images

CONTRACT = {"*.weight": init.normal(std=0.3), "*.bias": init.zeros()}


def build(std=0.3):
    model = nn.Sequential(nn.Linear(8, 30), nn.Tanh(), nn.Linear(30, 8))
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return model


def wrong():
    return build(0.9)


def test_holds(trainability):
    trainability(build, images).check_initialization(CONTRACT)


def test_fails(trainability):
    trainability(wrong, images).check_initialization(CONTRACT)


def test_is_expected_to_fail(trainability):
    with pytest.raises(TrainabilityFailure):
        trainability(wrong, images).check_initialization(CONTRACT)


def test_catches_the_failure(trainability):
    try:
        trainability(wrong, images).check_initialization(CONTRACT)
    except AssertionError:
        pass


@pytest.mark.trainability(log_gain=(-9, 9))
def test_judges_no_bound(trainability):
    trainability.initialization(build).check(CONTRACT)
"""


def test_a_contract_is_a_check_of_the_session(project: Pytester) -> None:
    project.makepyfile(test_suite=SUITE)
    result = project.runpytest_inprocess()
    result.assert_outcomes(passed=2, failed=3)
    result.stdout.fnmatch_lines_random(
        [
            "*does not keep its initialization contract (seeds 0, 1, 2, 3).*",
            "*initialization*faults*",
            "*although initialization of wrong failed*",
        ]
    )


ALONE = (
    SUITE.partition("def test_holds")[0]
    + """
def test_holds_alone(trainability):
    trainability.initialization(build).check(CONTRACT)


def test_is_expected_to_fail_alone(trainability):
    with pytest.raises(TrainabilityFailure):
        trainability.initialization(wrong).check(CONTRACT)


def test_catches_the_failure_alone(trainability):
    try:
        trainability.initialization(wrong).check(CONTRACT)
    except AssertionError:
        pass


def test_catches_the_second_failure(trainability):
    found = trainability.initialization(wrong)
    with pytest.raises(TrainabilityFailure):
        found.check(CONTRACT)
    try:
        found.check({**CONTRACT, "*.bias": init.ones()})
    except AssertionError:
        pass


def test_fails_alone(trainability):
    trainability.initialization(wrong, name="my net").check(CONTRACT)


def test_of_a_measurement(trainability):
    trainability(wrong, images).initialization.check(CONTRACT)
"""
)


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["plain", "xdist"])
def test_a_contract_alone_is_a_check_of_the_session(project: Pytester, workers: list[str]) -> None:
    if workers:
        pytest.importorskip("xdist")
    project.makepyfile(test_suite=ALONE)
    result = project.runpytest_inprocess(*workers, "--trainability-require=6")
    result.assert_outcomes(passed=2, failed=4)
    result.stdout.fnmatch_lines_random(
        [
            "test_suite.py · not run · seeds 0-3",
            "  ✔ test_holds_alone *  4 parameters *  contract holds",
            "  ✘ test_is_expected_to_fail_alone *  4 parameters *  contract broken",
            "  ✘ test_fails_alone (my net) *  4 parameters *  contract broken",
            "  ✘ test_of_a_measurement *  2 × Linear *  log gain *",
            "*This test has passed, although initialization of wrong failed*",
            "*although initialization of measurement 2 failed*",
            "  initialization * faults (*std 0.* times too large*",
            "E *reproduce *test_suite.py::test_fails_alone *--trainability-seeds=0-3*",
            "1 of 7 hold, *",
        ]
    )


def test_seeds_come_from_the_session(project: Pytester) -> None:
    project.makepyfile(test_gpt=EXAMPLE)
    result = project.runpytest_inprocess("--trainability-seeds=3,5")
    result.stdout.fnmatch_lines(["*GPT does not keep its initialization contract (seeds 3, 5).*"])


def test_the_module_is_run_as_a_command(project: Pytester) -> None:
    project.makepyfile(gpt="from torch import nn\n\n\ndef build():\n    return nn.LayerNorm(3)\n")
    result = project.run(sys.executable, "-m", "pytest_trainability", "contract", "gpt:build")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["CONTRACT = {", "*init.zeros(),", "*init.ones(),", "}"])
