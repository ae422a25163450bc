"""The command line as a whole."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import pytest_trainability
from pytest_trainability.commands import CANNOT, main

COMMANDS = ("look", "start", "show", "html", "merge", "compare", "comment", "accept", "contract", "explain", "measures")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help_with_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"example:\n  python -m pytest_trainability {command}" in capsys.readouterr().out


def test_the_help_names_all_commands_and_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"    {command} " in text for command in COMMANDS)
    assert "exit status:" in text


@pytest.mark.parametrize("words", [[], ["unknown"], ["show"], ["merge", "a.json"]])
def test_wrong_arguments_have_exit_status_two(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == CANNOT


def test_it_runs_as_a_module_without_loading_torch(tmp_path: Path) -> None:
    """Showing a report must be fast."""
    code = (
        "import sys; from pytest_trainability.commands import main; status = main(['show', 'none.json']); "
        "sys.exit(9 if 'torch' in sys.modules else status)"
    )
    root = Path(pytest_trainability.__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, check=False
    )
    assert found.returncode == CANNOT, found.stderr
    found = subprocess.run(
        [sys.executable, "-m", "pytest_trainability", "show", "none.json"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        check=False,
    )
    assert (found.returncode, found.stderr.count(b"\n")) == (CANNOT, 1)


def test_the_script_of_the_package_is_the_same_command() -> None:
    scripts = entry_points(group="console_scripts", name="pytest-trainability")
    if not scripts:
        pytest.skip("the package was installed before it had a script")
    assert next(iter(scripts)).load() is main
