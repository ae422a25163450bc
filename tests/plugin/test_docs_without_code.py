"""The pages on tests without code and on the first look: files and commands in them run, and print what the pages show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from pytest import Pytester  # noqa: PT013

from pytest_trainability.commands import main

DOCS = Path(__file__).parents[2] / "docs"
GATE, LOOK = ((DOCS / name).read_text(encoding="utf-8") for name in ("gate.md", "look.md"))
NETS = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def layer(size, width):
    found = nn.Linear(size, width)
    nn.init.kaiming_uniform_(found.weight, nonlinearity="relu")
    return found


def classifier(width=64, depth=2):
    sizes = [64] + depth * [width]
    hidden = [part for pair in zip(sizes, sizes[1:]) for part in (layer(*pair), nn.ReLU())]
    return nn.Sequential(*hidden, layer(width, 10))


class MLP(nn.Sequential):
    def __init__(self):
        super().__init__(*classifier())


def tower():
    return nn.Sequential(*[part for _ in range(20) for part in (nn.Linear(64, 64), nn.Tanh())])


batch = torch.randn(8, 64)
loader = DataLoader(TensorDataset(torch.randn(32, 64), torch.randint(10, (32,))), batch_size=8)
"""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def without_numbers(line: str) -> str:
    return re.sub(r"[\d.]+", "#", line)


@pytest.fixture
def nets(project: Pytester, monkeypatch: pytest.MonkeyPatch) -> Pytester:
    project.makepyfile(nets=NETS)
    project.makeini("[pytest]\nmarkers = slow\n")
    monkeypatch.syspath_prepend(project.path)
    return project


def test_the_file_of_the_page_runs(nets: Pytester) -> None:
    (text,) = blocks(GATE, "toml")
    nets.makefile(".toml", trainability=text)
    shown = next(block for block in blocks(GATE, "text") if block.startswith("$ pytest -q --co")).splitlines()[1:]
    (call,) = nets.inline_run("--collect-only", "-q").getcalls("pytest_collection_finish")
    assert [item.nodeid for item in call.session.items] == shown
    result = nets.runpytest_inprocess("--strict-markers", "-k", "not large and not gpt2")
    result.assert_outcomes(passed=3, deselected=2)


def test_the_same_tables_work_in_pyproject(nets: Pytester) -> None:
    (text,) = blocks(GATE, "toml")
    (nets.path / "pyproject.toml").write_text(text.replace("[test.", "[tool.trainability.test."))
    (call,) = nets.inline_run("--collect-only", "-q").getcalls("pytest_collection_finish")
    assert len(call.session.items) == 5


def test_the_errors_of_the_page_are_told(nets: Pytester) -> None:
    shown = next(block for block in blocks(GATE, "text") if block.startswith("trainability.toml:"))
    text = '[test.mlp]\nmodle = "a"\nmodel = "nets:MLP"\n[test.mlp.bounds]\nlog_gian = "within(3)"\n'
    nets.makefile(".toml", trainability=text)
    result = nets.runpytest_inprocess()
    assert [line for line in result.outlines if line.startswith("trainability.toml:")] == shown.splitlines()


COMMANDS = [line.removeprefix("$ ") for block in blocks(LOOK, "console") for line in block.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_runs(nets: Pytester, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)
    if "hf-tiny:gpt2" in words:
        pytest.importorskip("transformers", reason="transformers is not installed")
    if "--html" in words:
        pytest.importorskip("jinja2", reason="jinja2 is not installed")
    if words[0] == "pytest":
        nets.runpytest_inprocess(*words[1:]).assert_outcomes(passed=1)
        return
    assert words[:3] == ["python", "-m", "pytest_trainability"]
    status = main(words[3:])
    printed = [without_numbers(line) for line in capsys.readouterr().out.splitlines()]
    if "nets:tower" in words:
        (shown,) = blocks(LOOK, "text")
        assert [line for line in shown.splitlines() if without_numbers(line) not in printed] == []
    assert status == int("nets:tower" in words)
    files = [words[words.index(option) + 1] for option in ("--html", "--json") if option in words]
    assert all((nets.path / file).is_file() for file in files)
