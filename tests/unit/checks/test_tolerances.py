"""Tolerances: which numbers and lines are accepted, and the messages for others."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from pytest_trainability import UsageError
from pytest_trainability.checks.tolerances import as_tolerance, parse_tolerances


@pytest.mark.parametrize("value", [0, 0.3, 5, np.float64(0.3), np.int64(2)])
def test_numbers_of_at_least_zero_are_tolerances(value: Any) -> None:
    tolerance = as_tolerance(value, measure="log_gain", where="check_baseline()")
    assert (type(tolerance), tolerance) == (float, float(value))


@pytest.mark.parametrize("value", [-0.1, -math.inf, math.inf, math.nan, True, "0.3", None, (0.1,)])
def test_other_values_are_refused(value: Any) -> None:
    """An infinite tolerance would switch a comparison off without a word."""
    message = f"check_baseline(): the tolerance of log_gain must be a finite number of at least 0. Got {value!r}."
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        as_tolerance(value, measure="log_gain", where="check_baseline()")


def test_lines_are_parsed() -> None:
    lines = ["log_gain = 0.5", "growth_rate=0", "  gradient_norm  =  1e-1 "]
    assert parse_tolerances(lines, where="tox.ini") == {"log_gain": 0.5, "growth_rate": 0.0, "gradient_norm": 0.1}


def test_the_last_line_of_a_measure_counts() -> None:
    assert parse_tolerances(["log_gain = 0.5", "log_gain = 0.1"], where="tox.ini") == {"log_gain": 0.1}


@pytest.mark.parametrize(
    "line", ["", "log_gain", "log_gain 0.5", "= 0.5", "log gain = 0.5", "log_gain = x", "log_gain = nan"]
)
def test_other_lines_are_refused(line: str) -> None:
    message = f"tox.ini must hold lines such as 'log_gain = 0.5'. Got {line!r}."
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        parse_tolerances([line], where="tox.ini")


@pytest.mark.parametrize("text", ["-1", "inf", "1e999"])
def test_a_line_with_an_invalid_number_is_refused(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"^tox\.ini: the tolerance of log_gain must be a finite number of at least 0\."
    ):
        parse_tolerances([f"log_gain = {text}"], where="tox.ini")


def test_a_number_too_large_for_a_float_is_no_tolerance() -> None:
    with pytest.raises(UsageError, match=r"must be a finite number of at least 0. Got 1000"):
        as_tolerance(10**400, measure="log_gain", where="here")
