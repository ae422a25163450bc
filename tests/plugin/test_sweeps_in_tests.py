"""Size sweeps in a test: settings, lines of the section, and bounds of a marker."""

from __future__ import annotations

import pytest

BUILD = """
import pytest, torch
from torch import nn
from pytest_trainability import at_most, within

class Net(nn.Sequential):
    def __init__(self, width, gain=1.0):
        super().__init__(nn.Linear(8, width, bias=False), nn.Linear(width, width, bias=False))
        for layer in self:
            nn.init.normal_(layer.weight, std=gain * layer.in_features ** -0.5)

x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
"""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_size_sweep_uses_the_settings_and_has_a_line(pytester: pytest.Pytester, workers: str) -> None:
    pytester.makepyfile(
        BUILD
        + """
@pytest.mark.trainability(seeds=6, dtype="float64")
def test_widths(trainability):
    scaling = trainability.width_sweep(Net, [16, 32, 64], x, measure="activation_rms")
    assert len(scaling.slope.max.values) == 6
    assert all(m.dtype == "float64" for m in scaling.measurements)
    scaling.check(within(0.3))

def test_red(trainability):
    trainability.width_sweep(lambda n: Net(n, gain=n / 16), [16, 32, 64], x, measure="activation_rms").check(within(0.3))
"""
    )
    result = pytester.runpytest_inprocess("-n", workers, "-rf")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines_random(["*= trainability =*", "*✔ test_widths*", "*✘ test_red*", "FAILED *test_red*"])


def test_bounds_of_a_marker_fail_a_test_with_only_a_size_sweep(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        BUILD
        + """
@pytest.mark.trainability(log_gain=within(3))
def test_widths(trainability):
    trainability.width_sweep(Net, [16, 32], x, measure="activation_rms")
"""
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*for a size sweep, call check() of its result.*"])
