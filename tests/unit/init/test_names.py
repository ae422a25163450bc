"""Patterns and nearest names."""

from __future__ import annotations

import pytest

from pytest_trainability.init.names import matches, names_buffer, nearest

NAME = "transformer.h.11.attn.c_proj.weight"


@pytest.mark.parametrize(
    "pattern",
    ["**", "*.weight", "*.c_*.weight", "transformer.h.*.attn.c_proj.weight", "transformer.*", "**.attn.**", NAME],
)
def test_pattern_matches(pattern: str) -> None:
    assert matches(pattern, NAME)


@pytest.mark.parametrize(
    "pattern", ["*.bias", "c_proj.weight", "transformer.*.weight", "*", "h.*", "*.proj.weight", ""]
)
def test_pattern_does_not_match(pattern: str) -> None:
    assert not matches(pattern, NAME)


def test_characters_of_regular_expressions_are_plain() -> None:
    assert matches("a+b.w", "a+b.w")
    assert not matches("a.w", "abw")


def test_a_leading_wildcard_matches_no_part_as_well() -> None:
    assert matches("*.weight", "weight")
    assert not matches("*.weight", "in_proj_weight")


def test_a_buffer_must_be_named() -> None:
    assert names_buffer("*.running_mean", "bn.running_mean")
    assert not names_buffer("*.weight", "bn.running_mean")
    assert not names_buffer("**", "bn.running_mean")


def test_nearest_name() -> None:
    names = ["h.0.attn.c_proj.weight", "h.1.attn.c_proj.weight", "wte.weight"]
    assert nearest("*.c_porj.weight", names) == "h.*.attn.c_proj.weight"
    assert nearest("wte.wieght", names) == "wte.weight"
    assert nearest("zzzz", names) == ""
