"""Which rule counts for which parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from pytest_trainability import UsageError, init
from pytest_trainability.init.assignment import as_contract, assign
from pytest_trainability.init.places import tensors_of


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))


def test_the_first_rule_counts() -> None:
    contract = {"1.*": init.ones(), "*.bias": init.zeros(), "*.weight": init.normal()}
    found = assign(contract, tensors_of(net()))
    assert found.patterns["1.bias"] == "1.*"
    assert found.patterns["0.bias"] == "*.bias"
    assert found.unmatched == found.unused == ()


def test_buffers_need_a_rule_that_names_them() -> None:
    found = assign({"*.running_var": init.ones(), "**": init.normal()}, tensors_of(net()))
    assert found.patterns["1.running_var"] == "*.running_var"
    assert "1.running_mean" not in found.patterns


def test_a_pattern_of_parameters_takes_no_buffers() -> None:
    model = net()
    scale = nn.Module()
    scale.register_buffer("weight", torch.ones(2))
    model.append(scale)
    found = assign({"*.weight": init.normal(), "**": init.zeros()}, tensors_of(model))
    assert found.patterns["0.weight"] == "*.weight"
    assert "3.weight" not in found.patterns


def test_parameters_without_rule_and_rules_without_parameter() -> None:
    found = assign({"*.bias": init.zeros(), "*.wieght": init.ones()}, tensors_of(net()))
    assert found.unmatched == ("0.weight", "1.weight", "2.weight")
    assert found.unused == (("*.wieght", "*.weight"),)


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        ({"**": init.normal(), "*.bias": init.zeros()}, "'*.bias' is never reached"),
        ({"*.num_batches_tracked": init.zeros(), "**": init.normal()}, "has the type torch.int64"),
        ({"2.weight": init.tied("0.wieght"), "**": init.normal()}, "There is no '0.wieght'. Did you mean '0.weight'?"),
        ({"2.weight": init.copied("zzz"), "**": init.normal()}, "There is no 'zzz'."),
    ],
)
def test_contradictory_rules_are_refused(contract: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        assign(contract, tensors_of(net()))
    assert message in str(caught.value)


def test_integer_parameters_may_have_no_statement() -> None:
    model = nn.Module()
    model.register_parameter("codes", nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False))
    assert assign({"codes": init.anything("packed")}, tensors_of(model)).patterns == {"codes": "codes"}


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        ({}, "must be a mapping"),
        ([], "must be a mapping"),
        ({3: init.zeros()}, "a pattern of a contract must be text"),
        ({"*": 0.02}, "unknown rule 0.02 for '*'"),
        ({"*": "zeros"}, "unknown rule 'zeros'"),
    ],
)
def test_what_is_no_contract_is_refused(contract: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        as_contract(contract)
    assert message in str(caught.value)


def normalized() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)), nn.Linear(2, 2))


def test_a_parametrized_weight_may_be_named_instead_of_its_parameters() -> None:
    found = assign({"*.weight": init.normal(), "*.bias": init.zeros(), "x": init.ones()}, tensors_of(normalized()))
    assert found.patterns == {"0.bias": "*.bias", "1.bias": "*.bias", "0.weight": "*.weight", "1.weight": "*.weight"}
    assert found.unmatched == ()


def test_later_patterns_skip_the_parameters_of_a_named_weight_unless_they_name_them() -> None:
    tensors = tensors_of(normalized())
    found = assign({"*.weight": init.normal(), "**": init.zeros()}, tensors)
    assert not any("original" in name for name in found.patterns)
    explicit = {"*.weight": init.normal(), "*.parametrizations.weight.original1": init.ones(), "**": init.zeros()}
    found = assign(explicit, tensors)
    assert found.patterns["0.parametrizations.weight.original1"] == "*.parametrizations.weight.original1"
    assert "0.parametrizations.weight.original0" not in found.patterns


def test_a_pattern_for_everything_is_for_the_parameters() -> None:
    found = assign({"**": init.normal()}, tensors_of(normalized()))
    assert "0.weight" not in found.patterns
    assert found.patterns["0.parametrizations.weight.original0"] == "**"


def test_a_weight_whose_parameters_have_rules_is_named_by_no_further_pattern() -> None:
    """Unless the pattern names nothing else: then both rules are meant."""
    tensors = tensors_of(normalized())
    parts = {"*.original0": init.ones(), "*.original1": init.normal()}
    found = assign({**parts, "*.weight": init.normal(), "*.bias": init.zeros()}, tensors)
    assert "0.weight" not in found.patterns and found.patterns["1.weight"] == "*.weight"
    found = assign({**parts, "0.weight": init.normal(), "**": init.zeros()}, tensors)
    assert (
        found.patterns["0.weight"] == "0.weight"
        and found.patterns["0.parametrizations.weight.original0"] == "*.original0"
    )
