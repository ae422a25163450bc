"""Writing the contract of a model, and checking it on other seeds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_trainability import UsageError
from pytest_trainability.measurement.contracts import checked_contract


def test_a_contract_is_written_and_holds() -> None:
    state = torch.get_rng_state()
    source, trouble = checked_contract(lambda: nn.Linear(30, 20), range(8), "LINEAR")
    assert trouble == ""
    assert (
        source.splitlines()[-4:]
        == [
            "LINEAR = {",
            '    "weight": init.kaiming_uniform(a=math.sqrt(5)),',
            '    "**": init.default_bias(),',
            "}",
        ]
        or '"**": init.default_bias()' in source
    )
    assert torch.equal(torch.get_rng_state(), state)


def test_a_finished_module_is_one_draw() -> None:
    source, trouble = checked_contract(nn.LayerNorm(4), range(8), "CONTRACT")
    assert "init.ones()" in source
    assert trouble == ""


def test_a_model_that_changes_on_other_seeds_is_in_trouble() -> None:
    def build() -> nn.Module:
        model = nn.LayerNorm(4)
        nn.init.constant_(model.weight, 1.0 if torch.initial_seed() < 8 else 2.0)
        return model

    assert "all entries are 2" in checked_contract(build, range(8), "CONTRACT")[1]


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="the model must be a torch"):
        checked_contract(3, [0], "CONTRACT")  # type: ignore[arg-type]
