"""Descriptions of models as they were built."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from pytest_trainability.init.description import describe, initial_tensors


def test_tensors_are_listed_once_parameters_first() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    found = describe(model)
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert list(found.values) == list(found.shapes) == names
    assert found.shapes["0.weight"] == (3, 3)
    assert found.values["1.running_var"].mean == 1


def test_tensors_without_numbers_are_left_out() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(2, 2, device="meta"), nn.BatchNorm1d(2))
    assert list(initial_tensors(model)) == ["2.weight", "2.bias", "2.running_mean", "2.running_var"]


def test_modules_are_listed_with_their_classes() -> None:
    shared = nn.Tanh()
    model = nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared)
    assert describe(model).modules == {"": "Sequential", "0": "Linear", "1": "Tanh", "2": "Linear"}


def test_a_parametrized_module_has_its_class_and_its_parametrization() -> None:
    modules = describe(orthogonal(nn.Linear(2, 2))).modules
    assert modules[""] == "Linear"
    assert modules["parametrizations.weight"] == "ParametrizationList"


def test_the_model_is_left_alone() -> None:
    model = nn.Linear(4, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    describe(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.weight.grad is None
