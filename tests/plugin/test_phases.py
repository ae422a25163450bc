"""Tests that measure, or fail, in another phase or in another way than by a bound: each is reported with its outcome."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pytest_trainability.report.document import read_document

if TYPE_CHECKING:
    from _pytest.pytester import Pytester

TESTS = """
import pytest, torch
from pytest_trainability import within
from small_nets import images, tower


@pytest.fixture
def after(trainability, request):
    yield
    trainability(tower(3), images, seeds=2, name="after", log_gain=within(request.param))


@pytest.fixture
def skipping(trainability):
    trainability(tower(3), images, seeds=2, log_gain=within(100))
    pytest.skip("not today")


@pytest.fixture
def broken(trainability):
    trainability(tower(3), torch.zeros(3, 3), seeds=2)


@pytest.mark.parametrize("after", [100, 0.1], indirect=True)
def test_teardown(after, trainability):
    trainability(tower(3), images, seeds=2, name="call", log_gain=within(100))


def test_skipped(skipping):
    pass


def test_assertion(trainability):
    assert trainability(tower(3), images, seeds=2).log_gain > 100


def test_exception(trainability):
    trainability(tower(3), images, seeds=2)
    raise KeyError("lost")


@pytest.mark.xfail(strict=True)
def test_unexpected_success(trainability):
    trainability(tower(3), images, seeds=2, log_gain=within(100))


@pytest.mark.xfail
def test_expected_error(trainability):
    trainability(tower(3), images, seeds=2, name="first", log_gain=within(100))
    trainability(tower(3), torch.zeros(3, 3), seeds=2, name="second")


@pytest.mark.xfail
def test_expected_error_in_setup(broken):
    pass


@pytest.mark.xfail(raises=AssertionError)
def test_other_error_than_expected(broken):
    pass
"""
CHECKS = {
    "test_teardown[100] › call": "held",
    "test_teardown[100] › after": "held",
    "test_teardown[0.1] › call": "held",
    "test_teardown[0.1] › after": "failed",
    "test_skipped": "held",
    "test_assertion": "failed",
    "test_exception": "failed",
    "test_unexpected_success": "failed",
    "test_expected_error › first": "held",
}
ERRORS = {
    "test_expected_error": True,
    "test_expected_error_in_setup": True,
    "test_other_error_than_expected": False,
}
FILES = ("--trainability-json=report.json", "--trainability-sarif=report.sarif", "--trainability-markdown=report.md")


def without_test(name: str) -> str:
    return name.partition("::")[2]


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "two workers"])
def test_each_is_reported_with_its_outcome(workers: list[str], project: Pytester) -> None:
    if workers:
        pytest.importorskip("xdist", reason="workers come with pytest-xdist")
    project.makepyfile(test_it=TESTS)
    run = project.runpytest_subprocess if workers else project.runpytest_inprocess
    lines = run(*workers, "--tb=no", "--trainability-cure=off", *FILES).stdout.lines
    found = read_document(project.path / "report.json")
    assert {without_test(check["id"]): check["status"] for check in found["checks"]} == CHECKS
    assert {without_test(error["test"]): error["expected"] for error in found["errors"]} == ERRORS
    assert found["summary"]["failed"] == 4
    assert (found["summary"]["not measured"], found["summary"]["expected failure"]) == (1, 2)

    failures = {without_test(check["id"]): check["failure"] for check in found["checks"] if check["failure"]}
    assert failures.pop("test_assertion").startswith("assert -")
    assert failures == {"test_exception": "KeyError: 'lost'", "test_unexpected_success": "[XPASS(strict)]"}
    assert "  failed by      KeyError: 'lost'" in lines
    assert any(line.startswith("  x test_expected_error_in_setup  ModelError: ") for line in lines)
    assert any(line.startswith("  ! test_other_error_than_expected") for line in lines)
    total = "5 of 12 hold, 4 failed, 2 expected to fail, 1 could not be measured, measured in "
    assert any(line.startswith(total) for line in lines)

    # Only what fails the session is a finding.
    folder = project.path
    (run,) = json.loads((folder / "report.sarif").read_text(encoding="utf-8"))["runs"]
    texts = [result["message"]["text"] for result in run["results"]]
    assert len(texts) == 5
    assert not any("test_expected" in text for text in texts)
    assert any("KeyError: 'lost'" in text for text in texts)
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert page.startswith("## ✘ trainability: 4 failed, 1 could not be measured, 2 expected to fail, 5 held\n")
    assert "failed by      KeyError: 'lost'\n" in page


def test_only_the_beginning_of_a_long_message_is_kept(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
from pytest_trainability import within
from small_nets import images, net

def test_long(trainability):
    trainability(net, images, seeds=2, log_gain=within(1000))
    raise RuntimeError("0123456789" * 1000)
"""
    )
    project.runpytest_inprocess("--tb=no", "--trainability-json=report.json").assert_outcomes(failed=1)
    (check,) = read_document(project.path / "report.json")["checks"]
    assert check["failure"] == "RuntimeError: " + "0123456789" * 28 + "012345"
