"""Failures of tests: the line that raises, the message, and the command that repeats them."""

from __future__ import annotations

import gc
import re
import shlex
from typing import TYPE_CHECKING

import pytest

from pytest_trainability.plugin import swallowed

if TYPE_CHECKING:
    from _pytest.pytester import Pytester, RunResult


def explanation(result: RunResult) -> list[str]:
    """Return the lines that pytest marks as the error."""
    return [line.removeprefix("E").strip() for line in result.stdout.lines if line.startswith("E  ")]


HEAD = """
import pytest, torch
from pytest_trainability import at_least, at_most, within
from small_nets import images, net, tower
"""


def test_traceback_ends_at_the_line_of_the_user(project: Pytester) -> None:
    project.makepyfile(
        test_it=HEAD
        + """
@pytest.mark.trainability(log_gain=within(0.5))
def test_marker(trainability):
    trainability(net, images, seeds=2)  # here by marker

def test_check(trainability):
    result = trainability(net, images, seeds=2)
    result.check(log_gain=within(0.5))  # here by check
"""
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=2)
    text = result.stdout.str()
    assert re.search(r"^> .*# here by marker$", text, re.MULTILINE)
    assert re.search(r"^> .*# here by check$", text, re.MULTILINE)
    assert set(re.findall(r"^(\S+\.py):\d+: ", text, re.MULTILINE)) == {"test_it.py"}
    assert text.count("test_it.py:7: TrainabilityFailure") == 1
    assert text.count("test_it.py:11: TrainabilityFailure") == 1


def test_one_failure_lists_every_violation(project: Pytester) -> None:
    project.makepyfile(
        test_it=HEAD
        + """
@pytest.mark.trainability(log_gain=within(0.5), gradient_norm=at_least(10), activation_rms=at_most(5))
def test_marker(trainability):
    trainability(net, images)
"""
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    lines = explanation(result)
    assert re.search(r"log_gain -3\.\d\d must lie in \[-0.5, 0.5\]; gradient_norm fails, too$", lines[0])
    text = "\n".join(lines)
    assert re.search(r"^log_gain +-\S+ ± \S+ nats, must lie in \[-0.5, 0.5\]: \S+ outside$", text, re.MULTILINE)
    assert re.search(r"^gradient_norm +\S.*, must be ≥ 10: \S+ times too small$", text, re.MULTILINE)
    assert "12 of 12 outside, worst " in text
    assert "activation_rms" not in text
    for label in ("measured", "along depth", "leaves band", "likely cause", "reproduce"):
        assert re.search(f"^{label} ", text, re.MULTILINE), label


def test_plain_asserts_are_explained(project: Pytester) -> None:
    project.makepyfile(
        test_it=HEAD
        + """
def test_estimate(trainability):
    assert abs(trainability(net, images).log_gain) < 0.1

def test_profile(trainability):
    assert trainability(net, images).gradient_norm > 10

def test_spectrum(trainability):
    assert trainability(net, images, exponents=3).lyapunov_spectrum > -0.1
"""
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=3)
    estimate, profile, spectrum = re.split(r"^_+ test_\w+ _+$", result.stdout.str(), flags=re.M)[1:]
    assert re.search(r"assert \+\S+ ± \S+ nats \(4 seeds\) < 0.1", estimate)
    assert "12 of 12 elements are not > 10; the worst:" in profile
    assert re.search(r"^E +\d+\.weight: \S+ ×/÷ \S+", profile, re.MULTILINE)
    assert "3 of 3 elements are not > -0.1; the worst:" in spectrum
    assert re.search(r"^E +exponent 3: -\S+ ± \S+ nats/step", spectrum, re.MULTILINE)


def test_comparison_with_the_number_on_the_left_is_explained(project: Pytester) -> None:
    project.makepyfile(
        test_it=HEAD + "def test_it(trainability):\n    assert 10 < trainability(net, images, seeds=1).gradient_norm\n"
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    assert "12 of 12 elements" in result.stdout.str()


REPRODUCED = {
    "marker": ("log_gain=within(0.5)", "", []),
    "one seed of the call": ("log_gain=within(0.5)", ", seeds=1", []),
    "another seed of the command line": ("log_gain=within(0.5)", "", ["--trainability-seeds=5-5"]),
    "seeds of the command line": ("log_gain=within(0.5)", "", ["--trainability-seeds=1,4-6"]),
    "bound of the command line": ("", "", ["--trainability-bounds=log_gain >= -0.5"]),
    "dtype of the command line": ("log_gain=within(0.5)", "", ["--trainability-dtype=float64"]),
    "confidence of the command line": ("log_gain=within(0.5)", "", ["--trainability-confidence=0.5"]),
}


@pytest.mark.parametrize(("mark", "call", "args"), REPRODUCED.values(), ids=REPRODUCED.keys())
def test_the_command_reproduces_the_failure(project: Pytester, mark: str, call: str, args: list[str]) -> None:
    """All numbers are the same, although other tests run before and the name needs quotes in a shell."""
    project.makepyfile(
        test_it=HEAD
        + f"""
@pytest.mark.trainability
def test_other():
    torch.randn(5)

class TestIt:
    @pytest.mark.parametrize("what", ["a b; c"])
    @pytest.mark.trainability({mark})
    def test_it(self, trainability, what):
        trainability(net, torch.randn(4, 8){call})
"""
    )
    first = project.runpytest_inprocess(*args)
    first.assert_outcomes(passed=1, failed=1)
    (command,) = (line.split(None, 1)[1] for line in explanation(first) if line.startswith("reproduce "))
    program, *again = shlex.split(command)
    assert program == "pytest"
    second = project.runpytest_inprocess(*again)
    second.assert_outcomes(failed=1)
    without = [[line for line in explanation(run) if not line.startswith("reproduce ")] for run in (first, second)]
    assert without[0] == without[1]


def test_command_works_in_the_folder_in_which_pytest_was_started(
    project: Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makeini("[pytest]")
    folder = project.mkdir("sub")
    (folder / "test_it.py").write_text(
        HEAD + "def test_it(trainability):\n    trainability(net, images, seeds=2).check(log_gain=within(0.5))\n"
    )
    monkeypatch.syspath_prepend(project.path)
    monkeypatch.chdir(folder)
    first = project.runpytest_inprocess()
    first.assert_outcomes(failed=1)
    (command,) = (line.split(None, 1)[1] for line in explanation(first) if line.startswith("reproduce "))
    project.runpytest_inprocess(*shlex.split(command)[1:]).assert_outcomes(failed=1)


def test_bound_of_a_marker_without_a_measurement_is_not_green(project: Pytester) -> None:
    """A check that judges nothing must not be green: the author of the bound forgot to measure."""
    project.makepyfile(
        test_it=HEAD
        + """
@pytest.mark.trainability(log_gain=within(0.5))
def test_forgotten():
    net()
"""
    )
    result = project.runpytest_inprocess()
    assert result.ret != pytest.ExitCode.OK or "trainability" in "".join(result.stdout.lines[5:])


def test_only_the_failing_check_of_a_test_is_red(project: Pytester) -> None:
    project.makepyfile(
        test_it=HEAD
        + """
def test_two(trainability):
    first = trainability(net, images, seeds=2, name="first")
    first.check(log_gain=within(100))
    trainability(net, images, seeds=2, name="second").check(log_gain=within(0.01))

@pytest.mark.xfail
def test_expected(trainability):
    trainability(net, images, seeds=2).check(log_gain=within(0.01))

def test_plain(trainability):
    trainability(net, images, seeds=2)
    assert 1 + 1 == 3
"""
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=2, xfailed=1)
    rows = {line.split("  ")[1] for line in result.stdout.lines if re.match(r"  [✔○✘x] ", line)}
    assert rows == {"✔ test_two (first)", "✘ test_two (second)", "x test_expected", "✘ test_plain"}
    assert any(
        line.startswith("1 of 4 hold, 2 failed, 1 expected to fail, measured in") for line in result.stdout.lines
    )


def test_an_error_has_no_likely_cause(project: Pytester) -> None:
    """Growth along the chain explains small and large gradients, but not other errors."""
    project.makepyfile(
        test_it=HEAD
        + """
deep = tower(60)

def test_error(trainability):
    trainability(deep, torch.randn(4, 8), seeds=2)
    raise KeyError("no such file")

def test_assert(trainability):
    assert trainability(deep, torch.randn(4, 8), seeds=2).log_gain.mean > -1
"""
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=2)
    text = result.stdout.str()
    error, plain = text.index("\ntest_it.py::test_error\n"), text.index("\ntest_it.py::test_assert\n")
    shown = text.index("likely cause", text.index("= trainability ="))
    assert min(error, plain) < shown
    assert "likely cause" not in text[error : plain if error < plain else text.index(" hold, measured")]


def test_overflow_fails_the_bound_and_raises_nothing_else(project: Pytester) -> None:
    """Numbers that overflow must fail the bound; they must not raise another error."""
    project.makepyfile(
        test_it=HEAD
        + """
@pytest.mark.parametrize("size, dtype", [(1e30, "float32"), (3e38, "float32"), (1e308, "float64"), (1e3, "float16")])
def test_it(trainability, size, dtype):
    def model():
        layers = [torch.nn.Linear(8, 8, dtype=getattr(torch, dtype)) for _ in range(4)]
        for layer in layers:
            torch.nn.init.constant_(layer.weight, size)
        return torch.nn.Sequential(*layers)

    trainability(model, images, dtype=dtype, seeds=2).check(log_gain=within(5))
"""
    )
    result = project.runpytest_inprocess("--tb=line")
    result.assert_outcomes(failed=4)
    text = result.stdout.str()
    assert len(re.findall(r"test_it\.py:13: log_gain \S+ must lie in \[-5, 5\]$", text, re.MULTILINE)) == 4
    assert "OverflowError" not in text
    assert "AttributeError" not in text


def test_bounds_without_a_measured_model_fail_the_test(project: Pytester) -> None:
    """A marker without the fixture would check nothing. A marker of a module may apply to tests that do not measure."""
    project.makepyfile(
        test_it="""
        import pytest
        pytestmark = pytest.mark.trainability(log_gain=(-9, 9))

        @pytest.mark.trainability(log_gain=(-9, 9))
        def test_forgotten():
            pass

        def test_other():
            pass
        """
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*must be judged on a model. This test has measured no model.*"])


BOUNDED = {
    "class": ("@pytest.mark.trainability(log_gain=(-9, 9))\nclass TestIt:\n    {test}", "", []),
    "module": ("pytestmark = pytest.mark.trainability(log_gain=(-9, 9))\n{test}", "", []),
    "ini file": ("{test}", "trainability_bounds = log_gain = [-9, 9]", []),
    "preset of the ini file": ("{test}", "trainability_preset = mlp", []),
    "command line": ("{test}", "", ["--trainability-bounds=log_gain = [-9, 9]"]),
}
UNCALLED = {
    "an argument": ("def test_it({self}trainability): pass", ""),
    "a late fixture": ("def test_it({self}request): request.getfixturevalue('trainability')", ""),
    "a fixture of a fixture": (
        "def test_it({self}measured): pass",
        "@pytest.fixture\ndef measured(trainability): return trainability\n",
    ),
}


@pytest.mark.parametrize(("test", "fixture"), UNCALLED.values(), ids=UNCALLED.keys())
@pytest.mark.parametrize(("source", "ini", "options"), BOUNDED.values(), ids=BOUNDED.keys())
def test_a_test_with_bounds_that_takes_the_fixture_and_never_calls_it_fails(
    project: Pytester, source: str, ini: str, options: list[str], test: str, fixture: str
) -> None:
    test = test.replace("{self}", "self, " if "class" in source else "")
    project.makepyfile(test_it=f"import pytest\n{fixture}{source.replace('{test}', test)}\ndef test_other(): pass\n")
    project.makeini(f"[pytest]\n{ini}")
    result = project.runpytest_inprocess(*options)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*that apply to this test must be judged on a model: *log_gain*has not called it.*"])


def test_a_test_that_calls_the_fixture_in_vain_is_free_of_the_bounds_of_the_session(project: Pytester) -> None:
    """It may expect an error, or make a size sweep, to which bounds of models do not apply."""
    project.makepyfile(
        test_it=HEAD
        + """
def test_error(trainability):
    with pytest.raises(ValueError):
        trainability(net, images, seeds=0)

def test_skip(trainability):
    pytest.skip("not today")

def test_sweep(trainability):
    trainability.width_sweep(
        lambda width: torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.Tanh(), torch.nn.Linear(width, 8)),
        [4, 8], images, seeds=1,
    )
"""
    )
    result = project.runpytest_inprocess("--trainability-bounds=log_gain = [-9, 9]")
    result.assert_outcomes(passed=2, skipped=1)


def test_bounds_of_a_unittest_method_fail_the_test(project: Pytester) -> None:
    project.makepyfile(
        test_it="""
        import unittest
        import pytest

        class TestModel(unittest.TestCase):
            @pytest.mark.trainability(log_gain=(-9, 9))
            def test_it(self):
                pass
        """
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*must be judged on a model*"])


SWALLOWED = """
import contextlib, threading, unittest
from concurrent.futures import ThreadPoolExecutor

def bad(trainability, **options):
    trainability(net, images, seeds=1, **options).check(log_gain=within(0.01))

def test_suppressed(trainability):
    with contextlib.suppress(AssertionError):
        bad(trainability, name="\\x1bone")

def test_caught(trainability):
    result = trainability(net, images, seeds=1)
    try:
        result.check(log_gain=within(0.01))
    except AssertionError:
        result.check(gradient_norm=at_least(0))

@pytest.mark.filterwarnings("ignore")
def test_in_a_thread(trainability):
    thread = threading.Thread(target=bad, args=[trainability])
    thread.start()
    thread.join()

@pytest.mark.trainability(log_gain=within(0.01))
def test_bound_of_the_marker(trainability):
    with contextlib.suppress(AssertionError):
        trainability(net, images, seeds=1)

def test_baseline(trainability):
    with contextlib.suppress(AssertionError):
        trainability(net, images, seeds=1).check_baseline()

def test_called_for_another_exception(trainability):
    with contextlib.suppress(AssertionError):
        pytest.raises((ValueError, OSError), bad, trainability)

# The second context is kept for the whole session, and is open in none of these tests.
@pytest.mark.parametrize("context", [contextlib.nullcontext(), pytest.raises(ValueError)], ids=["none", "raises"])
def test_with_a_kept_context(context):
    with context as info:
        int("one" if info is not None else "1")

kept = pytest.raises(AssertionError)
"""
IN_TEARDOWN = """
@pytest.fixture
def late(trainability):
    yield
    with contextlib.suppress(AssertionError):
        bad(trainability)

def test_passes(late):
    pass

def test_fails_once(late, trainability):
    bad(trainability)
"""
EXPECTED = """
def test_raises(trainability):
    result = trainability(net, images, seeds=1)
    with pytest.raises(AssertionError, match="log_gain"):
        result.check(log_gain=within(0.01))
    result.check(gradient_norm=at_least(0))

def test_called(trainability):
    pytest.raises(AssertionError, bad, trainability)

def test_called_with_several(trainability):
    pytest.raises((ValueError, AssertionError), bad, trainability)

def test_called_in_a_thread(trainability):
    with ThreadPoolExecutor() as pool:
        pytest.raises(AssertionError, lambda: pool.submit(bad, trainability).result())

def test_of_a_future(trainability):
    with ThreadPoolExecutor() as pool, pytest.raises(AssertionError):
        pool.submit(bad, trainability).result()

def test_second_attempt(trainability):
    result = trainability(net, images, seeds=1)
    try:
        result.check(log_gain=within(0.01))
    except AssertionError:
        result.check(log_gain=within(100))

class TestUnit(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def take(self, trainability):
        self.trainability = trainability

    def test_unit(self):
        with self.assertRaises(AssertionError):
            bad(self.trainability)
"""


def test_a_failed_check_does_not_list_every_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look at each in Python takes a tenth of a second, and longer the more tests have run."""

    def refuse() -> None:
        pytest.fail("all objects are listed")

    monkeypatch.setattr(gc, "get_objects", refuse)
    assert not swallowed._failure_is_expected()
    with pytest.raises(AssertionError):
        assert not swallowed._failure_is_expected()
    with pytest.raises(KeyError):
        assert swallowed._failure_is_expected() or {}["another exception is expected"]


def test_a_failed_check_in_a_teardown_fails_the_teardown(project: Pytester) -> None:
    project.makepyfile(test_it=HEAD + SWALLOWED.partition("def test_suppressed")[0] + IN_TEARDOWN)
    result = project.runpytest_inprocess("--tb=short")
    result.assert_outcomes(failed=1, passed=1, errors=2)
    assert result.stdout.str().count("although log_gain of ") == 2


def test_a_failed_check_fails_its_test_unless_the_test_expects_it(project: Pytester) -> None:
    project.makepyfile(test_it=HEAD + SWALLOWED + EXPECTED)
    result = project.runpytest_inprocess("--tb=short")
    result.assert_outcomes(failed=6, passed=9)
    text = result.stdout.str()
    assert text.count("a check that fails must fail its test.") == 6
    assert r"although log_gain of \x1bone failed" in text
    assert "although the baseline of " in text


def test_bounds_of_the_call_are_judged_before_others(pytester: Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest, torch
        from torch import nn
        from pytest_trainability import at_least, within

        def net():
            return nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])

        @pytest.mark.trainability(log_gain=within(1000, 2000), gradient_norm=at_least(1e3))
        def test_holds(trainability):
            trainability(net, torch.ones(2, 8), log_gain=within(100), gradient_norm=at_least(1e-9, excluding="*.bias"))

        def test_fails(trainability):
            trainability(net, torch.ones(2, 8), gradient_norm=at_least(1e3, matching="2.*"))

        def test_misspelt(trainability):
            trainability(net, torch.ones(2, 8), gradient_norm=at_least(1e3, matching="2.wieght"))
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        ["*gradient_norm*must be ≥ 1000 (only 2.[*])*", "*BoundError: the bound of gradient_norm: *2.weight*"]
    )


def test_an_error_of_a_measure_shows_the_line_of_the_test_only(pytester: Pytester) -> None:
    pytester.makepyfile(
        """
        import torch
        from torch import nn

        def test_loss(trainability):
            assert trainability(lambda: nn.Linear(3, 3), torch.ones(2, 3)).initial_loss < 3
        """
    )
    result = pytester.runpytest_inprocess("--tb=short")
    result.assert_outcomes(failed=1)
    assert "result.py" not in result.stdout.str()
    result.stdout.fnmatch_lines(["E *InapplicableError: initial_loss and excess_loss need a loss.*"])
