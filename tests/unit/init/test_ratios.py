"""Ratios of standard deviations in words."""

from __future__ import annotations

import math

import pytest

from pytest_trainability.init.ratios import explain_ratio

NUMBERS = {"layers": 12, "fan_in": 768, "fan_out": 3072, "heads": 6}


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (math.sqrt(2), "the scaling by 1/√2 is missing"),
        (0.5, "a scaling by 1/2 too many"),
        (math.sqrt(24), "the scaling by 1/√(2 × 12) is missing (12 layers)"),
        (1 / math.sqrt(12), "a scaling by 1/√12 too many (12 layers)"),
        (math.sqrt(768), "the scaling by 1/√768 is missing (fan_in 768)"),
        (math.sqrt(6), "the scaling by 1/√6 is missing (6 heads)"),
        (math.sqrt(3), "a factor √3 (as between the bound of a uniform distribution and its standard deviation)"),
        (10.0, "the scaling by 1/10 is missing"),
        (2.345, ""),
        (0.0, ""),
    ],
)
def test_known_factors(ratio: float, expected: str) -> None:
    assert explain_ratio(ratio, 0.001, 0.01, NUMBERS) == expected


def test_a_variance_in_place_of_a_standard_deviation() -> None:
    assert explain_ratio(math.sqrt(0.03) / 0.03, 0.001, 0.03, {}) == "the rule's number is the variance"
    assert explain_ratio(0.03, 0.001, 0.03, {}) == "the rule's number is squared"


def test_an_uncertain_ratio_is_not_explained() -> None:
    assert explain_ratio(math.sqrt(2), 0.2, 0.01, NUMBERS) == ""


def test_a_factor_outside_the_error_is_not_named() -> None:
    assert explain_ratio(1.42, 0.001, 0.01, {}) == ""
    assert explain_ratio(1.42, 0.01, 0.01, {}) == "the scaling by 1/√2 is missing"
