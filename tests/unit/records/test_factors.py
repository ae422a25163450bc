"""Records of factors: slopes."""

from __future__ import annotations

import pytest

from pytest_trainability.records.factors import SlopeRecord


@pytest.mark.parametrize(
    ("low", "high", "constant"),
    [
        (2.0, 2.0, True),
        (-2.0, -2.0, True),
        (0.9995, 1.0, True),
        (0.99, 1.0, False),
        (0.0, 1.0, False),
        (-1.0, 1.0, False),
    ],
)
def test_slopes_that_agree_to_a_thousandth_are_one_factor(low: float, high: float, constant: bool) -> None:
    assert SlopeRecord(1.0, low, high, 0.0).is_constant is constant
