"""The registry of measures, the search by name, and the names that plugins may import."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

import pytest_trainability
from pytest_trainability import BoundError, measures
from pytest_trainability.measures import (
    DEFAULT,
    FAMILIES,
    MEASURES,
    companion_of,
    declared_measures,
    find_measure,
    recorded_along,
)


def test_the_registry_holds_every_declared_measure_once() -> None:
    declared = list(declared_measures())
    assert len(declared) > 40, "the families were not read"
    assert list(MEASURES.values())[: len(declared)] == declared
    assert all(MEASURES[m.name] is m for m in declared)


def test_measures_are_ordered_by_family_file_and_line() -> None:
    places = [
        (FAMILIES.index(package), module, m.read.__code__.co_firstlineno)
        for m in declared_measures()
        for package, module in [m.read.__module__.split(".")[-2:]]
    ]
    assert places == sorted(places)


def test_default_measures_and_companions_are_registered() -> None:
    assert set(DEFAULT) <= MEASURES.keys()
    assert {m.measured_with for m in declared_measures()} - {""} <= MEASURES.keys()


def test_recorded_measures_depend_on_the_chain() -> None:
    along_depth = {m.name for m in recorded_along("depth")}
    along_time = {m.name for m in recorded_along("time")}
    assert {"log_gain", "gradient_norm", "growth_rate", "activation_rms", "unused_parameters"} <= along_depth
    assert {"log_gain", "gradient_norm", "lyapunov_max", "unused_parameters"} <= along_time
    assert "lyapunov_max" not in along_depth
    assert "activation_rms" not in along_time


TOLERANCE = re.compile(r"^\| (?P<names>`.*?) \| (?P<value>[\d.]+) ?(?P<unit>.*?)(: [^|]*)? \|$", re.MULTILINE)
"""A row of the table in ``docs/baselines.md``."""
DOCUMENTED = [
    pytest.param(name, float(row["value"]), row["unit"], id=name)
    for row in TOLERANCE.finditer((Path(__file__).parents[3] / "docs" / "baselines.md").read_text(encoding="utf-8"))
    for name in re.findall(r"`(\w+)`", row["names"])
]


@pytest.mark.parametrize(("name", "tolerance", "unit"), DOCUMENTED)
def test_the_tolerance_of_a_measure_is_the_documented_one(name: str, tolerance: float, unit: str) -> None:
    """Those of log-scale measures are logarithms of ratios."""
    measure = MEASURES[name]
    assert measure.tolerance == tolerance
    assert unit == ("nats of ratio" if measure.scale == "log" else measure.unit.replace("/", " per "))


def test_tolerances_are_read_from_the_page() -> None:
    assert len(DOCUMENTED) == len({parameters.id for parameters in DOCUMENTED}) >= 37


@pytest.mark.parametrize(
    ("name", "where", "message"),
    [
        ("log_gian", "", "Unknown measure 'log_gian'. Did you mean 'log_gain'?"),
        ("log_gian", "check()", "check(): unknown measure 'log_gian'. Did you mean 'log_gain'?"),
        ("zzz", "", "Unknown measure 'zzz'. Measures: activation_rms, angle_exponent, asleep_parameters, "),
    ],
)
def test_an_unknown_measure_gets_a_suggestion(name: str, where: str, message: str) -> None:
    with pytest.raises(BoundError) as unknown:
        find_measure(name, where=where)
    assert str(unknown.value).startswith(message)


def test_an_unknown_companion_names_the_measure_and_gets_a_suggestion() -> None:
    lonely = replace(MEASURES["log_gain"], name="my_gain", measured_with="exces_loss")
    with pytest.raises(BoundError) as unknown:
        companion_of(lonely)
    assert str(unknown.value) == (
        "measured_with of the measure 'my_gain': unknown measure 'exces_loss'. Did you mean 'excess_loss'?"
    )


def test_a_known_name_returns_its_measure() -> None:
    assert find_measure("log_gain") is MEASURES["log_gain"]


def test_suggestions_can_be_restricted() -> None:
    with pytest.raises(BoundError, match=r"^Unknown measure 'log_gian'. Measures: gradient_norm.$"):
        find_measure("log_gian", known=["gradient_norm"])


@pytest.mark.parametrize("name", measures.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(measures, name) is not None


def test_shared_names_are_those_of_the_package() -> None:
    for name in ("Measure", "Need", "Run", "Stage"):
        assert getattr(measures, name) is getattr(pytest_trainability, name)


@pytest.mark.parametrize("name", ["SWEEP", "LOSS_SWEEP"])
def test_needs_of_a_family_are_the_objects_that_its_measures_use(name: str) -> None:
    lyapunov = import_module("pytest_trainability.measures.depth.lyapunov")
    assert getattr(measures, name) is getattr(lyapunov, name)


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'SWEEPS'"):
        measures.SWEEPS  # noqa: B018  the access raises


def test_the_needs_can_be_imported_first() -> None:
    """In a new process, where nothing has loaded a family yet."""
    code = "from pytest_trainability.measures import SWEEP, Objective, declare; print(SWEEP.name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "sweep"), done.stderr
