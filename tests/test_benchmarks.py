"""Every benchmark runs: each is started with ``--tiny``, which reduces it to a few seconds on one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PATIENCE = 300
"""Seconds. A tiny run takes 3 to 20 on a free core, and several times as long on a busy machine."""


def run(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a benchmark in a separate process with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(path), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)


def fault(path: Path) -> str:
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
def test_benchmark_runs_at_its_tiny_size(path: Path) -> None:
    if path.stem in {"architectures", "faults", "same_numbers"}:
        pytest.importorskip("transformers", reason="measures models of transformers")
    assert fault(path) == ""


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
def test_broken_benchmark_is_caught(tmp_path: Path, text: str, expected: str) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(text, encoding="utf-8")
    assert expected in fault(broken)


COSTS = {
    "conditions": "As `python benchmarks/measures.py --record` measured it (torch 1.0,\ncpu, 9 threads; shared).",
    "models": ["tanh, 2 × 16"],
    "costs": {"gradient_norm": [1e9], "log_gain": [1e9]},
}


def record(path: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """Measure some measures of the tiny model and merge them into a file."""
    return run(BENCHMARKS / "measures.py", "--tiny", "--only", *names, "--record", str(path))


def test_recorded_costs_replace_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(COSTS), encoding="utf-8")
    done = record(path, "gradient_norm", "attention_entropy", "log_gain")
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text(encoding="utf-8"))
    assert list(found["costs"]) == ["gradient_norm", "log_gain", "attention_entropy"], "no other row moves"
    assert found["costs"]["attention_entropy"] == [None]
    assert 0 < found["costs"]["log_gain"][0] < 1e6
    assert found["models"] == COSTS["models"]
    assert "torch 1.0" not in found["conditions"], "all rows are new: so are the conditions"
    assert found["conditions"].endswith("cpu, 1 threads; shared).")


def test_rows_of_other_conditions_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(COSTS), encoding="utf-8")
    done = record(path, "log_gain")
    assert done.returncode != 0
    assert (
        "All rows must be measured under the same conditions. The recorded ones have torch 1.0, cpu, 9 threads"
        in done.stderr
    )
    assert json.loads(path.read_text(encoding="utf-8")) == COSTS


def test_costs_of_a_tiny_model_are_not_recorded() -> None:
    done = run(BENCHMARKS / "measures.py", "--tiny", "--record")
    assert done.returncode == 2
    assert "the costs of a tiny model must not be recorded in costs.json" in done.stderr
