"""The values of the keys of a test, and what is said about those that are invalid."""

from __future__ import annotations

from typing import Any

import pytest
from gate_values import INVALID, VALID

from pytest_trainability.gate.keys import CONDITIONS, KEYS, Condition, nearest, unknown_key


def read(key: str, value: Any) -> tuple[Any, list[tuple[str, ...]]]:
    """Return the value of a key, and the complaints about it."""
    complaints: list[tuple[str, ...]] = []
    return KEYS[key](value, lambda *complaint: complaints.append(complaint)), complaints


@pytest.mark.parametrize(("key", "value", "expected"), [(k, *case) for k, cases in VALID.items() for case in cases])
def test_valid_values(key: str, value: Any, expected: Any) -> None:
    found, complaints = read(key, value)
    assert complaints == []
    assert expected is None or found == expected


@pytest.mark.parametrize(("key", "value", "said"), [(k, *case) for k, cases in INVALID.items() for case in cases])
def test_invalid_values(key: str, value: Any, said: str) -> None:
    _, complaints = read(key, value)
    assert len(complaints) == 1
    assert said in complaints[0][0]


def test_each_key_has_valid_and_invalid_values() -> None:
    assert set(VALID) == set(INVALID) == set(KEYS)


def test_all_complaints_of_a_value_name_their_keys() -> None:
    _, complaints = read("bounds", {"log_gian": "within(3)", "log_gain": 3, "nonfinite": "<= 0"})
    assert [key for _, *key in complaints] == [["log_gian"], ["log_gain"]]
    _, complaints = read("skip", {"mising": "timm", "unless": "tpu"})
    assert [key for _, *key in complaints] == [["mising"], ["unless"]]


def test_a_module_that_is_not_installed_is_absent() -> None:
    assert Condition(("json", "torch.nn")).absent() == ""
    assert Condition(("json", "no_such_module", "other")).absent() == "no_such_module"
    assert Condition(("no_such_module.inner",)).absent() == "no_such_module.inner"


def test_a_mark_that_is_written_as_a_key_is_explained() -> None:
    assert unknown_key("timeout") == "unknown key 'timeout'. A mark of pytest is written as marks = ['timeout(...)']."
    assert unknown_key("modle") == "unknown key 'modle'. Did you mean 'model'?"


def test_the_nearest_name_or_all() -> None:
    assert nearest("mising", CONDITIONS) == "Did you mean 'missing'?"
    assert nearest("xyz", CONDITIONS) == "Known: missing, unless, reason."
