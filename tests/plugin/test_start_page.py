"""The page on first tests: its commands write and print what it shows."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_trainability.commands import main

if TYPE_CHECKING:
    from _pytest.pytester import Pytester

PAGE = (Path(__file__).parents[2] / "docs" / "start.md").read_text(encoding="utf-8")
MODEL, WRITTEN, TEST, SUGGESTED = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
STARTED, SUGGEST = re.findall(r"```console\n\$ (.*?)```", PAGE, re.DOTALL)


def masked(text: str) -> list[str]:
    """Return the lines without numbers and names of parameters: both may depend on the machine in a close case."""
    return [
        re.sub(r"\([\w.]+\)", "(#)", re.sub(r"-?[\d.]+(e-?\d+)?", "#", line)).rstrip() for line in text.splitlines()
    ]


@pytest.fixture
def shop(project: Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pytester]:
    (project.path / "shop").mkdir()
    (project.path / "shop" / "net.py").write_text(MODEL, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield project
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def test_the_command_writes_what_the_page_shows(shop: Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    command, *printed = STARTED.splitlines()
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "pytest_trainability"]
    assert main(words[3:]) == 0
    assert masked(capsys.readouterr().out) == masked("\n".join(printed))
    text = (shop.path / "tests" / "test_trainability_net.py").read_text(encoding="utf-8")
    assert set(masked(WRITTEN)) <= set(masked(text))
    shop.runpytest_inprocess("tests").assert_outcomes(passed=2)


def test_the_option_prints_what_the_page_shows(shop: Pytester) -> None:
    shop.makepyfile(test_net=TEST)
    shop.syspathinsert()
    found = masked(shop.runpytest_inprocess(*shlex.split(SUGGEST)[1:]).stdout.str())
    assert set(masked(SUGGESTED)) <= {*found, ""}
