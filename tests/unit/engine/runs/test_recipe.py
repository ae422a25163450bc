"""Recipes: the step choice of plugins, and what counts as one draw."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from torch import nn

from pytest_trainability.engine.runs.recipe import Recipe, did_not_fit, is_fixed, sentence


def recipe(**changes: Any) -> Recipe:
    return models.recipe(**{"model": lambda: nn.Linear(2, 2), "inputs": torch.ones(1, 2), **changes})


def test_a_plugin_chooses_the_steps_of_a_model() -> None:
    seen: list[nn.Module] = []

    def choose(model: nn.Module) -> list[str]:
        seen.append(model)
        return ["0", "1"]

    model = nn.Linear(2, 2)
    found = recipe(choose_steps=choose).for_model(model)
    assert (found.steps, found.steps_from_plugin, seen) == (["0", "1"], True, [model])


def test_a_plugin_that_does_not_know_the_model_changes_nothing() -> None:
    plain = recipe()
    assert plain.for_model(nn.Linear(2, 2)) is plain


def test_the_users_step_choice_takes_precedence_over_that_of_a_plugin() -> None:
    chosen = recipe(steps="layers", choose_steps=lambda model: ["0"])
    assert chosen.for_model(nn.Linear(2, 2)) is chosen


@pytest.mark.parametrize(
    ("model", "inputs", "fixed"),
    [
        (lambda: nn.Linear(2, 2), torch.ones(1, 2), False),
        (lambda: nn.Linear(2, 2), torch.Generator.initial_seed, False),
        (nn.Linear, torch.ones(1, 2), False),
        (nn.Linear(2, 2), torch.ones(1, 2), True),
        (nn.Linear(2, 2), torch.Generator.initial_seed, True),
        (nn.Tanh(), torch.ones(1, 2), True),
        (nn.Tanh(), torch.Generator.initial_seed, False),
    ],
    ids=["factory", "factory, drawn", "class", "module", "module, drawn", "no weights", "no weights, drawn"],
)
def test_a_finished_module_is_fixed_unless_only_its_inputs_are_drawn(model: Any, inputs: Any, fixed: bool) -> None:
    assert is_fixed(model, inputs) is fixed
    assert recipe(model=model, inputs=inputs).fixed is fixed


@pytest.mark.parametrize(
    ("text", "found"),
    [("no data", "no data."), (" no data. ", "no data."), ("why?", "why?"), ("no!", "no!"), ("", ".")],
)
def test_an_error_reads_like_a_sentence(text: str, found: str) -> None:
    assert sentence(ValueError(text)) == found


def test_a_model_that_does_not_fit_is_named_with_its_device() -> None:
    text = did_not_fit(nn.Linear(2, 2), torch.device("cuda:1"))
    assert (
        text.startswith("Linear, one forward pass") and "cuda:1 ran out of memory. Measure with a smaller batch" in text
    )
