"""Random networks in a test file: one process and two workers record the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from generated import programs, search
from invariants import check_exact
from programs import CHECKPOINTED, Program

if TYPE_CHECKING:
    from _pytest.pytester import Pytester

TESTS = str(Path(__file__).parents[1])

SUITE = """
import os, sys
sys.path.append({tests!r})
import pytest
from programs import *

PROGRAMS = [
    {programs}
]
MEASURES = ("lyapunov_spectrum", "jacobian_singular_values", "dead_fraction")


def record(trainability, program, inputs):
    loss = energy if program.loss else None
    result = trainability(lambda: build(program), inputs, loss=loss, steps=step_choice(program), seeds=2)
    result.check_baseline(*MEASURES)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_network(number, trainability):
    record(trainability, PROGRAMS[number], draw_inputs(PROGRAMS[number]))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_planted(trainability):
    scale = 1 + len(os.environ.get("PYTEST_XDIST_WORKER", ""))
    record(trainability, PROGRAMS[0], tuple(x * scale for x in draw_inputs(PROGRAMS[0])))
"""
NETWORKS = 5


def measurable(count: int) -> list[Program]:
    """Draw networks of float inputs that can be measured."""
    found: list[Program] = []

    def keep(program: Program) -> str:
        is_float = all(given.kind != "ids" for given in program.inputs)
        # A first checkpoint loads PyTorch's compiler, which takes seconds in each process.
        is_quick = all(op.number != CHECKPOINTED for op in program.net.body if op.kind == "call")
        if len(found) < count and is_float and is_quick and check_exact(program) == "compared":
            found.append(program)
        return ""

    search((keep, (programs(),)), 4 * count)
    assert len(found) == count
    return found


def recorded(project: Pytester, *workers: str) -> dict[str, Any]:
    """Record the baselines of all networks, and return them by test."""
    project.runpytest_inprocess("-p", "no:cacheprovider", "--trainability-baseline=new", *workers).assert_outcomes(
        passed=NETWORKS + 1
    )
    file = project.path / "__trainability__" / "test_networks.json"
    entries = json.loads(file.read_text())["tests"]
    file.unlink()
    return dict(entries)


def test_workers_record_the_same_numbers_of_random_networks(project: Pytester) -> None:
    """Every digit. The numbers of one network are made to depend on the process, and differ."""
    pytest.importorskip("xdist", reason="workers come with pytest-xdist")
    shown = ",\n    ".join(map(repr, measurable(NETWORKS)))
    project.makepyfile(test_networks=SUITE.format(tests=TESTS, programs=shown))
    alone, shared = recorded(project, "-n", "0"), recorded(project, "-n", "2")
    assert alone.keys() == shared.keys() and len(alone) == NETWORKS + 1
    assert [name for name in alone if alone[name] != shared[name]] == ["test_planted"]
