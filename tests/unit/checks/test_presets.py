"""Presets: their bounds, and how they are found by name."""

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


def test_bounds_on_names_allow_no_name() -> None:
    for bounds in PRESETS.values():
        for name, bound in bounds.items():
            if MEASURES[name].kind == "names":
                assert bound == Bound(high=0)


def test_every_family_has_the_common_bounds() -> None:
    assert list(PRESETS) == ["mlp", "cnn", "transformer", "rnn"]
    for bounds in PRESETS.values():
        assert {"log_gain", "nonfinite", "activation_rms", "excess_loss"} <= set(bounds)


@pytest.mark.parametrize("family", PRESETS)
def test_a_log_gain_of_zero_is_inside_and_infinity_is_outside(family: str) -> None:
    gain = PRESETS[family]["log_gain"]
    assert gain.holds(0)
    assert not any(map(gain.holds, (math.nan, math.inf, -math.inf)))


def test_a_preset_is_returned_as_a_copy() -> None:
    found = find_preset("cnn")
    assert list(found) == list(PRESETS["cnn"])
    found.clear()
    assert list(find_preset("cnn")) == list(PRESETS["cnn"])


@pytest.mark.parametrize("family", PRESETS)
def test_bounds_of_a_preset_hold_if_there_is_nothing_to_judge(family: str) -> None:
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
def test_an_unknown_name_is_refused_with_the_closest_one(name: str, hint: str) -> None:
    with pytest.raises(BoundError, match=re.escape(hint)) as caught:
        find_preset(name, where="trainability_preset in pytest.ini")
    assert str(caught.value).startswith("trainability_preset in pytest.ini: unknown preset ")
    assert str(caught.value).endswith("Presets: 'mlp', 'cnn', 'transformer', 'rnn'.")


def test_a_preset_without_a_name_is_refused() -> None:
    with pytest.raises(BoundError, match=r"^Unknown preset None\."):
        find_preset(None)  # type: ignore[arg-type]
