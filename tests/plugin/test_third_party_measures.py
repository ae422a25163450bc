"""A plugin's measure has every attribute that a built-in one has: bounds, baselines and reports treat both the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

PLUGIN = """
def pytest_trainability_measures():
    from pytest_trainability.measures import LOSS_SWEEP, PARAMETER_GRADIENTS, SWEEP, declare

    def largest(run):
        found = run[PARAMETER_GRADIENTS].items()
        return {name: float(gradient.abs().max()) for name, gradient in found if gradient is not None}

    @declare(
        "profile",
        scale="log",
        needs=[PARAMETER_GRADIENTS],
        tolerance=0.3,
        zero_by_design="gradient",
        recorded=["depth"],
    )
    def largest_gradient(run):
        return largest(run)

    @declare("profile", scale="log", needs=[PARAMETER_GRADIENTS])
    def every_largest_gradient(run):
        return largest(run)

    @declare("scalar", unit="nats", needs=[SWEEP], explained_by_growth=1, measured_with="companion")
    def gain_of_the_plugin(run):
        return float(run[SWEEP].sums()[:, 0].mean())

    @declare("scalar", unit="nats", needs=[SWEEP])
    def unexplained_gain(run):
        return float(run[SWEEP].sums()[:, 0].mean())

    @declare("scalar")
    def companion(run):
        from nets import companion_reads

        companion_reads.append(run.seed)
        return 0.0

    return [largest_gradient, every_largest_gradient, gain_of_the_plugin, unexplained_gain, companion]
"""

NETS = """
import torch
from torch import nn

class ZeroInit(nn.Module):
    '''Residual blocks whose last layer is zero: the first layers have no gradient before the first optimizer step.'''

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(3))
        for block in self.blocks:
            nn.init.zeros_(block[2].weight)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x

def shrinking():
    tower = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.Tanh())])
    for layer in tower[::2]:
        nn.init.normal_(layer.weight, std=0.05)
    return tower

companion_reads = []
x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    pytester.makeconftest(PLUGIN)
    pytester.makepyfile(nets=NETS)
    return pytester


def test_bounds_skip_parameters_that_are_zero_by_design(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest
        from nets import ZeroInit, x
        from pytest_trainability import at_least

        @pytest.mark.trainability(largest_gradient=at_least(1e-9))
        def test_marked(trainability):
            assert min(e.mean for e in trainability(ZeroInit, x).largest_gradient.values()) == 0

        def test_checked(trainability):
            trainability(ZeroInit, x).check(largest_gradient=at_least(1e-9))

        @pytest.mark.trainability(every_largest_gradient=at_least(1e-9))
        def test_judges_every_element(trainability):
            trainability(ZeroInit, x)
        """
    )
    result = project.runpytest_inprocess("-v")
    result.stdout.fnmatch_lines(["*test_marked PASSED*", "*test_checked PASSED*", "*test_judges_every_element FAILED*"])
    result.stdout.fnmatch_lines(["*every_largest_gradient", "*6 of 12 outside, worst blocks.0.0.weight 0 and 2 more*"])


@pytest.mark.parametrize(("measure", "explained"), [("gain_of_the_plugin", True), ("unexplained_gain", False)])
def test_the_likely_cause_is_printed_for_measures_that_growth_explains(
    project: pytest.Pytester, measure: str, explained: bool
) -> None:
    project.makepyfile(
        f"""
        import pytest
        from nets import shrinking, x
        from pytest_trainability import at_least

        @pytest.mark.trainability({measure}=at_least(-1))
        def test_it(trainability):
            trainability(shrinking, x)
        """
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{measure}*"])
    assert ("likely cause" in result.stdout.str()) is explained


def test_a_bound_reads_the_companion_measure(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest
        from nets import companion_reads, shrinking, x
        from pytest_trainability import at_most

        @pytest.mark.parametrize(("measure", "seeds"), [("gain_of_the_plugin", [0, 1]), ("unexplained_gain", [])])
        def test_it(trainability, measure, seeds):
            result = trainability(shrinking, x, seeds=2)
            assert companion_reads == []
            result.check(**{measure: at_most(0)})
            assert companion_reads == seeds
            companion_reads.clear()
        """
    )
    project.runpytest_inprocess().assert_outcomes(passed=2)


def test_baselines_hold_recorded_measures(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        from nets import shrinking, x

        def test_it(trainability):
            trainability(shrinking, x).check_baseline()
        """
    )
    project.runpytest_inprocess("--trainability-baseline=new").assert_outcomes(passed=1)
    stored = json.loads(Path(project.path, "__trainability__", "test_it.json").read_text())
    text = json.dumps(stored)
    assert "largest_gradient" in text
    assert "every_largest_gradient" not in text
    assert "gain_of_the_plugin" not in text
    project.runpytest_inprocess().assert_outcomes(passed=1)


def test_a_recorded_measure_that_changes_fails_the_baseline(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        from nets import shrinking, x

        def test_it(trainability):
            trainability(shrinking, x).check_baseline()
        """
    )
    project.runpytest_inprocess("--trainability-baseline=new").assert_outcomes(passed=1)
    project.makeconftest(PLUGIN.replace("float(gradient.abs().max())", "2 * float(gradient.abs().max())"))
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*largest_gradient*"])
