"""Every benchmark runs: each is started with ``--tiny``, which reduces it to a few seconds on one thread."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from forks import Run, forked, started

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PATIENCE = 300
"""Seconds. A tiny run takes 3 to 20 on a free core, and several times as long on a busy machine."""


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Run a benchmark in a separate process with one thread."""
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if hasattr(os, "fork"):
        with forked(PATIENCE, **environment) as copy:
            yield copy
    else:
        yield started(PATIENCE, **environment)


def fault(run: Run, path: Path) -> str:
    """Return why a benchmark does not run at its tiny size; empty where it runs."""
    if '"--tiny"' not in path.read_text(encoding="utf-8"):
        return f"{path.name} must have an option --tiny, with which it runs for a few seconds"
    done = run(path, "--tiny")
    if done.returncode:
        return f"exit status {done.returncode}:\n{done.stdout}{done.stderr}"
    return "" if done.stdout.strip() else "it printed nothing"


SCRIPTS = [path for path in sorted(BENCHMARKS.glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]
"""Every benchmark; other files are imported by these."""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_benchmark_runs_at_its_tiny_size(run: Run, path: Path) -> None:
    if path.stem in {"architectures", "faults", "same_numbers"}:
        pytest.importorskip("transformers", reason="measures models of transformers")
    if path.stem == "contract_errors" and draws_limits():
        pytest.skip(
            "this version of PyTorch draws the limits of a truncated normal in half precision, and contracts report them"
        )
    assert fault(run, path) == ""


def draws_limits() -> bool:
    """Return whether ``trunc_normal_`` in half precision returns its limits, 2 and -2, for a standard deviation of 0.02."""
    drawn = torch.nn.init.trunc_normal_(torch.empty(10_000, dtype=torch.bfloat16), std=0.02)
    return float(drawn.abs().max()) > 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "from pytest_trainability.measurement import _no_such_name  # '\"--tiny\"'",
            "cannot import name '_no_such_name'",
        ),
        ("print('measures for hours')", "broken.py must have an option --tiny"),
        ("'\"--tiny\"'", "it printed nothing"),
    ],
    ids=["broken import", "no tiny size", "no output"],
)
def test_broken_benchmark_is_caught(run: Run, tmp_path: Path, text: str, expected: str) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(text, encoding="utf-8")
    assert expected in fault(run, broken)


COSTS = {
    "conditions": "As `python benchmarks/measures.py --record` measured it (torch 1.0,\ncpu, 9 threads; shared).",
    "models": ["tanh, 2 × 16"],
    "costs": {"gradient_norm": [1e9], "log_gain": [1e9]},
}


def record(run: Run, path: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """Measure some measures of the tiny model and merge them into a file."""
    return run(BENCHMARKS / "measures.py", "--tiny", "--only", *names, "--record", str(path))


def test_recorded_costs_replace_their_rows(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(COSTS), encoding="utf-8")
    done = record(run, path, "gradient_norm", "attention_entropy", "log_gain")
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text(encoding="utf-8"))
    assert list(found["costs"]) == ["gradient_norm", "log_gain", "attention_entropy"], "no other row moves"
    assert found["costs"]["attention_entropy"] == [None]
    assert 0 < found["costs"]["log_gain"][0] < 1e6
    assert found["models"] == COSTS["models"]
    assert "torch 1.0" not in found["conditions"], "all rows are new: so are the conditions"
    assert found["conditions"].endswith("cpu, 1 threads; shared).")


def test_rows_of_other_conditions_are_not_mixed(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(COSTS), encoding="utf-8")
    done = record(run, path, "log_gain")
    assert done.returncode != 0
    assert (
        "All rows must be measured under the same conditions. The recorded ones have torch 1.0, cpu, 9 threads"
        in done.stderr
    )
    assert json.loads(path.read_text(encoding="utf-8")) == COSTS


def test_costs_of_a_tiny_model_are_not_recorded(run: Run) -> None:
    done = run(BENCHMARKS / "measures.py", "--tiny", "--record")
    assert done.returncode == 2
    assert "the costs of a tiny model must not be recorded in costs.json" in done.stderr


@pytest.fixture(scope="module")
def race() -> ModuleType:
    """The benchmark of the race."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("race")
    finally:
        sys.path.remove(str(BENCHMARKS))


SIZE = {"depth": 3, "width": 4, "batch": 2, "exponents": 1, "seeds": 1}
ROWS = {"a contest, by hand": 2.0, "a contest, by QR": 4.0, "another one, by hand": 1.0}
"""Recorded ratios of this project to hand-written loops."""


def check(
    race: ModuleType,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorded: dict[str, float],
    measured: dict[str, float],
) -> int:
    """Return the exit status of the check for recorded and measured ratios."""
    path.write_text(json.dumps({"checked": {name: [v, v, v] for name, v in recorded.items()}}), encoding="utf-8")
    monkeypatch.setattr(race, "checked_rows", lambda contests: measured)
    status: int = race.check(path)
    return status


@pytest.mark.parametrize(
    ("factors", "status"),
    [
        ((1, 1, 1), 0),
        ((1.4, 1.4, 1.4), 0),
        ((0.2, 0.1, 0.2), 0),
        ((1.6, 1.6, 1), 1),
        # With a small shift of the ratio of two loops, and in a contest with one loop, which has no such ratio.
        ((1.6, 1.3, 1), 1),
        ((1, 1, 1.6), 1),
    ],
)
def test_ratios_that_have_grown_by_half_fail(
    race: ModuleType, factors: tuple[float, ...], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {name: value * factor for (name, value), factor in zip(ROWS.items(), factors)}
    assert check(race, tmp_path / "race.json", monkeypatch, ROWS, measured) == status


def test_on_another_kind_of_processor_ratios_are_printed_and_not_judged(
    race: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One loop by hand is twice as fast, relative to the other one: this project is no part of this change."""
    measured = {**ROWS, "a contest, by hand": 4.0}
    assert check(race, tmp_path / "race.json", monkeypatch, ROWS, measured) == 0
    printed = capsys.readouterr().out
    assert "a contest, by hand: 4.000 of the other's time, recorded 2.000" in printed
    assert "not judged: the other loops compare in another way" in printed


def test_the_check_of_the_race_runs_its_rows(race: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contest = race.Contest("exponents", partial(race.chain, race.perceptron), SIZE, {}, checked=SIZE)
    monkeypatch.setattr(race, "CONTESTS", {"perceptron": contest})
    monkeypatch.setattr(race, "RECORDED", 1)
    path = tmp_path / "race.json"
    path.write_text("{}", encoding="utf-8")
    race.record_checked(path)
    found = json.loads(path.read_text(encoding="utf-8"))["checked"]
    assert len(found) == 2 and all(median == low == high > 0 for median, low, high in found.values())


def test_a_row_that_is_not_measured_any_more_fails_the_check(
    race: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(race, "CONTESTS", {})
    path = tmp_path / "race.json"
    path.write_text(json.dumps({"checked": {"a removed row": [1.0, 1.0, 1.0]}}), encoding="utf-8")
    assert race.check(path) == 1
    assert "a removed row: not measured" in capsys.readouterr().out


def test_a_ratio_has_grown_by_half_above_one_and_a_half(race: ModuleType) -> None:
    recorded = {"a": 2.0, "b": 2.0, "c": 2.0}
    assert [line.partition(":")[0] for line in race.grown(recorded, {"a": 2.99, "b": 3.01, "c": 1.0})] == ["b"]


def test_the_recorded_rows_of_the_check_are_those_that_it_measures(race: ModuleType) -> None:
    found: dict[str, Any] = json.loads((BENCHMARKS / "race.json").read_text(encoding="utf-8"))
    wanted = {
        f"{name}, {race.label(contest.checked)}, {other}"
        for name, contest in race.CONTESTS.items()
        if contest.checked is not None
        for other in contest.entrants(contest.checked)
        if other not in {race.OURS, race.ALONE, *contest.packages}
    }
    assert found["checked"].keys() == wanted


@pytest.mark.parametrize("kind", ["perceptron", "transformer"])
def test_the_loops_of_the_race_compute_what_the_measurement_does(race: ModuleType, kind: str) -> None:
    """The loops begin with the same frame. All exponents together are the volume, whatever the frame."""
    size = {"depth": 3, "width": 4, "batch": 3, "exponents": 4, "seeds": 1}
    if kind == "transformer":
        size |= {"length": 2, "exponents": 8}
    measured, alone, *others = (call() for call in race.chain(getattr(race, kind), size).values())
    # Nats per step, in float32.
    assert math.fsum(alone) == pytest.approx(math.fsum(measured), abs=1e-3)
    for found in others:
        assert found == pytest.approx(others[0], abs=1e-4)
        assert math.fsum(found) == pytest.approx(math.fsum(measured), abs=1e-3)


def test_growth_exponents_and_ratios(race: ModuleType) -> None:
    assert race.slope([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)

    def spin(seconds: float) -> None:
        until = time.process_time() + seconds
        while time.process_time() < until:
            pass

    def refuse() -> None:
        raise NotImplementedError

    row = race.race({race.OURS: partial(spin, 0.01), "other": partial(spin, 0.03), "absent": refuse}, 1)
    assert row.failed == {"absent": "NotImplementedError"} and row.ratios.keys() == {"other"}
    assert row.milliseconds.keys() == {race.OURS, "other"}
