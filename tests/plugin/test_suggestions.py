"""``--trainability-suggest`` in sessions."""

from __future__ import annotations

import ast
import json
import re

import jsonschema
import pytest

from pytest_trainability.report.document import schema

TESTS = """
import pytest
import torch
from small_nets import tower
from pytest_trainability import at_least, within

x = torch.linspace(-1, 1, 32).reshape(4, 8)

def test_plain(trainability):
    trainability(tower(), x, seeds=6)

@pytest.mark.trainability(seeds=6, log_gain=within(100), lyapunov_max=within(0.001))
def test_bounded(trainability):
    trainability(tower(), x)

@pytest.mark.parametrize("depth", [2, 20])
def test_depth(trainability, depth):
    trainability(tower(depth), x, seeds=6)

def test_other():
    pass
"""

XDIST = pytest.mark.parametrize("xdist", [("-p", "no:xdist"), ("-n", "1")], ids=["one process", "a worker"])


@pytest.fixture
def session(project: pytest.Pytester) -> pytest.Pytester:
    project.makepyfile(test_it=TESTS)
    return project


def section_of(text: str) -> str:
    return re.split(r"^=+ trainability suggestions =+$", text, flags=re.MULTILINE)[1].split("\n=====")[0]


def markers_of(text: str) -> dict[str, str]:
    """Return the code of each marker by the test that the comment above names."""
    return {
        match[1]: match[2]
        for match in re.finditer(r"^# (\S+::\w+)[^\n]*\n(@pytest\.mark\.trainability\(.*?^\))", text, re.S | re.M)
    }


@XDIST
def test_each_measured_test_gets_a_marker_that_holds(session: pytest.Pytester, xdist: tuple[str, ...]) -> None:
    text = section_of(
        session.runpytest_inprocess("--trainability-suggest", "--trainability-cure=off", *xdist).stdout.str()
    )
    markers = markers_of(text)
    assert list(markers) == [f"test_it.py::{name}" for name in ("test_bounded", "test_depth", "test_plain")]
    assert "one marker for 2 tests" in text and "log_gain differs: " in text
    assert "# lyapunov_max: fails now, and is kept" in text and "lyapunov_max=within(0.001)," in text
    assert "within(100)" not in text and "seeds=6," in markers["test_it.py::test_bounded"]
    imports = next(line for line in text.splitlines() if line.startswith("from pytest_trainability import"))
    ast.parse(f"{imports}\n{markers['test_it.py::test_plain']}\ndef test(): pass")
    body = TESTS.replace("def test_plain", f"{markers['test_it.py::test_plain']}\ndef test_plain")
    body = body.replace("from pytest_trainability import at_least, within", imports)
    session.makepyfile(test_it=body)
    assert session.runpytest_inprocess("-k", "test_plain", "--trainability-seeds=40-47").ret == 0


def test_without_the_option_nothing_is_suggested(session: pytest.Pytester) -> None:
    assert "suggestions" not in session.runpytest_inprocess("-k", "plain").stdout.str()


def test_all_seeds_are_drawn_also_where_bounds_are_settled_early(session: pytest.Pytester) -> None:
    text = section_of(
        session.runpytest_inprocess("--trainability-suggest", "--trainability-cure=off", "-k", "bounded").stdout.str()
    )
    assert "# test_it.py::test_bounded, 6 seeds" in text


def test_the_verdict_of_a_session_is_that_without_the_option(session: pytest.Pytester) -> None:
    session.runpytest_inprocess("--trainability-suggest", "--trainability-cure=off").assert_outcomes(passed=4, failed=1)


def test_a_measurement_that_is_judged_again_is_suggested_once(session: pytest.Pytester) -> None:
    again = """
@pytest.fixture(scope="module")
def shared(trainability_factory):
    return trainability_factory(tower(), x, seeds=2)

def test_twice(trainability, shared):
    trainability(trainability(shared, log_gain=within(100)), lyapunov_max=within(5))
"""
    session.makepyfile(test_it=TESTS + again)
    arguments = ("--trainability-suggest", "--trainability-json=report.json", "-k", "twice")
    session.runpytest_inprocess(*arguments).assert_outcomes(passed=1)
    found = json.loads((session.path / "report.json").read_text(encoding="utf-8"))
    assert [test["test"] for test in found["suggestions"]] == ["test_it.py::test_twice"]


def test_a_session_that_measures_nothing_says_so(session: pytest.Pytester) -> None:
    text = session.runpytest_inprocess("--trainability-suggest", "-k", "other").stdout.str()
    assert "No test has measured a model: there is nothing to suggest." in text


def test_a_preset_stays_in_the_marker_and_its_bounds_are_not_repeated(session: pytest.Pytester) -> None:
    session.makepyfile(
        test_it=TESTS.replace("seeds=6, log_gain=within(100), lyapunov_max=within(0.001)", "preset='cnn', seeds=6")
    )
    marker = markers_of(
        section_of(
            session.runpytest_inprocess(
                "--trainability-suggest", "--trainability-cure=off", "-k", "bounded"
            ).stdout.str()
        )
    )["test_it.py::test_bounded"]
    assert 'preset="cnn",' in marker and "unused_parameters" not in marker and "nonfinite" not in marker


@XDIST
def test_the_suggestions_are_part_of_the_json_report(session: pytest.Pytester, xdist: tuple[str, ...]) -> None:
    arguments = (
        "--trainability-suggest",
        "--trainability-cure=off",
        "--trainability-json=report.json",
        "-k",
        "bounded",
    )
    session.runpytest_inprocess(*arguments, *xdist)
    found = json.loads((session.path / "report.json").read_text(encoding="utf-8"))
    jsonschema.validate(found, schema())
    (test,) = found["suggestions"]
    assert (test["test"], test["seeds"], test["passed"]) == ("test_it.py::test_bounded", 6, False)
    assert test["settings"] == [{"name": "seeds", "code": "6"}]
    bounds = {bound["measure"]: bound for bound in test["bounds"]}
    assert bounds["lyapunov_max"]["code"] == "within(0.001)"
    assert bounds["lyapunov_max"]["kept"].startswith("fails now, and is kept")
    assert re.fullmatch(r"within\(-\S+, -?\S+\)", bounds["log_gain"]["code"]) and bounds["log_gain"]["kept"] == ""


def test_without_the_option_the_json_report_has_no_suggestions(session: pytest.Pytester) -> None:
    session.runpytest_inprocess("--trainability-json=report.json", "-k", "plain")
    assert json.loads((session.path / "report.json").read_text(encoding="utf-8"))["suggestions"] == []


def test_a_table_is_suggested_as_a_table(session: pytest.Pytester) -> None:
    text = '[test."t.1"]\nmodel = "small_nets:net"\ninputs = "4x8"\nseeds = 6\n'
    session.makefile(".toml", trainability=text)
    arguments = ("--trainability-suggest", "--trainability-cure=off", "trainability.toml")
    lines = section_of(session.runpytest_inprocess(*arguments).stdout.str()).strip().splitlines()
    assert lines[:2] == ["# trainability.toml::t.1, 6 seeds", '[test."t.1".bounds]']
    pasted = [line for line in lines[1:] if not line.startswith("#")]
    session.makefile(".toml", trainability="\n".join([text, *pasted]))
    session.runpytest_inprocess("trainability.toml").assert_outcomes(passed=1)
