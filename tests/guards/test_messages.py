"""Messages of usage errors: the requirement, the invalid value and its place, the remedy; one line, exit status 4."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.pytester import Pytester, RunResult

PLAIN = "def test_nothing():\n    pass"
MEASURES = """
from pytest_trainability import *
from small_nets import net, images

def test_model(trainability):
    trainability(net, images, seeds=2)
"""
EVERY_MEASURE = "Measures: activation_rms, angle_exponent, asleep_parameters, attention_entropy"


def marked(bound: str) -> str:
    """Write a test whose marker holds ``bound``."""
    return f"""
import pytest
from pytest_trainability import *
from small_nets import net, images

@pytest.mark.trainability({bound})
def test_model(trainability):
    trainability(net, images, seeds=2)
"""


def the_error(result: RunResult) -> str:
    """Return the only line that a refused session prints."""
    text = result.stdout.str() + result.stderr.str()
    assert "Traceback" not in text
    assert "INTERNALERROR" not in text
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    lines = [line for line in result.stderr.str().splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("ERROR: ")
    return lines[0].removeprefix("ERROR: ")


def the_failure(result: RunResult) -> list[str]:
    """Return what a test prints that fails for its marker, a line for each error."""
    text = result.stdout.str() + result.stderr.str()
    assert "Traceback" not in text
    assert "INTERNALERROR" not in text
    result.assert_outcomes(failed=1)
    lines = result.stdout.str().splitlines()
    start = next(number for number, line in enumerate(lines) if " test_model " in line)
    return [line for line in lines[start + 1 :] if line.startswith("the marker of ")]


SEEDS = ["seeds must be", "'0-7'"]
DEVICE = ["the device must be auto, cpu, cuda, cuda:N or mps"]
DTYPE = ["dtype must be a floating type", "float32"]
CONFIDENCE = ["the confidence must lie between 0 and 1", "0.99"]

SETTINGS = [
    ("seeds", "0", SEEDS),
    ("seeds", "7-0", SEEDS),
    ("seeds", "eight", SEEDS),
    ("seeds", "1.5", SEEDS),
    ("seeds", "0-", SEEDS),
    ("device", "gpu", DEVICE),
    ("device", "cuda:x", DEVICE),
    ("dtype", "int8", DTYPE),
    ("dtype", "single", DTYPE),
    ("confidence", "99", CONFIDENCE),
    ("confidence", "nan", CONFIDENCE),
    ("confidence", "high", CONFIDENCE),
    ("confidence", "1", CONFIDENCE),
]


@pytest.mark.parametrize(("name", "value", "said"), SETTINGS, ids=[f"{name}={value}" for name, value, _ in SETTINGS])
def test_an_invalid_setting_is_refused_as_option_and_in_the_ini_file(
    project: Pytester, name: str, value: str, said: list[str]
) -> None:
    project.makepyfile(PLAIN)
    by_option = the_error(project.runpytest_inprocess(f"--trainability-{name}={value}"))
    project.makeini(f"[pytest]\ntrainability_{name} = {value}")
    by_ini = the_error(project.runpytest_inprocess())
    for text in (by_option, by_ini):
        assert all(part in text for part in [*said, f"Got {value!r}"]), text
    assert by_option.startswith(f"--trainability-{name}: ")
    assert by_ini.startswith(f"trainability_{name} in {project.path / 'tox.ini'}: ")


BOUNDS = [
    ("log_gain = [3, -3]", ["log_gain", "lower end of a bound must not exceed the upper", "Got [3, -3]", "Swap them"]),
    ("log_gain = [nan, 3]", ["log_gain", "ends of a bound must be numbers", "low=nan"]),
    ("log_gain = 3", ["must hold lines such as 'lyapunov_max = [-0.05, 0.05]'", "Got 'log_gain = 3'"]),
    ("log_gain = [,]", ["log_gain", "a bound must have at least one end"]),
    ("log_gain = [a, 3]", ["log_gain", "ends of a bound must be numbers", "Got 'a' in '[a, 3]'"]),
    ("log_gain > 3", ["log_gain", "a bound must be written as [low, high], >= low or <= high", "Got '> 3'"]),
    ("log_gain == 3", ["must hold lines such as", "Got 'log_gain == 3'"]),
    ("log_gain", ["must hold lines such as", "Got 'log_gain'"]),
    ("log gain = [0, 1]", ["must hold lines such as", "Got 'log gain = [0, 1]'"]),
    ("log_gain = [1, 2, 3]", ["log_gain", "a bound must be written as", "Got '[1, 2, 3]'"]),
]


@pytest.mark.parametrize(("line", "said"), BOUNDS, ids=[line for line, _ in BOUNDS])
def test_an_invalid_bound_is_refused_as_option_and_in_the_ini_file(
    project: Pytester, line: str, said: list[str]
) -> None:
    """Also in a session without measurements: a bound that is not in force should not look as if it were."""
    project.makepyfile(PLAIN)
    by_option = the_error(project.runpytest_inprocess(f"--trainability-bounds={line}"))
    project.makeini(f"[pytest]\ntrainability_bounds =\n    {line}")
    by_ini = the_error(project.runpytest_inprocess())
    for text in (by_option, by_ini):
        assert all(part in text for part in said), text
    assert by_option.startswith("--trainability-bounds")
    assert by_ini.startswith(f"trainability_bounds in {project.path / 'tox.ini'}")


def test_an_unknown_measure_in_settings_is_refused(project: Pytester) -> None:
    project.makepyfile(test_it=MEASURES)
    by_option = the_error(project.runpytest_inprocess("--trainability-bounds=gradient_nrom >= 1e-6"))
    project.makeini("[pytest]\ntrainability_bounds =\n    gradient_nrom >= 1e-6")
    by_ini = the_error(project.runpytest_inprocess())
    for text in (by_option, by_ini):
        assert "unknown measure 'gradient_nrom'. Did you mean 'gradient_norm'?" in text
    assert by_option.startswith("--trainability-bounds: unknown measure")
    assert by_ini.startswith(f"trainability_bounds in {project.path / 'tox.ini'}: unknown measure")


MARKERS = [
    ("log_gian=within(3)", ["unknown measure 'log_gian'", "Did you mean 'log_gain'?"]),
    ("zzz=within(3)", ["unknown measure 'zzz'.", EVERY_MEASURE]),
    ("log_gain=(3, -3)", ["log_gain", "must not exceed the upper", "Got [3, -3]", "Swap them"]),
    ("log_gain=(float('nan'), 3)", ["log_gain", "ends of a bound must be numbers", "Got low=nan"]),
    ("log_gain=3", ["log_gain must be within(eps)", "Got 3.", "within(3), at_least(3) or at_most(3)"]),
    ("log_gain=True", ["log_gain must be within(eps)", "Got True."]),
    ("log_gain=(None, None)", ["log_gain", "at least one end", "Got (None, None)"]),
    ("log_gain=(True, 3)", ["log_gain", "ends of a bound must be numbers", "Got low=True"]),
    ("log_gain=(1, 2, 3)", ["log_gain must be within(eps)", "Got (1, 2, 3)"]),
    ("log_gain=None", ["log_gain must be within(eps)", "Got None"]),
    ("log_gain='3'", ["log_gain", "must be written as [low, high]", "Got '3'"]),
    ("within(3)", ["must have bounds by name, as in trainability(log_gain=within(3))", "Got within(-3.0, 3.0)"]),
]


@pytest.mark.parametrize(("bound", "said"), MARKERS, ids=[bound for bound, _ in MARKERS])
def test_an_invalid_marker_fails_its_test(project: Pytester, bound: str, said: list[str]) -> None:
    project.makepyfile(test_it=marked(bound))
    (text,) = the_failure(project.runpytest_inprocess())
    assert text.startswith("the marker of test_it.py::test_model")
    assert all(part in text for part in said), text
    assert ".. " not in text


UNREADABLE = {
    "a tolerance without a name": ("tolerances={None: 1}", "unknown measure None."),
    "a tolerance too large": ("tolerances={'log_gain': 10**400}", "must be a finite number of at least 0. Got 1000"),
    "a bound too large": ("log_gain=(10**400, None)", "the ends of a bound must be numbers"),
    "a bound without a repr": ("log_gain=Hostile()", "Got a value of class Hostile that cannot be shown."),
    "a seed without a repr": ("seeds=Hostile()", "Got a value of class Hostile that cannot be shown."),
    "a device without a repr": ("device=Hostile()", "has a value that cannot be read: RuntimeError: \\x1b"),
    "a preset without a repr": ("preset=Hostile()", "has a value that cannot be read: RuntimeError"),
    "tolerances without a repr": ("tolerances=Hostile()", "has a value that cannot be read: RuntimeError"),
    "a positional value": ("Hostile()", "has a value that cannot be read: RuntimeError"),
    "too many seeds": ("seeds=20240101", "A single seed is [20240101]."),
}
HOSTILE = """
class Hostile:
    def __repr__(self):
        raise RuntimeError("\\x1b[31m\\n::error::no")
"""


@pytest.mark.parametrize(("value", "said"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_value_of_a_marker_that_cannot_be_read_is_refused_in_one_line(
    project: Pytester, value: str, said: str
) -> None:
    project.makepyfile(test_it=HOSTILE + marked(value))
    (text,) = the_failure(project.runpytest_inprocess())
    assert text.startswith("the marker of test_it.py::test_model")
    assert said in text
    assert text.isprintable()


EMPTY = ["seeds", "device", "dtype", "confidence", "preset", "bounds", "tolerances"]


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_value_is_refused_everywhere(project: Pytester, name: str) -> None:
    """It comes from an empty shell variable, and would switch off the value of the ini file."""
    project.makepyfile(PLAIN)
    given = {"bounds": "log_gain = [-9, 9]", "tolerances": "log_gain = 1", "preset": "mlp", "seeds": "2"}
    project.makeini(f"[pytest]\ntrainability_{name} = {given.get(name, '')}")
    for value in ("", " "):
        said = the_error(project.runpytest_inprocess(f"--trainability-{name}={value}"))
        assert said.startswith(f"--trainability-{name} must have a value. Got ")
    said = the_error(project.runpytest_inprocess("-o", f"trainability_{name}="))
    assert said.startswith(f"trainability_{name} in {project.path / 'tox.ini'} must have a value. Got ")


def test_a_negative_number_of_models_is_refused(project: Pytester) -> None:
    project.makepyfile(PLAIN)
    said = the_error(project.runpytest_inprocess("--trainability-require=-3"))
    assert said == "--trainability-require must be at least 0. Got -3."


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        pytest.param("seeds=0", SEEDS, id="seeds"),
        pytest.param("device='gpu'", DEVICE, id="device"),
        pytest.param("dtype='int8'", DTYPE, id="dtype"),
    ],
)
def test_an_invalid_setting_in_a_marker_is_refused(project: Pytester, setting: str, said: list[str]) -> None:
    """Like an invalid bound: by its test, with the place of the marker."""
    project.makepyfile(test_it=marked(setting).replace(", seeds=2", ""))
    (text,) = the_failure(project.runpytest_inprocess())
    assert text.startswith("the marker of test_it.py::test_model")
    assert all(part in text for part in said), text


CHECKS = [
    (
        "log_gian=within(3)",
        "BoundError: check() in test_it.py::test_model: unknown measure 'log_gian'. Did you",
    ),
    ("log_gain=3", "BoundError: check() in test_it.py::test_model: the bound of log_gain must be within(eps)"),
    ("log_gain=True", "BoundError: check() in test_it.py::test_model: the bound of log_gain must be within(eps)"),
    ("log_gain=(3, -3)", "BoundError: check() in test_it.py::test_model: log_gain: the lower end of a bound must not"),
    ("", "BoundError: check() needs a bound, such as log_gain=within(3), or preset=."),
]


@pytest.mark.parametrize(("bound", "said"), CHECKS, ids=[bound or "nothing" for bound, _ in CHECKS])
def test_an_invalid_call_of_check_fails_its_test(project: Pytester, bound: str, said: str) -> None:
    project.makepyfile(
        test_it=MEASURES.replace(
            "trainability(net, images, seeds=2)", f"trainability(net, images, seeds=2).check({bound})"
        )
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    assert re.search(rf"^E +pytest_trainability\.errors\.{re.escape(said)}", result.stdout.str(), re.MULTILINE)


def test_a_usage_error_in_a_test_points_at_the_line_of_the_user(project: Pytester) -> None:
    """The traceback has no frames of the package."""
    project.makepyfile(
        test_it="""
        from small_nets import net, images

        def test_measure(measurement):
            measurement.check(log_gian=(-3, 3))

        def test_seeds(trainability):
            trainability(net, images, seeds=0)

        def test_inputs(trainability):
            trainability(net, images[:, :5], seeds=1)
        """,
        conftest="""
        import pytest
        from small_nets import net, images

        @pytest.fixture
        def measurement(trainability):
            return trainability(net, images, seeds=1)
        """,
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=3)
    assert "pytest_trainability/" not in result.stdout.str()
    assert result.stdout.str().count("\ntest_it.py:") >= 3


WITHIN = [
    ("within(-3)", "eps must not be negative. Got -3. For an interval: within(low, high)"),
    ("within(3, -3)", "Got [3, -3]. Swap them"),
    ("within(float('nan'))", "must be numbers, or None for an open end. Got low=nan"),
    ("at_least(float('nan'))", "Got low=nan"),
    ("at_most(True)", "Got high=True"),
    ("at_least(None)", "a bound must have at least one end"),
    ("within(True)", "must be numbers"),
    ("within('0.05')", "must be numbers"),
    ("within(None)", "must be"),
    ("Bound()", "a bound must have at least one end. Got (None, None), which everything satisfies"),
]


@pytest.mark.parametrize(("call", "said"), WITHIN, ids=[call for call, _ in WITHIN])
def test_an_invalid_bound_is_refused_when_it_is_created(call: str, said: str) -> None:
    from pytest_trainability import Bound, BoundError, at_least, at_most, within

    names = {"Bound": Bound, "at_least": at_least, "at_most": at_most, "within": within}
    with pytest.raises(BoundError, match=re.escape(said)):
        eval(call, names)


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(["--trainability-seeds=0"], id="option"),
        pytest.param(["--trainability-bounds=log_gain = [3, -3]"], id="bound"),
    ],
)
def test_the_controller_of_xdist_refuses_invalid_settings(project: Pytester, args: list[str]) -> None:
    pytest.importorskip("xdist", reason="workers come with pytest-xdist")
    project.makepyfile(PLAIN)
    assert the_error(project.runpytest_inprocess("-n", "2", *args)).startswith("--trainability-")


def test_all_errors_of_a_marker_are_listed_and_other_tests_run(project: Pytester) -> None:
    unrelated = "\n\ndef test_unrelated():\n    pass\n"
    project.makepyfile(test_it=marked("log_gian=within(3), seeds=0, tolerances={'zzz': 1}") + unrelated)
    result = project.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=1)
    parts = ["unknown measure 'log_gian'", "seeds must be", "unknown measure 'zzz'"]
    assert all(any(part in line for line in result.outlines) for part in parts)


def test_the_message_of_an_unknown_measure_in_an_option_survives_xdist(project: Pytester) -> None:
    """Without the message of the worker, only a failure of xdist would be visible."""
    pytest.importorskip("xdist", reason="workers come with pytest-xdist")
    project.makepyfile(test_it=marked("log_gain=within(3)"))
    result = project.runpytest_subprocess("-n", "1", "--trainability-bounds=log_gian >= 3")
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--trainability-bounds: unknown measure 'log_gian'. Did you mean 'log_gain'?" in text
    assert "INTERNALERROR" not in text
