"""The report of one model on the command line: what is printed and written, exit statuses, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

import pytest_trainability
from pytest_trainability.commands import CANNOT, DIFFERS, main

MODULE = """
from torch import nn

def green():
    return nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.Tanh())])

def red():
    return nn.Sequential(*[layer for _ in range(12) for layer in (nn.Linear(8, 8), nn.Tanh())])

def needs(width):
    return nn.Linear(width, width)

def exits():
    raise SystemExit(3)
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "looked_at.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def test_a_green_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["look", "looked_at:green", "--input", "4x8", "--seeds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "preset mlp: it has neither attention, convolutions nor recurrence"
    assert lines[1].startswith("look · cpu · float32 · train · per sample · seeds 0-1")
    assert lines[3].startswith("  ✔ looked_at:green  3 × Linear  log gain -")
    assert any(line.startswith("      ✔ log_gain     -") for line in lines)
    assert lines[-1].startswith("1 of 1 hold, measured in ")
    assert max(map(len, lines)) <= 80


def test_a_red_model_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["look", "looked_at:red", "--input", "4x8", "--preset", "mlp", "--steps", "layers"]) == DIFFERS
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "preset mlp"
    assert "look::looked_at:red" in lines
    starts = [line.split()[0] for line in lines[lines.index("look::looked_at:red") + 1 :] if line[2:3].strip()]
    assert starts[:4] == ["log_gain", "along", "leaves", "likely"]
    command = "pytest --trainability-model=looked_at:red --trainability-input=4x8 --trainability-steps=layers"
    assert any(f"{command} --trainability-preset=mlp --trainability-seeds=0-" in line for line in lines)


def test_own_bounds_go_before_those_of_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["look", "looked_at:green", "--input=4x8", "--seeds=1", "--bounds=log_gain <= -50"]
    assert main([*arguments, "--bounds=lyapunov_max = within(9)"]) == DIFFERS
    out = capsys.readouterr().out
    assert "must be ≤ -50" in out and "✔ lyapunov_max " in out and "✔ nonfinite " in out
    assert "'--trainability-bounds=log_gain <= -50'" in " ".join(out.split())


def test_the_loss_takes_the_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["look", "looked_at:green", "--input=4x8", "--target=4x8", "--loss=mse_loss", "--seeds=1"]) == 0
    assert "gradient of the loss" in capsys.readouterr().out


def test_reports_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    page, file = tmp_path / "look.html", tmp_path / "look.json"
    assert main(["look", "looked_at:green", "--input=4x8", "--seeds=1", "--html", str(page), "--json", str(file)]) == 0
    report = json.loads(file.read_text(encoding="utf-8"))
    schema = Path(pytest_trainability.__file__).parent / "report" / "report-1.schema.json"
    jsonschema.validate(report, json.loads(schema.read_text(encoding="utf-8")))
    (check,) = report["checks"]
    assert check["test"] == "look::looked_at:green" and check["values"] and check["tensors"]
    assert "looked_at:green" in page.read_text(encoding="utf-8")
    assert capsys.readouterr().out.splitlines()[-2:] == [f"{page} written", f"{file} written"]
    assert main(["show", str(file)]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["looked_at:gren", "--input=4x8"], "there is no 'gren'. Nearest: green"),
        (["loked_at:green", "--input=4x8"], "the model must be importable: 'loked_at:green'."),
        (["looked_at", "--input=4x8"], "the model must be given as MODULE:NAME"),
        (["resnet18", "--input=4x8"], "or as a model of a library: hf:gpt2, timm:resnet18"),
        (["looked_at.green", "--input=4x8"], "Got 'looked_at.green'. Did you mean 'looked_at:green'?"),
        (["looked_at:green", "--input=4x8", "--target=ids:4<8"], "Write --loss cross_entropy."),
        (["looked_at:needs", "--input=4x8"], "'looked_at:needs' needs width. Name a function without arguments."),
        (["looked_at:green"], "declares no inputs, and none are given. Write --input 8x3x224x224"),
        (["looked_at:green", "--input=4x7"], "the model must run on its inputs."),
        (["looked_at:green", "--input=4xx7"], "inputs must be sizes such as 8x3x224x224"),
        (["looked_at:green", "--input=4x8", "--loss=mse"], "none is given. Write --target 'ids:8<1000'."),
        (["looked_at:green", "--input=4x8", "--preset=mpl"], "--preset: unknown preset 'mpl'. Did you mean 'mlp'?"),
        (["looked_at:green", "--input=4x8", "--seeds=x"], "seeds must be a number of at least 1"),
        (["looked_at:exits", "--input=4x8", "--seeds=x"], "seeds must be a number of at least 1"),
        (["looked_at:exits", "--input=4x8", "--device=gpu"], "the device must be auto, cpu, cuda, cuda:N or mps."),
        (["looked_at:exits", "--input=4x8", "--dtype=int8"], "dtype must be a floating type"),
        (["looked_at:exits", "--input=4x8", "--json=missing/a.json"], "must be a file in a folder that exists"),
        (
            ["looked_at:exits", "--input=4x8"],
            "the factory must build a model when called without arguments. `exits` raised",
        ),
        (["looked_at:green", "--input=4x8", "--bounds=log_gian = within(3)"], "Did you mean 'log_gain'?"),
        (["looked_at:green", "--input=4x8", "--bounds=log_gain"], "--bounds must hold lines such as"),
        (["looked_at:green", "--input=4x8", "--html=a", "--json=a"], "--html and --json must name different files."),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["look", *arguments]) == CANNOT
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("pytest_trainability: ") and said in err
