"""Measurements that could not be made: each is listed and counted, in one process and in workers of xdist."""

from __future__ import annotations

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


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["alone", "xdist"])
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
