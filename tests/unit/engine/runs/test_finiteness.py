"""Entries of outputs and losses that are not finite: which are found, how they are described, and which are causes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import models
import pytest
import torch
from models import BATCH, WIDTH
from torch import Tensor, nn

from pytest_trainability.engine.capture.recorder import Capture
from pytest_trainability.engine.runs.finiteness import NotFinite, entries_not_finite, faults, remarks

NAN, INF = math.nan, math.inf


def found_in(output: Any, loss: Tensor | None = None) -> list[tuple[Any, ...]]:
    capture = Capture(models.mlp(), output=output, loss=loss)
    return [(part.name, part.count, part.size, part.kinds) for part in entries_not_finite(capture)]


@dataclass
class Output:
    """An output with two parts."""

    scores: Tensor
    hidden: list[Tensor]


def test_finite_outputs_have_none() -> None:
    large = torch.full((2, 3), 3e38)  # their sum overflows
    assert (
        found_in([torch.ones(3), large, torch.ones(2, dtype=torch.int64), torch.full((2, 3), 6e4).half(), "text"]) == []
    )
    assert found_in(torch.ones(2), torch.tensor(3.0)) == []
    assert found_in(None) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "float8_e5m2"])
def test_entries_of_any_type_are_counted(dtype: str) -> None:
    values = torch.tensor([[1.0, INF], [NAN, 2.0]]).to(getattr(torch, dtype))
    size = 8 if dtype == "complex64" else 4
    assert found_in(values) == [("the output", 2, size, ("nan", "inf"))]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("convert", [Tensor.to_sparse, Tensor.to_sparse_csr, Tensor.clone], ids=["coo", "csr", "dense"])
def test_entries_of_any_layout_are_counted(convert: Callable[[Tensor], Tensor]) -> None:
    (part,) = entries_not_finite(Capture(models.mlp(), output=convert(torch.tensor([[1.0, INF], [-INF, 2.0]]))))
    assert (part.count, part.kinds) == (2, ("inf", "-inf"))


def test_the_loss_is_distinguished_from_the_output() -> None:
    parts = entries_not_finite(Capture(models.mlp(), output=torch.tensor([1.0, NAN]), loss=torch.tensor(INF)))
    assert [part.is_loss for part in parts] == [False, True]


def test_parts_are_named_by_their_place_and_the_loss_is_last() -> None:
    broken = torch.tensor([1.0, NAN])
    loss = torch.tensor(INF)
    tree = {"a": Output(torch.ones(2), [torch.ones(2), broken]), "loss": loss}
    assert found_in(tree, loss) == [("output['a'].hidden[1]", 1, 2, ("nan",)), ("the loss", 1, 1, ("inf",))]


def test_outputs_that_cannot_be_read_are_left_out() -> None:
    assert found_in([torch.full((2,), NAN, device="meta"), torch.tensor([NAN])]) == [("output[1]", 1, 1, ("nan",))]


def test_remarks_count_seeds_and_entries() -> None:
    some = NotFinite("the output", 3, 8, ("inf",)), NotFinite("the output", 5, 8, ("nan", "inf"))
    loss = NotFinite("the loss", 1, 1, ("nan",))
    assert remarks([(some[0], loss), (), (some[1],), ()]) == (
        "the output is not finite: up to 5 of 8 entries (inf, nan) on 2 of 4 seeds",
        "the loss is not finite (nan) on 1 of 4 seeds",
    )
    assert remarks([(some[0],)]) == ("the output is not finite: 3 of 8 entries (inf)",)
    assert remarks([(), ()]) == remarks([]) == ()


def test_masks_are_no_faults_unless_the_loss_is_not_finite() -> None:
    mask, loss = NotFinite("output['scores']", 3, 8, ("-inf",)), NotFinite("the loss", 1, 1, ("inf",))
    assert remarks([(mask,)]) != () == faults([(mask,)])
    assert faults([(mask, loss)]) == remarks([(mask, loss)])
    for other in (NotFinite("output", 8, 8, ("-inf",)), NotFinite("output", 3, 8, ("inf", "-inf"))):
        assert faults([(mask,), (other,)]) == remarks([(mask,), (other,)])[1:]


def test_finite_outputs_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an output whose sum is not finite is looked at entry by entry."""
    monkeypatch.setattr(Tensor, "isnan", lambda self: pytest.fail("looked at each entry"))
    assert found_in(nn.Linear(WIDTH, WIDTH)(torch.ones(BATCH, WIDTH))) == []
