"""Profiles: what they hold, and how they are asked for."""

from __future__ import annotations

import math
import re

import pytest

from pytest_trainability.checks.bounds import Bound
from pytest_trainability.checks.presets import PRESETS, find_preset
from pytest_trainability.errors import BoundError
from pytest_trainability.measures import MEASURES


def test_every_bound_names_a_measure() -> None:
    assert {name for bounds in PRESETS.values() for name in bounds} <= set(MEASURES)


def test_bounds_on_names_allow_none() -> None:
    for bounds in PRESETS.values():
        for name, bound in bounds.items():
            if MEASURES[name].kind == "names":
                assert bound == Bound(high=0)


def test_families() -> None:
    assert list(PRESETS) == ["mlp", "cnn", "transformer", "rnn"]
    # What holds of a network without a family holds of every one.
    for bounds in PRESETS.values():
        assert {"log_gain", "nonfinite", "activation_rms", "excess_loss"} <= set(bounds)


@pytest.mark.parametrize("family", PRESETS)
def test_a_gain_of_one_is_inside_and_no_number_is_outside(family: str) -> None:
    gain = PRESETS[family]["log_gain"]
    assert gain.holds(0)
    assert not any(map(gain.holds, (math.nan, math.inf, -math.inf)))


def test_what_is_found_can_be_changed_without_harm() -> None:
    found = find_preset("cnn")
    assert list(found) == list(PRESETS["cnn"])
    found.clear()
    assert list(find_preset("cnn")) == list(PRESETS["cnn"])


@pytest.mark.parametrize("family", PRESETS)
def test_what_a_model_does_not_have_cannot_fail(family: str) -> None:
    assert all(bound.if_any for bound in find_preset(family).values())
    assert {n: (b.low, b.high) for n, b in find_preset(family).items()} == {
        n: (b.low, b.high) for n, b in PRESETS[family].items()
    }


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("transformers", "Did you mean 'transformer'?"),
        ("MLP", "Did you mean 'mlp'?"),
        ("xyz", "unknown preset 'xyz'. Presets:"),
    ],
)
def test_an_unknown_name(name: str, hint: str) -> None:
    with pytest.raises(BoundError, match=re.escape(hint)) as caught:
        find_preset(name, where="trainability_preset in pytest.ini")
    assert str(caught.value).startswith("trainability_preset in pytest.ini: unknown preset ")
    assert str(caught.value).endswith("Presets: 'mlp', 'cnn', 'transformer', 'rnn'.")


def test_no_name_at_all() -> None:
    with pytest.raises(BoundError, match=r"^Unknown preset None\."):
        find_preset(None)  # type: ignore[arg-type]
