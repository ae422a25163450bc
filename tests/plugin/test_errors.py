"""Measurements that could not be made: each is listed and counted, in one process and in workers of xdist."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.pytester import Pytester

TESTS = """
import pytest, torch
from torch import nn
from pytest_trainability import ModelError, within
from small_nets import images, net


class Impatient(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        y = self.net(x)
        y.sum().backward()
        return y


def test_holds(trainability):
    trainability(net, images).check(log_gain=within(100))

def test_wrong_shape(trainability):
    trainability(net, torch.randn(4, 3))

def test_second_model(trainability):
    trainability(net, images, name="first").check(log_gain=within(100))
    trainability(nn.Linear, images, name="second")

def test_does_not_apply(trainability):
    assert trainability(net, images).initial_loss < 3

def test_error_that_is_not_ours(trainability):
    trainability(Impatient, images)

def test_expected_error(trainability):
    with pytest.raises(ModelError):
        trainability(net, torch.randn(4, 3))

@pytest.mark.xfail
def test_known_error(trainability):
    trainability(net, torch.randn(4, 3))

def test_other_error(trainability):
    trainability(net, images).check(log_gain=within(100))
    raise KeyError("not from here")
"""


@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["alone", "xdist"])
def test_measurements_that_raised_are_listed_and_counted(project: Pytester, workers: list[str]) -> None:
    project.makepyfile(test_it=TESTS)
    result = project.runpytest_inprocess(*workers) if not workers else project.runpytest_subprocess(*workers)
    result.assert_outcomes(passed=2, failed=5, xfailed=1)
    lines = result.stdout.str().partition("= trainability =")[2].splitlines()
    listed = {line.split()[1] for line in lines if line.startswith("  ! ")}
    assert listed == {"test_wrong_shape", "test_second_model", "test_does_not_apply", "test_error_that_is_not_ours"}
    assert any(" could not be measured, " in line and "4 could" in line for line in lines)
    # The checks of a test that raised our error are not to blame; those of a test with another error are.
    assert {line.split()[1] for line in lines if line.startswith("  ✘ ")} == {"test_other_error"}


def test_the_traceback_of_a_measure_that_does_not_apply_ends_in_the_test(project: Pytester) -> None:
    project.makepyfile(
        test_it="""
        from small_nets import images, net
        def test_it(trainability):
            assert trainability(net, images, seeds=1).initial_loss < 3
        """
    )
    result = project.runpytest_inprocess("--tb=short")
    result.assert_outcomes(failed=1)
    assert {line.partition(":")[0] for line in result.outlines if re.search(r"\.py:\d", line)} == {"test_it.py"}
    assert any(
        re.match(r"FAILED test_it.py::test_it - InapplicableError: initial_loss", line) for line in result.outlines
    )


TOLD_ONCE = """
import pytest
from pytest_trainability import within
from small_nets import images, net

@pytest.mark.trainability(log_gain=within(0.5))
def test_it(trainability):
    trainability(net, images, seeds=2)
"""


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ((), "traceback"),
        (("-q",), "traceback"),
        (("-vv",), "traceback"),
        (("--tb=short",), "traceback"),
        (("--tb=line",), "either"),
        (("--tb=no",), "section"),
        (("--no-summary",), "section"),
    ],
    ids=["plain", "quiet", "verbose", "short", "line", "no traceback", "no summary"],
)
@pytest.mark.parametrize("ci", [True, False], ids=["CI", "elsewhere"])
def test_a_failure_is_explained_once(
    project: Pytester, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], where: str, ci: bool
) -> None:
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    if ci:
        monkeypatch.setenv("CI", "true")
    project.makepyfile(test_it=TOLD_ONCE)
    project.makeconftest(
        "def pytest_terminal_summary(terminalreporter):\n    terminalreporter.write_line('another plugin')\n"
    )
    result = project.runpytest_inprocess(*arguments)
    result.assert_outcomes(failed=1)
    lines = result.outlines
    if "another plugin" not in lines:
        assert arguments == ("--no-summary",)
        pytest.skip("this version of pytest asks no plugin for its summary with --no-summary")
    for label in ("along depth", "likely cause", "reproduce"):
        found = [line for line in lines if re.match(rf"(E +| +){label} ", line)]
        assert len(found) == 1, label
        assert where == "either" or found[0].startswith("E") == (where == "traceback"), label
    last = [line for line in lines if line.startswith("FAILED test_it.py::test_it - ")]
    assert len(last) == ("--no-summary" not in arguments)
    assert all(re.search(r" - log_gain -\d\.\d\d must lie in \[-0.5, 0.5\]$", line) for line in last)


def test_a_failure_that_was_swallowed_is_explained_in_the_section(project: Pytester) -> None:
    project.makepyfile(
        test_it="""
        import contextlib
        from small_nets import images, net
        def test_it(trainability):
            with contextlib.suppress(AssertionError):
                trainability(net, images, seeds=4).check(log_gain=(-0.5, 0.5))
        """
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines([r"  log_gain +-\S+ ± \S+ nats, must lie in \[-0.5, 0.5\]: .*", "  likely cause .*"])


def test_what_asserts_nothing_is_not_counted_for_the_required_number(project: Pytester) -> None:
    project.makepyfile(
        test_it="""
        from small_nets import images, net, tower
        from pytest_trainability import width_sweep
        def test_idle(trainability):
            trainability(net, images, seeds=1)
        def test_bound(trainability):
            trainability(net, images, seeds=1).check(log_gain=(-99, 99))
        def test_assertion(trainability):
            assert trainability(net, images, seeds=1).gradient_norm > 0
        """
    )
    result = project.runpytest_inprocess("--trainability-require=3")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "  ○ test_idle *",
            "  ✔ test_bound *",
            "  ✔ test_assertion *",
            "2 of 3 hold, 1 asserts nothing, *",
            "2 measured (1 with nothing asserted), --trainability-require=3: too few",
        ]
    )
    assert project.runpytest_inprocess("--trainability-require=2").ret == pytest.ExitCode.OK


def test_the_section_says_which_gradient_was_measured(project: Pytester) -> None:
    project.makepyfile(
        test_it="""
        import torch
        from torch import nn
        from small_nets import images, net

        class Own(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net()
            def forward(self, x):
                y = self.net(x)
                return {"loss": y.square().mean(), "logits": y}

        def test_functional(trainability):
            trainability(net, images, seeds=1)
        def test_given(trainability):
            trainability(net, images, seeds=1, loss=lambda y: y.square().mean())
        def test_own(trainability):
            trainability(Own, images, seeds=1)
        """
    )
    lines = project.runpytest_inprocess("-q").outlines + project.runpytest_inprocess().outlines
    section = "\n".join(lines)
    functional, loss = re.split(r"gradient of the loss", section)[0], re.split(r"gradient of the loss", section)[1]
    assert "gradient of a random functional of the output" in functional
    assert "test_functional" in functional
    assert "test_given" in loss
    assert "test_own" in loss


FRAMES = {
    "a backward pass inside the model": (
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x):
        out = self.body(x)
        out.sum().backward()
        return out

def test_it(trainability):
    trainability(Net, torch.randn(4, 8))
""",
        "Where the output or the loss depends on that gradient, as a penalty or force does, pass create_graph=True: without it",
    ),
    "a factory that needs arguments": (
        "def test_it(trainability):\n    trainability(nn.Linear, torch.randn(4, 8))\n",
        "Give it its arguments in a lambda: lambda: Linear(...).",
    ),
    "a pattern that matches nothing": (
        """
def test_it(trainability):
    result = trainability(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.randn(4, 8), seeds=1)
    assert result.gradient_norm.excluding("*.bais") > 0
""",
        "No name matches the pattern '*.bais'. Nearest: ",
    ),
}


@pytest.mark.parametrize("case", FRAMES)
def test_a_mistake_is_shown_at_the_line_of_the_test_without_internal_frames(project: Pytester, case: str) -> None:
    code, message = FRAMES[case]
    project.makepyfile(test_it=f"import torch\nfrom torch import nn\n\n{code}")
    text = project.runpytest_inprocess().stdout.str()
    assert message in text
    assert "direct cause" not in text and "pytest_trainability/" not in text


def test_the_frames_of_the_model_are_shown(project: Pytester) -> None:
    code = """
import torch
from torch import nn

class Net(nn.Linear):
    def forward(self, x):
        raise ValueError("in the model")

def test_it(trainability):
    trainability(lambda: Net(8, 8), torch.randn(4, 8))
"""
    project.makepyfile(test_it=code)
    project.runpytest_inprocess().stdout.fnmatch_lines(['>       raise ValueError("in the model")'])
