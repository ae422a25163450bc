"""The second part of the tutorial is correct: its files are written, its commands run, and they print what it shows."""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_trainability.commands import main

if TYPE_CHECKING:
    from _pytest.pytester import Pytester

pytest.importorskip("transformers")

TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorial_2.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|text)\n(.*?)```", TUTORIAL, re.DOTALL)


def output_of(command: str, project: Pytester) -> list[str]:
    """Run a command in this process, and return the lines that it prints."""
    program, *arguments = shlex.split(command)
    if program == "pytest":
        return project.runpytest_inprocess("-p", "no:xdist", *arguments).outlines
    assert arguments[:2] == ["-m", "pytest_trainability"]
    printed = io.BytesIO()
    with io.TextIOWrapper(printed, "utf-8", write_through=True) as stream, redirect_stdout(stream):
        main(arguments[2:])
        return printed.getvalue().decode("utf-8").splitlines()


def without_numbers(line: str) -> str:
    """Return a line without numbers and indentation: digits depend on the machine, and where lines break on the digits."""
    return " ".join(re.sub(r"[\d.]+", "#", line.removeprefix("E ")).split())


@pytest.fixture(scope="module", autouse=True)
def gpt2_is_loaded() -> None:
    """Load the model before ``pytester``, which unloads what a test imports first: transformers cannot be imported in parts.

    It keeps the classes that it has imported, and looks up their modules.
    """
    from transformers import GPT2LMHeadModel  # noqa: F401


def test_the_second_part_of_the_tutorial(project: Pytester) -> None:
    commands = []
    for language, text in BLOCKS:
        first, *shown = text.splitlines()
        if language == "python":
            (project.path / first.removeprefix("# ")).write_text(text, encoding="utf-8")
            continue
        assert first.startswith("$ ")
        commands.append(first)
        printed = " ".join(map(without_numbers, output_of(first.removeprefix("$ "), project)))
        assert shown
        missing = [line for line in map(without_numbers, shown) if line not in printed]
        assert missing == [], f"{first} must print this"
    assert len(commands) == 7
