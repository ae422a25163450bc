"""Measures and step choices of installed plugins of pytest, in commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_trainability

PLUGIN = """
def pytest_trainability_measures():
    from pytest_trainability.measures import SWEEP, declare

    @declare("scalar", unit="nats", needs=[SWEEP])
    def gain_of_the_plugin(run):
        "Return the log gain again."
        return float(run[SWEEP].sums()[:, 0].mean())

    return [gain_of_the_plugin]


def pytest_trainability_steps(model):
    return ["0", "2"] if len(model) == 6 else None
"""
NETS = """
from torch import nn

def build():
    return nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.Tanh())])
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with a plugin of pytest, as pip installs one, and with one that cannot be loaded."""
    for name, code in (("gauges", PLUGIN), ("broken_plugin", "raise RuntimeError('not today')")):
        (tmp_path / f"{name}.py").write_text(code)
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[pytest11]\n{name} = {name}\n")
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def command(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that finds the installed plugins."""
    places = [str(folder), str(Path(pytest_trainability.__file__).parents[1])]
    return subprocess.run(
        [sys.executable, "-m", "pytest_trainability", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


LOOK = ("look", "nets:build", "--input", "4x8", "--seeds", "2", "--bounds", "gain_of_the_plugin = within(50)")


def test_look_judges_the_measure_of_a_plugin_and_takes_its_steps(installed: Path) -> None:
    found = command(installed, *LOOK)
    assert found.returncode == 0, found.stderr
    assert "✔ gain_of_the_plugin\n" in found.stdout and "✔ log_gain " in found.stdout and "2 × Linear" in found.stdout
    assert found.stderr == "the plugin broken_plugin of pytest is left out: RuntimeError: not today\n"


def test_the_measure_of_a_plugin_is_explained(installed: Path) -> None:
    assert "Return the log gain again." in command(installed, "explain", "gain_of_the_plugin").stdout


def test_without_plugins_the_measure_is_unknown(installed: Path) -> None:
    found = command(installed, *LOOK, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert found.returncode == 2
    assert "--bounds: unknown measure 'gain_of_the_plugin'." in found.stderr
