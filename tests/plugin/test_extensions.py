"""The hooks for other plugins, and the example plugin that implements them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
NAME = "pytest_trainability_kurtosis"


@pytest.fixture
def example(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A session into which the example plugin can be loaded."""
    pytester.syspathinsert(EXAMPLE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (EXAMPLE, pytester.path))))
    pytester.makepyfile(
        nets_of_the_example="""
        import torch
        from torch import nn

        def tower(depth=4):
            return lambda: nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(16, 16), nn.Tanh())])

        class TwoStreamNet(nn.Module):
            def __init__(self):
                super().__init__()
                self.pairs = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)) for _ in range(3))

            def forward(self, x):
                for pair in self.pairs:
                    x = x + pair(x)
                return x

        x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
        """
    )
    return pytester


@pytest.mark.parametrize("workers", ["0", "1"])
def test_measure_of_the_example_is_an_attribute_and_has_bounds(example: pytest.Pytester, workers: str) -> None:
    example.makepyfile(
        """
        import pytest
        from nets_of_the_example import tower, x
        from pytest_trainability import at_least, at_most

        @pytest.mark.trainability(gradient_kurtosis=at_least(1))
        def test_holds(trainability):
            # Jensen: the fourth moment is never below the square of the second.
            result = trainability(tower(), x)
            assert result.gradient_kurtosis > 1
            assert "0.weight" in result.gradient_kurtosis

        @pytest.mark.trainability(gradient_kurtosis=at_most(1.01))
        def test_fails(trainability):
            trainability(tower(), x)
        """
    )
    # A worker that the controller of this process starts does not find the plugin.
    run = example.runpytest_inprocess if workers == "0" else example.runpytest_subprocess
    result = run("-p", NAME, "-n", workers)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*gradient_kurtosis*", "*must be ≤ 1.01*"])


def test_without_the_plugin_the_measure_is_unknown(example: pytest.Pytester) -> None:
    example.makepyfile(
        """
        import pytest
        from pytest_trainability import at_least

        @pytest.mark.trainability(gradient_kurtosis=at_least(1))
        def test_unknown(trainability):
            pass
        """
    )
    result = example.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*unknown measure 'gradient_kurtosis'.*"])


def test_measures_are_removed_at_the_end_of_the_session(example: pytest.Pytester) -> None:
    example.makepyfile(
        "from nets_of_the_example import *\ndef test_it(trainability):\n    trainability(tower(), x).gradient_kurtosis"
    )
    result = example.runpytest_inprocess("-p", NAME)
    result.assert_outcomes(passed=1)
    from pytest_trainability.measures import MEASURES

    assert "gradient_kurtosis" not in MEASURES


def test_measure_that_was_there_before_the_session_stays(project: pytest.Pytester) -> None:
    """Another plugin, or a library, may have added the same measure: a session removes only its own additions."""
    from pytest_trainability import Measure, add_measure
    from pytest_trainability.measures import MEASURES

    shared = Measure("shared_measure", "scalar", "", "linear", frozenset(), lambda run: 1.0)
    add_measure(shared)
    try:
        project.makeconftest(
            """
            def pytest_trainability_measures():
                from pytest_trainability import Measure
                from pytest_trainability.measures import MEASURES

                return [
                    MEASURES["shared_measure"],
                    Measure("own_measure", "scalar", "", "linear", frozenset(), lambda run: 2.0),
                ]
            """
        )
        project.makepyfile(
            """
            from small_nets import images, net

            def test_it(trainability):
                result = trainability(net, images, seeds=1)
                assert (result.shared_measure, result.own_measure) == (1, 2)
            """
        )
        project.runpytest_inprocess("-p", "no:xdist").assert_outcomes(passed=1)
        assert MEASURES["shared_measure"] is shared
        assert "own_measure" not in MEASURES
    finally:
        MEASURES.pop("shared_measure", None)
        MEASURES.pop("own_measure", None)


def test_plugin_chooses_the_steps_unless_the_user_does(example: pytest.Pytester) -> None:
    example.makepyfile(
        """
        from nets_of_the_example import TwoStreamNet, tower, x

        def test_steps(trainability):
            assert list(trainability(TwoStreamNet, x).steps) == ["pairs.0", "pairs.1", "pairs.2"]
            assert len(trainability(TwoStreamNet, x, steps="layers", name="layers").steps) == 6
            assert len(trainability(tower(5), x, name="tower").steps) == 5

        def test_own_steps(trainability):
            # Without the plugin the repeated blocks are found; with it they are chosen by name.
            assert trainability(TwoStreamNet, x).steps.description == "3 × Sequential"
        """
    )
    example.runpytest_inprocess("-p", NAME).assert_outcomes(passed=2)


def test_environment_keeps_baselines_apart(example: pytest.Pytester) -> None:
    example.makepyfile(
        test_it="from nets_of_the_example import tower, x\n"
        "def test_it(trainability):\n    trainability(tower(), x).check_baseline()"
    )
    example.runpytest_inprocess("-p", NAME, "--trainability-baseline=new").assert_outcomes(passed=1)
    stored = json.loads((example.path / "__trainability__" / "test_it.json").read_text())
    (key,) = stored["tests"]["test_it"]["Sequential"] if "tests" in stored else next(iter(_entries(stored)))
    assert "onednn=" in key
    example.runpytest_inprocess("-p", NAME).assert_outcomes(passed=1)
    # Without the plugin the environment has another key, and no baseline.
    missing = example.runpytest_inprocess()
    missing.assert_outcomes(failed=1)
    missing.stdout.fnmatch_lines(["*no baseline*"])


def _entries(tree):
    if isinstance(tree, dict):
        if any("cpu" in key for key in tree):
            yield list(tree)
        for value in tree.values():
            yield from _entries(value)


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        ("def pytest_trainability_measures():\n    return ['x']", ["must be a pytest_trainability.Measure. Got str"]),
        ("def pytest_trainability_measures():\n    return None", ["must return a list of measures. Got None."]),
        (
            "def pytest_trainability_measures():\n    raise OSError('no file')",
            ["pytest_trainability_measures of", "conftest.py must not raise. It raised OSError: no file"],
        ),
        (
            """
            def pytest_trainability_measures():
                from pytest_trainability import Measure
                return [Measure("log_gain", "scalar", "", "linear", frozenset(), lambda run: 0.0)]
            """,
            ["conftest.py", "'log_gain' is taken"],
        ),
        (
            """
            def pytest_trainability_measures():
                from pytest_trainability import Measure
                return [Measure("seeds", "scalar", "", "linear", frozenset(), lambda run: 0.0)]
            """,
            ["'seeds' is taken"],
        ),
    ],
)
def test_invalid_measures_are_refused(pytester: pytest.Pytester, hook: str, says: list[str]) -> None:
    from textwrap import dedent

    pytester.makeconftest(dedent(hook))
    pytester.makepyfile("def test_it(trainability): pass")
    result = pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    for text in says:
        assert text in result.stderr.str()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("{'kernels': 2}", "must return strings by name"),
        ("'kernels'", "must return strings by name"),
        ("{'torch': '3'}", "must differ from the project's own"),
    ],
)
def test_invalid_environments_are_refused(pytester: pytest.Pytester, answer: str, says: str) -> None:
    pytester.makeconftest(f"def pytest_trainability_environment():\n    return {answer}")
    pytester.makepyfile(
        "import torch\ndef test_it(trainability):\n"
        "    trainability(lambda: torch.nn.Linear(3, 3), torch.zeros(2, 3)).check_baseline()"
    )
    result = pytester.runpytest_inprocess("--trainability-baseline=new")
    result.assert_outcomes(failed=1)
    assert says in result.stdout.str()


def test_unknown_steps_of_a_plugin_are_refused(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("def pytest_trainability_steps(model):\n    return 'blocks_that_are_not.*'")
    pytester.makepyfile(
        "import torch\ndef test_it(trainability):\n    trainability(lambda: torch.nn.Linear(3, 3), torch.zeros(2, 3))"
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    said = result.stdout.str()
    assert "the hook pytest_trainability_steps of a plugin must return steps of the model" in said
    assert "It returned 'blocks_that_are_not.*': steps='blocks_that_are_not.*' must match a module of Linear" in said


def test_loading_the_example_plugin_does_not_load_torch(example: pytest.Pytester) -> None:
    example.makeconftest(
        "import sys\ndef pytest_sessionfinish():\n    assert 'torch' not in sys.modules, 'torch was loaded'"
    )
    example.makepyfile("def test_it(): pass")
    assert example.runpytest_subprocess("-p", NAME).ret == 0
