"""Arguments that name a model, its inputs, its targets and its loss: both commands take the same."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_trainability.commands import CANNOT, main
from pytest_trainability.commands.subject import add_subject_arguments, subject
from pytest_trainability.sources.requests import Request

MODULE = """
import torch
from torch import nn

def needs(width):
    return nn.Linear(width, width)

weights = torch.randn(4)
"""


def of(*words: str) -> Request:
    parser = argparse.ArgumentParser()
    add_subject_arguments(parser, seeds=4)
    return subject(parser.parse_args(words))


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "subject_nets.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_all_parts_are_named() -> None:
    found = of("torch.nn:Identity", "--input", "4x8", "--target", "ids:4<3", "--loss", "F.cross_entropy")
    generator = torch.Generator()
    assert found.build is nn.Identity
    assert found.inputs(generator).shape == (4, 8) and found.target(generator).max() < 3
    assert found.loss is functional.cross_entropy


def test_targets_and_loss_may_be_missing() -> None:
    found = of("torch.nn:Identity", "--input", "4x8")
    assert found.target is None and found.loss is None


@pytest.mark.usefixtures("nets")
def test_modules_are_imported_under_the_seed_of_test_modules() -> None:
    from pytest_trainability.engine.isolation import derived_seed

    state = torch.get_rng_state()
    with pytest.raises(Exception, match="needs width"):
        of("subject_nets:needs", "--input", "4x8")
    import subject_nets  # type: ignore[import-not-found]

    expected = torch.randn(4, generator=torch.Generator().manual_seed(derived_seed(0, "module")))
    assert torch.equal(subject_nets.weights, expected)
    assert torch.equal(torch.get_rng_state(), state)


def arguments_of(command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Return the help of the shared arguments."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    parts = re.split(r"\n  (?=MODEL |--)", capsys.readouterr().out)
    found = {part.split()[0]: " ".join(part.split()).replace("(default: 8)", "(default: 4)") for part in parts[1:]}
    return {name: found[name] for name in ("MODEL", "--input", "--target", "--loss", "--steps", "--seeds")}


def test_both_commands_describe_them_with_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments_of("look", capsys) == arguments_of("start", capsys)


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize("command", ["look", "start"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["torch.nn:Identity"],
            "'torch.nn:Identity' declares no inputs, and none are given. Write --input 8x3x224x224",
        ),
        (["torch.nn:Identity", "--input", "4y8"], "inputs must be sizes such as 8x3x224x224"),
        (["torch.nn:Identity", "--input", "4x8", "--loss", "cros_entropy"], "Did you mean 'cross_entropy'?"),
        (["torch.nn:Identity", "--input", "4x8", "--loss", "mse"], "none is given. Write --target 'ids:8<1000'."),
        (["torch.nn:Idntity", "--input", "4x8"], "the model must exist: 'torch.nn:Idntity'"),
        (["subject_nets:needs", "--input", "4x8"], "needs width. Name a function without arguments."),
        (["torch.nn:Identity", "--input", "4x8", "--seeds", "x"], "seeds must be a number of at least 1"),
    ],
)
def test_what_names_nothing_is_refused(
    capsys: pytest.CaptureFixture[str], command: str, words: list[str], said: str
) -> None:
    assert main([command, *words]) == CANNOT
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1
