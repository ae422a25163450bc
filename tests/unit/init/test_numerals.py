"""Numbers as a person would write them."""

from __future__ import annotations

import math

import pytest

from pytest_trainability.init.numerals import written


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.0200013, 1e-4, "0.02"),
        (1.0, 1e-9, "1.0"),
        (0.36, 0.001, "0.36"),
        (1 / math.sqrt(768), 1e-4, "1 / math.sqrt(768)"),
        (math.sqrt(2 / 9), 1e-4, "math.sqrt(2 / 9)"),
        (-0.125, 1e-4, "-0.125"),
        (0.02 / math.sqrt(24), 1e-3, "0.02 / math.sqrt(2 * 12)"),
        (0.0, 1.0, "0.0"),
    ],
)
def test_simple_numbers(value: float, error: float, text: str) -> None:
    assert written(value, error, [768, 9], 12) == text


def test_other_numbers_have_the_digits_that_are_known() -> None:
    assert written(0.0123456789, 1e-5) == "0.0123457"
    assert float(written(math.pi, 1e-9)) == pytest.approx(math.pi, rel=1e-9)
