"""Measures that are added at run time: which names they may have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_trainability import Measure, UsageError, add_measure, measure
from pytest_trainability.measures import MEASURES


@pytest.mark.parametrize(
    "name", ["log_gain", "steps", "seeds", "check", "tolerances", "preset", "loss", "_x", "two words"]
)
def test_names_that_are_taken_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="the name of a measure must be an unused identifier"):
        add_measure(Measure(name, "scalar", "", "linear", frozenset(), lambda run: 0.0))
    assert "gradient" not in MEASURES


@pytest.mark.parametrize("name", ["class", "confidence", "measures"])
def test_names_that_no_bound_could_have_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="the name of a measure must be an unused identifier"):
        add_measure(Measure(name, "scalar", "", "linear", frozenset(), lambda run: 0.0))


@pytest.mark.parametrize(
    ("name", "reason"), [("log_gain", "'log_gain' is taken"), ("two words", "'two words' is not an identifier")]
)
def test_the_message_says_why_a_name_is_refused(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        add_measure(Measure(name, "scalar", "", "linear", frozenset(), lambda run: 0.0))


def test_adding_a_measure_twice_is_no_error(added: Callable[..., Measure]) -> None:
    add_measure(added("twice", read=lambda run: 0.0))


def test_another_measure_of_the_same_name_is_refused(added: Callable[..., Measure]) -> None:
    added("twice", read=lambda run: 0.0)
    with pytest.raises(UsageError, match="'twice' is taken"):
        added("twice", read=lambda run: 1.0)


def test_only_measures_are_added() -> None:
    other: Any = "twice"
    with pytest.raises(UsageError, match=r"must be a pytest_trainability\.Measure\. Got str"):
        add_measure(other)


def test_an_added_measure_is_an_attribute(added: Callable[..., Measure]) -> None:
    added("seed_number", read=lambda run: run.seed)
    result = measure(lambda: nn.Linear(3, 3), torch.eye(3), seeds=[2, 4])
    assert result.seed_number.values == (2, 4)
    assert "seed_number" in dir(result)
