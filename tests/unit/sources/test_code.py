"""Python code for what texts name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pytest_trainability.sources.code import functional_losses, inputs_code, is_found_here_only, is_place
from pytest_trainability.sources.inputs import drawn_inputs


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
    ("text", "place"),
    [("shop.data:batch", True), ("ids:4<9", False), ("x=ids:4<9", False), ("8x3", False), ("8 x 3", False)],
)
def test_a_place_is_no_tensor(text: str, place: bool) -> None:
    assert is_place(text) == place


def test_losses_of_torch_are_found_by_name() -> None:
    found = functional_losses()
    assert {"cross_entropy", "mse_loss", "nll_loss", "binary_cross_entropy_with_logits", "kl_div"} <= found.keys()
    assert "softmax" not in found and all(map(callable, found.values()))


def test_modules_of_the_current_folder_are_told_from_installed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here_x.py").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert is_found_here_only("only_here_x") and is_found_here_only("only_here_x.y")
    assert not is_found_here_only("torch.nn") and not is_found_here_only("json")
