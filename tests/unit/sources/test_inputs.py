"""Inputs that are named by text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pytest_trainability.errors import UsageError
from pytest_trainability.sources.inputs import Drawn, drawn_inputs, is_place, parse_tensor


def drawn(*texts: str, seed: int = 0) -> object:
    return drawn_inputs(texts)(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("text", "tensor"),
    [
        ("8x3x224x224", Drawn("float", (8, 3, 224, 224))),
        ("float:8", Drawn("float", (8,))),
        ("ids:4x128<50257", Drawn("ids", (4, 128), 50257)),
        (" mask:4x128 ", Drawn("mask", (4, 128))),
    ],
)
def test_a_tensor_is_described_by_its_sizes(text: str, tensor: Drawn) -> None:
    assert parse_tensor(text) == tensor


@pytest.mark.parametrize(
    "text", ["", "8x", "8*3", "ids:4x128", "ids:4<0", "8x0", "4<10", "mask:4<2", "words:4", "-1x3"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^inputs must be sizes such as 8x3x224x224"):
        parse_tensor(text)


@pytest.mark.parametrize(
    "text", ["8,3,32", "(8, 3, 32)", "[8, 3, 32]", "8 x 3 x 32", "8×3×32", "8*3*32", "8X3X32", "(8, 3, 32,)"]
)
def test_sizes_in_another_form_are_written_right(text: str) -> None:
    with pytest.raises(UsageError, match=r"Did you mean '8x3x32'\?$"):
        parse_tensor(text)


def test_ids_without_a_limit_are_told_what_lacks() -> None:
    with pytest.raises(UsageError, match=r"Write how many ids there are: 'ids:4x128<50257'\.$"):
        parse_tensor("ids:4x128")


def test_one_input_is_a_tensor_and_several_are_positional() -> None:
    found = drawn("2x3")
    assert isinstance(found, torch.Tensor) and found.shape == (2, 3) and found.dtype == torch.float32
    both = drawn("2x3", "ids:2<5")
    assert isinstance(both, tuple) and [t.shape for t in both] == [(2, 3), (2,)]
    assert torch.equal(found, drawn("2x3")) and not torch.equal(found, drawn("2x3", seed=1))


def test_named_inputs_are_keyword_arguments() -> None:
    found = drawn("input_ids=ids:2x40<3", "attention_mask=mask:2x40")
    assert isinstance(found, dict) and list(found) == ["input_ids", "attention_mask"]
    assert set(found["input_ids"].unique().tolist()) == {0, 1, 2}
    assert bool((found["attention_mask"] == 1).all())
    with pytest.raises(UsageError, match=r"^either all inputs have a name"):
        drawn_inputs(["input_ids=ids:2x40<3", "2x3"])


def test_a_place_names_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "batch_of_inputs.py").write_text("batch = [1, 2]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert drawn_inputs(["batch_of_inputs:batch"]) == [1, 2]


def test_a_named_tensor_is_no_place() -> None:
    """Alone, too."""
    assert list(drawn("input_ids=ids:2x40<3")) == ["input_ids"]
    assert is_place("package.module:batch")
    assert not any(map(is_place, ("8x3", "ids:8<3", "ids:8", "mask:8", "x=ids:8<3", "batch")))


@pytest.mark.parametrize(
    "text", ["99999999999999x8", "99999999999999999999x8", "mask:99999999999999x8", f"ids:4<{10**30}"]
)
def test_inputs_that_are_too_large_say_so(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"^inputs of sizes .* must fit into memory\. PyTorch says: .*\. Write smaller numbers\.$"
    ):
        drawn(text)
