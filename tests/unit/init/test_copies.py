"""Which tensors equal an earlier one: copies of drawn values, and no constants, tables of few values, or views of one tensor."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pytest_trainability.init.description import describe


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 4))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)


def test_a_copied_module_is_listed_with_its_drawn_values_only() -> None:
    """The gains and shifts of a normalization are constant, and a bias of 4 entries may be equal by coincidence."""
    names = ("0.weight", "0.bias", "2.weight")
    assert describe(Pair()).copies == {f"teacher.{name}": f"student.{name}" for name in names}


def test_a_module_that_is_drawn_anew_is_no_copy() -> None:
    pair = Pair()
    nn.init.xavier_normal_(pair.teacher.get_parameter("0.weight"))
    assert "teacher.0.weight" not in describe(pair).copies


def test_each_copy_names_the_first_of_all_equal_tensors() -> None:
    first = nn.Linear(8, 8)
    model = nn.ModuleList([copy.deepcopy(first) for _ in range(3)])
    assert describe(model).copies == {"1.weight": "0.weight", "2.weight": "0.weight"}


def test_a_buffer_may_be_a_copy_of_a_parameter() -> None:
    model = nn.Linear(8, 8)
    model.register_buffer("average", model.weight.detach().clone())
    assert describe(model).copies == {"average": "weight"}


@pytest.mark.parametrize(
    "values",
    [torch.zeros(64), torch.ones(64), torch.arange(64) % 2.0, torch.full((64,), torch.nan)],
    ids=["zeros", "ones", "flags", "not finite"],
)
def test_values_that_are_equal_by_design_are_no_copies(values: torch.Tensor) -> None:
    model = nn.Module()
    model.a, model.b = nn.Parameter(values.clone()), nn.Parameter(values.clone())
    assert not describe(model).copies


def test_a_tied_weight_is_one_tensor() -> None:
    model = nn.ModuleList([nn.Embedding(32, 8), nn.Linear(8, 32, bias=False)])
    model[1].weight = model[0].weight
    assert not describe(model).copies
