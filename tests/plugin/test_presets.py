"""Presets: default bounds of a family, from the marker, the command line, the ini file and check()."""

from __future__ import annotations

import pytest

TOWER = """
import pytest, torch
from torch import nn
from pytest_trainability import within

def tower():
    return nn.Sequential(*[m for _ in range(30) for m in (nn.Linear(32, 32), nn.Tanh())])

x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
"""
"""The tower loses 0.55 nats per layer, 16 in total. All presets flag it."""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    # No cure is looked for, which takes most of the time of a failure.
    pytester.makeini("[pytest]\naddopts = --trainability-cure=off\n")
    pytester.makepyfile(
        TOWER
        + """
def test_plain(trainability):
    trainability(tower, x)

@pytest.mark.trainability(preset="mlp")
def test_marked(trainability):
    trainability(tower, x)

@pytest.mark.trainability(preset="mlp", log_gain=within(30))
def test_bound_replaces_the_one_of_the_preset(trainability):
    trainability(tower, x)

@pytest.mark.trainability(preset=None)
def test_none(trainability):
    trainability(tower, x)

def test_checked(trainability):
    result = trainability(tower, x)
    result.check(preset="mlp", log_gain=within(30))
    with pytest.raises(AssertionError, match="^log_gain .* must "):
        result.check(preset="mlp")
"""
    )
    return pytester


def test_preset_of_a_marker_and_of_check(suite: pytest.Pytester) -> None:
    result = suite.runpytest_inprocess("-rf")
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["*log_gain*must lie in*", "FAILED *test_marked*"])


def test_preset_of_the_command_line_applies_where_no_marker_sets_one(suite: pytest.Pytester) -> None:
    result = suite.runpytest_inprocess("--trainability-preset=transformer", "-rf")
    # test_checked fails as well: its measurement is judged by the preset when it is made.
    result.assert_outcomes(passed=2, failed=3)
    result.stdout.fnmatch_lines(["*--trainability-preset=transformer*", "FAILED *test_plain*", "FAILED *test_marked*"])


def test_preset_of_the_ini_file_and_a_bound_that_replaces_its_bound(suite: pytest.Pytester) -> None:
    lines = [
        "addopts = --trainability-cure=off",
        "trainability_preset = mlp",
        "trainability_bounds = log_gain = [-30, 30]",
    ]
    suite.makeini("\n".join(["[pytest]", *lines]))
    suite.runpytest_inprocess().assert_outcomes(passed=5)


def test_unknown_preset_of_the_command_line_is_a_usage_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(trainability): pass")
    result = pytester.runpytest_inprocess("--trainability-preset=mpl")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--trainability-preset: Unknown preset 'mpl'. Did you mean 'mlp'?" in result.stderr.str()


def test_unknown_preset_of_a_marker_fails_the_test(pytester: pytest.Pytester) -> None:
    marked = "@pytest.mark.trainability(preset='resnet')\ndef test_it(trainability): pass"
    pytester.makepyfile(test_it=f"import pytest\n{marked}")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    assert "the marker of test_it.py::test_it: Unknown preset 'resnet'." in result.stdout.str()


def test_preset_of_a_marker_without_a_measurement_fails_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\n@pytest.mark.trainability(preset='mlp')\ndef test_it(): pass")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*must be judged on a model*"])


def test_measures_of_a_preset_are_not_part_of_the_baseline(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_baseline=TOWER
        + """
def test_it(trainability):
    result = trainability(tower, x)
    result.check_baseline()
"""
    )
    suite.runpytest_inprocess("test_baseline.py", "--trainability-baseline=new").assert_outcomes(passed=1)
    relaxed = ("--trainability-preset=mlp", "--trainability-bounds=log_gain = [-30, 30]")
    suite.runpytest_inprocess("test_baseline.py", *relaxed).assert_outcomes(passed=1)
