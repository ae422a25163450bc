"""Python code for what texts name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from pytest_trainability.sources.code import Imports, inputs_code, is_found_here_only, loss_code
from pytest_trainability.sources.inputs import drawn_inputs
from pytest_trainability.sources.losses import named_loss


@pytest.mark.parametrize(
    "texts",
    [
        ["8x3x4"],
        ["ids:4x6<50"],
        ["mask:4x6"],
        ["float:5"],
        ["2x3", "ids:2<9"],
        ["input_ids=ids:2x3<9", "mask=mask:2x3"],
    ],
)
def test_the_code_draws_what_the_text_draws(texts: list[str]) -> None:
    def draw(by: object) -> object:
        found = by(torch.Generator().manual_seed(3))  # type: ignore[operator]
        return {k: v.tolist() for k, v in found.items()} if isinstance(found, dict) else [t.tolist() for t in found]

    code = eval(f"lambda generator: {inputs_code(texts)}", {"torch": torch})
    assert draw(code) == draw(drawn_inputs(texts))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("cross_entropy", "F.cross_entropy"),
        ("mse", "F.mse_loss"),
        ("torch.nn.functional.l1_loss", "F.l1_loss"),
        ("nn.CrossEntropyLoss", "nn.CrossEntropyLoss()"),
        ("MSE", "nn.MSELoss()"),
        ("torch.nn.CrossEntropyLoss( label_smoothing = 0.1 )", "nn.CrossEntropyLoss(label_smoothing=0.1)"),
        ("nn.HuberLoss('sum', delta=inf)", 'nn.HuberLoss("sum", delta=float("inf"))'),
    ],
)
def test_the_code_of_a_loss_computes_what_the_text_names(text: str, code: str) -> None:
    assert loss_code(text) == code
    found, named = eval(code, {"nn": nn, "F": F}), named_loss(text)
    output = torch.linspace(-3, 3, 12).reshape(4, 3)
    target = torch.tensor([0, 2, 1, 1]) if "ross" in code else torch.zeros(4, 3)
    assert torch.equal(found(output, target), named(output, target))


def test_imports_have_different_names() -> None:
    imports = Imports({"nn"})
    places = ["shop.net:make", "shop.data:make", "more.data:make", "shop.net:make", "shop.net:nn", "tests.net:test_net"]
    found = [imports.name(place) for place in places]
    assert found == ["make", "data_make", "my_make", "make", "net_nn", "net_test_net"]
    assert imports.modules == ["shop.net", "shop.data", "more.data", "tests.net"]
    assert imports.lines[0] == "from shop.net import make, nn as net_nn"


def test_nothing_is_imported_as_a_test() -> None:
    assert Imports().name("test_nets:test_net") == "my_test_net" and Imports().name("nets:TestNet") == "nets_TestNet"


def test_modules_of_the_current_folder_are_told_from_installed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here_x.py").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert is_found_here_only("only_here_x") and is_found_here_only("only_here_x.y")
    assert not is_found_here_only("torch.nn") and not is_found_here_only("json")
