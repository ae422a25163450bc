"""Whole sessions: the same results with and without workers, selection by ``-m``, and the section on every terminal."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.pytester import Pytester, RunResult

SUITE = """
import pytest, torch
from pathlib import Path
from pytest_trainability import at_least, at_most, within
from small_nets import images, net, tower


def draw(name):
    Path(f"{name}.drawn").write_text(str(torch.randn(3).tolist()))


@pytest.mark.trainability(log_gain=within(100), gradient_norm=at_least(1e-30))
def test_holds(trainability):
    draw("holds")
    trainability(net, images)


@pytest.mark.trainability(log_gain=within(0.5), gradient_norm=at_least(10))
def test_fails(trainability):
    draw("fails")
    trainability(net, images, seeds=3)


def test_plain_assert(trainability):
    draw("plain")
    assert trainability(net, images, seeds=2).log_gain > 0


@pytest.mark.parametrize("depth", [3, 5])
def test_depth(trainability, depth):
    trainability(tower(depth), images, name="shallow")
    trainability(tower(2 * depth), images).check(log_gain=within(-100, -1))


class TestModule:
    def test_finished(self, trainability):
        draw("finished")
        trainability(net(), torch.randn(4, 8)).check(nonfinite=at_most(0))


def test_measures_nothing():
    pass
"""


def test_sessions_inside_tests_are_not_shuffled(pytester: Pytester) -> None:
    """pytest-randomly shuffles tests where it is installed: it is switched off for every test that uses pytester."""
    assert "no:randomly" in os.environ["PYTEST_ADDOPTS"]
    pytester.makepyfile("\n".join(f"def test_{n}():\n    print('RAN', {n})" for n in range(20)))
    printed = re.findall(r"RAN (\d+)", pytester.runpytest_inprocess("-s").stdout.str())
    assert printed == [str(n) for n in range(20)]


@dataclass(frozen=True)
class Outcome:
    """The results of a session, without times and order."""

    ret: int
    counts: dict[str, int]
    section: list[str]
    drawn: dict[str, str]


def section(result: RunResult) -> list[str]:
    """Return the lines of the terminal section."""
    found: list[str] = []
    inside = False
    for line in result.stdout.str().splitlines():
        if re.fullmatch(r"=+ trainability =+", line):
            inside = True
        elif re.match(r"=+ .* =+$", line):
            inside = False
        elif inside:
            found.append(line)
    return found


def outcome(project: Pytester, result: RunResult) -> Outcome:
    lines = sorted(re.sub(r"[\d.]+ s$", "… s", line) for line in section(result))
    drawn = {path.stem: path.read_text() for path in project.path.glob("*.drawn")}
    for path in project.path.glob("*.drawn"):
        path.unlink()
    return Outcome(int(result.ret), result.parseoutcomes(), lines, drawn)


@pytest.mark.parametrize("args", [["-n", "0"], ["-n", "2"], ["-p", "no:xdist"]], ids=" ".join)
def test_verdicts_and_section_are_the_same_everywhere(project: Pytester, args: list[str]) -> None:
    """Neither the process that measures nor the order changes numbers or lines."""
    if "-n" in args:
        pytest.importorskip("xdist", reason="workers come with pytest-xdist")
    project.makepyfile(test_suite=SUITE)
    plain = outcome(project, project.runpytest_inprocess())
    assert plain.counts == {"passed": 5, "failed": 2}
    assert plain.ret == pytest.ExitCode.TESTS_FAILED
    assert set(plain.drawn) == {"holds", "fails", "plain", "finished"}
    assert plain.section
    assert outcome(project, project.runpytest_inprocess(*args)) == plain


def test_bounds_of_numpy_can_be_sent_to_another_process(project: Pytester) -> None:
    """``within(np.log(10))`` is a common bound, but execnet sends only Python's own floats."""
    pytest.importorskip("xdist", reason="workers come with pytest-xdist")
    project.makepyfile(
        test_it="""
        import numpy as np, pytest
        from pytest_trainability import within
        from small_nets import images, net

        @pytest.mark.trainability(log_gain=within(np.log(1e9)))
        def test_model(trainability):
            trainability(net, images, seeds=2)
        """
    )
    result = project.runpytest_subprocess("-n", "1")
    assert "INTERNALERROR" not in result.stdout.str()
    result.assert_outcomes(passed=1)


SELECTABLE = """
import pytest

pytest.importorskip("torch")

@pytest.mark.trainability(seeds=2)
def test_marker():
    pass

def test_fixture(trainability):
    pass

@pytest.fixture
def model(trainability):
    return None

def test_through_another_fixture(model):
    pass

@pytest.mark.usefixtures("trainability")
class TestAll:
    def test_used(self):
        pass

def test_plain():
    pass
"""


def test_marker_expression_selects_tests_with_the_marker_or_the_fixture(project: Pytester) -> None:
    project.makepyfile(SELECTABLE)
    chosen = project.runpytest_inprocess("-m", "trainability", "-v", "--strict-markers")
    chosen.assert_outcomes(passed=4, deselected=1)
    assert "test_plain" not in chosen.stdout.str()
    rest = project.runpytest_inprocess("-m", "not trainability", "-v")
    rest.assert_outcomes(passed=1, deselected=4)


def test_the_marker_is_documented(project: Pytester) -> None:
    text = project.runpytest_inprocess("--markers").stdout.str()
    assert "@pytest.mark.trainability(**bounds): " in text
    shown = project.runpytest_inprocess("--help").stdout.str()
    for option in ("seeds", "device", "dtype", "confidence", "bounds"):
        assert f"--trainability-{option}" in shown
        assert f"trainability_{option}" in shown


LONG = """
import pytest, torch
from torch import nn
from pytest_trainability import at_least, within
from small_nets import images


class EncoderLayerWithRelativePositionBias(nn.Linear):
    pass


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [
            EncoderLayerWithRelativePositionBias(8, 8) for _ in range(5)
        ]
        self.student_network = nn.ModuleDict({"encoder_stack": nn.Sequential(*layers)})

    def forward(self, x):
        return self.student_network["encoder_stack"](x)


@pytest.mark.parametrize("what", ["a parameter that is rather long, has spaces, and goes on for more than a line"])
class TestTheInitializationOfTheStudent:
    @pytest.mark.trainability(log_gain=within(0.1), gradient_norm=at_least(10), activation_rms=at_least(100))
    def test_that_gradients_neither_vanish_nor_explode(self, trainability, what):
        trainability(Model, images, seeds=[0, 2, 4, 6, 8, 10, 12, 14])


@pytest.mark.trainability(log_gain=within(0.1))
def test_short(trainability):
    trainability(Model, images, seeds=2, name="the student's network, as it is built for the second stage of training")
"""


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("flag", ["-q", "-v"])
def test_the_section_stays_within_the_terminal(
    project: Pytester, monkeypatch: pytest.MonkeyPatch, width: int, flag: str
) -> None:
    """Commands and code of a single word may be longer, because users copy them."""
    monkeypatch.setenv("COLUMNS", str(width))
    project.makepyfile(test_long_names_of_files_are_common_too=LONG)
    result = project.runpytest_inprocess(flag, "--tb=no")
    lines = section(result)
    assert sum("reproduce" in line for line in lines) == 2
    copied = re.compile(r"\s+(reproduce|(cure|or) +\S+$)")
    assert [line for line in lines if len(line) > width and not copied.match(line)] == []


def test_quiet_lists_failures_only(project: Pytester) -> None:
    project.makepyfile(test_suite=SUITE)
    lines = section(project.runpytest_inprocess("-q", "--tb=no"))
    rows = [line for line in lines if re.match(r"\s+[✔○✘] ", line)]
    assert len(rows) == 2
    assert all("✘" in row for row in rows)
    assert lines[-1].startswith(
        ("3 of 7 hold, 2 failed, 2 assert nothing, measured in ", "4 of 8 hold, 2 failed, 2 assert ")
    )


def test_verbose_shows_bounds_and_growth_along_depth(project: Pytester) -> None:
    project.makepyfile(test_suite=SUITE)
    text = "\n".join(section(project.runpytest_inprocess("-v", "--tb=no", "-k", "test_holds")))
    assert "must lie in [-100, 100]" in text
    assert "must be ≥ 1e-30" in text
    assert "along depth" in text
    assert "took" in text


def test_a_session_that_measures_nothing_prints_no_section(project: Pytester) -> None:
    project.makepyfile(test_suite=SUITE)
    result = project.runpytest_inprocess("-k", "measures_nothing")
    result.assert_outcomes(passed=1, deselected=6)
    assert not re.search(r"=+ trainability =+", result.stdout.str())


def test_plain_terminals_get_ascii(project: Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    project.makepyfile(test_suite=SUITE)
    result = project.runpytest_subprocess("-p", "no:xdist", "-v", "--tb=no", "-k", "holds or fails")
    result.assert_outcomes(passed=1, failed=1, deselected=5)
    text = "\n".join(section(result))
    assert text.isascii()
    assert "must be >= 10" in text
    assert "6 x Linear" in text
    assert "+-" in text
    assert "\\" not in text, "a character without an ASCII form"


def test_a_session_without_terminal_has_the_same_verdicts(project: Pytester) -> None:
    project.makepyfile(test_suite=SUITE)
    result = project.runpytest_inprocess("-p", "no:terminal")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.stdout.str() == ""


@pytest.mark.parametrize("args", [["-p", "no:cacheprovider"], ["-p", "no:assertion"]], ids=" ".join)
def test_other_plugins_are_not_needed(project: Pytester, args: list[str]) -> None:
    project.makepyfile(test_suite=SUITE)
    result = project.runpytest_inprocess(*args)
    result.assert_outcomes(passed=5, failed=2)
    assert section(result)


def test_first_import_of_torch_by_the_plugin_does_not_warn(project: Pytester) -> None:
    """In a subprocess the plugin imports torch and all other modules under ``-W error``."""
    project.makepyfile(
        test_it="""
        def test_model(trainability):
            from small_nets import images, net
            assert trainability(net, images).log_gain < 0
        """
    )
    project.runpytest_subprocess("-p", "no:xdist", "-W", "error").assert_outcomes(passed=1)


def test_the_plugin_can_be_turned_off(project: Pytester) -> None:
    project.makepyfile(test_suite=SUITE)
    result = project.runpytest_inprocess("-p", "no:trainability")
    assert result.parseoutcomes()["passed"] == 1
    assert "fixture 'trainability' not found" in result.stdout.str()
    assert not section(result)


def test_failing_plain_assert_makes_the_line_red(project: Pytester) -> None:
    project.makepyfile(
        test_it="""
        from small_nets import images, net
        def test_red(trainability):
            assert trainability(net, images, seeds=2).log_gain > 0
        def test_green(trainability):
            assert trainability(net, images, seeds=2).log_gain < 0
        """
    )
    lines = section(project.runpytest_inprocess())
    assert [line.split()[:2] for line in lines if re.match(r"\s+[✔○✘] ", line)] == [
        ["✘", "test_red"],
        ["✔", "test_green"],
    ]
    assert lines[-1].startswith("1 of 2 hold")


def test_failing_plain_assert_after_bounds_that_hold_makes_the_line_red(project: Pytester) -> None:
    """A green mark before the name of a failing test would mislead."""
    project.makepyfile(
        test_it="""
        from pytest_trainability import within
        from small_nets import images, net
        def test_red(trainability):
            result = trainability(net, images, seeds=2)
            result.check(log_gain=within(100))
            assert result.log_gain > 0
        """
    )
    lines = section(project.runpytest_inprocess())
    assert not any("✔" in line for line in lines)


def test_skipped_test_is_not_a_failed_check(project: Pytester) -> None:
    project.makepyfile(
        test_it="""
        import pytest
        from small_nets import images, net
        def test_skipped(trainability):
            trainability(net, images, seeds=2)
            pytest.skip("not today")
        """
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(skipped=1)
    assert not any("✘" in line for line in section(result))


def test_failing_check_in_a_fixture_is_in_the_section(project: Pytester) -> None:
    project.makepyfile(
        test_it="""
        import pytest
        from pytest_trainability import within
        from small_nets import images, net

        @pytest.fixture
        def measured(trainability):
            result = trainability(net, images, seeds=2)
            result.check(log_gain=within(0.1))
            return result

        def test_model(measured):
            pass
        """
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    assert any("✘ test_model" in line for line in section(result))


def test_each_measurement_of_a_test_has_a_line(project: Pytester) -> None:
    project.makepyfile(
        test_it="""
        from small_nets import images, tower
        def test_many(trainability):
            for depth in (3, 4, 5):
                trainability(tower(depth), images, seeds=1)
            for depth in (6, 7):
                trainability(tower(depth), images, seeds=1, name=f"depth {depth}")
        """
    )
    rows = [line for line in section(project.runpytest_inprocess()) if "○" in line]
    assert [re.search(r"\d × Linear", row)[0] for row in rows] == [f"{d} × Linear" for d in (3, 4, 5, 6, 7)]  # type: ignore[index]
    titles = ["test_many ", "test_many (measurement 2)", "test_many (measurement 3)", "test_many (depth 6)"]
    assert all(title in row for title, row in zip(titles, rows))


def test_all_measurements_of_the_same_name_are_shown(project: Pytester) -> None:
    """A later one must not hide that an earlier one failed."""
    project.makepyfile(
        test_it="""
        import pytest
        from pytest_trainability import TrainabilityFailure, within
        from small_nets import images, tower
        def test_both(trainability):
            for depth in (6, 3):
                trainability(tower(depth), images, seeds=1, name="net")
        """
    )
    rows = [line for line in section(project.runpytest_inprocess()) if "○" in line]
    assert len(rows) == 2
