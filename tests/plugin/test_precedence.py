"""call > marker (function over class over module) > command line > ini file, for bounds and for settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from _pytest.pytester import Pytester

SUITE = """
import pytest
from pytest_trainability import at_least, at_most, within
from small_nets import images, net

{pytestmark}

{class_mark}
class TestIt:
    {function_mark}
    def test_it(self, trainability):
        trainability(net, images{call})
"""
PLACES = ("ini", "command line", "module", "class", "function", "call")


def measured(project: Pytester, name: str, values: dict[str, Any], extra: str = "") -> dict[str, Any]:
    """Set one setting in several places, measure, and return the record of the report."""
    marks = {
        place: f"pytest.mark.trainability({name}={values[place]!r}{extra})" if place in values else ""
        for place in ("module", "class", "function")
    }
    text = SUITE.format(
        pytestmark=f"pytestmark = {marks['module']}" if marks["module"] else "",
        class_mark=f"@{marks['class']}" if marks["class"] else "",
        function_mark=f"@{marks['function']}" if marks["function"] else "",
        call=f", {name}={values['call']!r}" if "call" in values else "",
    )
    project.makepyfile(test_it=text)
    if "ini" in values:
        project.makeini(f"[pytest]\ntrainability_{name} = {values['ini']}")
    args = [f"--trainability-{name}={values['command line']}"] if "command line" in values else []
    reports = project.inline_run(*args).getreports("pytest_runtest_logreport")
    (plain,) = (report.trainability[0] for report in reports if hasattr(report, "trainability"))
    return dict(plain)


def levels(values: dict[str, Any]) -> list[Any]:
    """Return one case for each place: the setting is set there and at all places of lower precedence."""
    return [
        pytest.param({p: values[p] for p in PLACES[: i + 1]}, values[place], id=place) for i, place in enumerate(PLACES)
    ]


@pytest.mark.parametrize(
    ("values", "wins"),
    levels({"ini": "1-1", "command line": "2-2", "module": [3], "class": "4-4", "function": (5,), "call": range(6, 7)}),
)
def test_seeds(project: Pytester, values: dict[str, Any], wins: Any) -> None:
    assert measured(project, "seeds", values)["seeds"] == [list(PLACES).index(list(values)[-1]) + 1]


@pytest.mark.parametrize(
    ("values", "wins"),
    levels(
        {
            "ini": "float64",
            "command line": "bfloat16",
            "module": "float64",
            "class": "torch.bfloat16",
            "function": "float64",
            "call": "float32",
        }
    ),
)
def test_dtype(project: Pytester, values: dict[str, Any], wins: str) -> None:
    assert measured(project, "dtype", values, ", seeds=1")["dtype"] == wins.removeprefix("torch.")


@pytest.mark.parametrize("place", PLACES)
def test_device(project: Pytester, place: str) -> None:
    """All places of lower precedence name a device that does not exist."""
    below = PLACES[: PLACES.index(place)]
    assert measured(project, "device", {**dict.fromkeys(below, "cuda:99"), place: "cpu"})["device"] == "cpu"


BOUNDS = """
import pytest
from pytest_trainability import at_least, at_most, within
from small_nets import images, net

{module}

{klass}
class TestIt:
    {function}
    def test_it(self, trainability):
        result = trainability(net, images, seeds=1)
        {call}
"""


@pytest.mark.parametrize("place", PLACES)
def test_bounds(project: Pytester, place: str) -> None:
    """The nearest bound of a measure is judged."""
    high = {name: 101.0 + i for i, name in enumerate(PLACES)}
    given = PLACES[: PLACES.index(place) + 1]
    mark = {p: f"pytest.mark.trainability(log_gain=at_most({high[p]}))" for p in given}
    project.makepyfile(
        test_it=BOUNDS.format(
            module=f"pytestmark = {mark['module']}" if "module" in given else "",
            klass=f"@{mark['class']}" if "class" in given else "",
            function=f"@{mark['function']}" if "function" in given else "",
            call=f"result.check(log_gain=at_most({high['call']}))" if "call" in given else "",
        )
    )
    project.makeini(f"[pytest]\ntrainability_bounds =\n    log_gain <= {high['ini']}")
    args = [f"--trainability-bounds=log_gain <= {high['command line']}"] if "command line" in given else []
    reports = project.inline_run(*args).getreports("pytest_runtest_logreport")
    (plain,) = (report.trainability[0] for report in reports if hasattr(report, "trainability"))
    assert [(v["measure"], v["low"], v["high"]) for v in plain["verdicts"]] == [("log_gain", None, high[place])]


def test_bounds_of_different_measures_add_up(project: Pytester) -> None:
    project.makepyfile(
        test_it=BOUNDS.format(
            module="pytestmark = pytest.mark.trainability(activation_rms=at_least(0))",
            klass="@pytest.mark.trainability(gradient_norm=at_least(0))",
            function="@pytest.mark.trainability(gradient_norm=at_least(1e-30))",
            call="result.check(nonfinite=at_most(0))",
        )
    )
    project.makeini("[pytest]\ntrainability_bounds =\n    log_gain <= 100\n    lyapunov_max <= 100")
    reports = project.inline_run("--trainability-bounds=log_gain >= -100").getreports("pytest_runtest_logreport")
    (plain,) = (report.trainability[0] for report in reports if hasattr(report, "trainability"))
    assert {v["measure"]: (v["low"], v["high"]) for v in plain["verdicts"]} == {
        "log_gain": (-100.0, None),
        "lyapunov_max": (None, 100.0),
        "activation_rms": (0, None),
        "gradient_norm": (1e-30, None),
        "nonfinite": (None, 0),
    }


@pytest.mark.parametrize("by", ["ini", "option"])
def test_two_bounds_of_one_measure_in_one_place_apply_both_or_are_refused(project: Pytester, by: str) -> None:
    """``>= -3`` and ``<= 100`` in one place are meant both: the first must not be dropped silently."""
    project.makepyfile(test_it=BOUNDS.format(module="", klass="", function="", call=""))
    lines = ["log_gain >= -3", "log_gain <= 100"]
    if by == "ini":
        project.makeini("[pytest]\ntrainability_bounds =\n    " + "\n    ".join(lines))
    args = [f"--trainability-bounds={line}" for line in lines] if by == "option" else []
    assert project.runpytest_inprocess(*args).ret != pytest.ExitCode.OK  # the log gain is about -4


def test_settings_in_toml_have_their_types(project: Pytester) -> None:
    """pytest 9 reads ``[tool.pytest]`` with native types."""
    if tuple(map(int, pytest.__version__.split(".")[:1])) < (9,):
        pytest.skip("[tool.pytest] came with pytest 9")
    project.makepyfile(test_it=BOUNDS.format(module="", klass="", function="", call="").replace(", seeds=1", ""))
    project.makepyprojecttoml(
        '[tool.pytest]\ntrainability_seeds = "0-1"\ntrainability_confidence = "0.9"\n'
        'trainability_bounds = ["log_gain <= 100"]'
    )
    reports = project.inline_run().getreports("pytest_runtest_logreport")
    (plain,) = (report.trainability[0] for report in reports if hasattr(report, "trainability"))
    assert plain["seeds"] == [0, 1]
    assert plain["verdicts"][0]["high"] == 100
