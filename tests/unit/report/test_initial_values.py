"""The table of initial values: rows that stand for several names, and their numbers."""

from __future__ import annotations

import math
from dataclasses import replace

from pytest_trainability.records.initial_values import InitialValues
from pytest_trainability.report.initial_values import initial_table

WEIGHT = InitialValues(
    "h.0.w", "parameter", (8, 4), "float32", "normal", "normal, std 0.02", 0.0199, 1e-4, 2.9, redrawn=True
)


def row(*values: InitialValues) -> list[str]:
    """Return the cells of the only row."""
    _, line = initial_table(values)
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_layers_share_a_row_with_their_numbers() -> None:
    layers = [replace(WEIGHT, name=f"h.{i}.w", rms=0.0199 + 1e-4 * i) for i in range(3)]
    assert row(*layers) == ["h.{0-2}.w", "8×4", "0.0199 to 0.0201", "0.0001", "2.9", "normal, std 0.02"]


def test_layers_of_another_form_or_shape_have_their_own_row() -> None:
    others = [
        replace(WEIGHT, name="h.1.w", text="normal, std 0.2"),
        replace(WEIGHT, name="h.2.w", shape=(8, 8)),
        replace(WEIGHT, name="h.3.w", kind="buffer"),
    ]
    lines = initial_table([WEIGHT, *others])
    assert [line.split()[0] for line in lines] == ["name", "h.0.w", "h.1.w", "h.2.w", "h.3.w"]
    assert lines[-1].endswith("(buffer)")


def test_names_that_one_pattern_does_not_describe_are_counted() -> None:
    names = ("s.0.b.0.w", "s.0.b.1.w", "s.1.b.0.w")
    assert row(*(replace(WEIGHT, name=name) for name in names))[0] == "s.*.b.*.w (3)"


def test_parameters_that_are_tied_to_different_layers_share_a_row() -> None:
    tied = [replace(WEIGHT, name=f"b.{i}.w", form="tied", text=f"tied to a.{i}.w") for i in range(2)]
    assert row(*tied)[-1] == "tied to a.*.w"


def test_what_has_no_number_has_an_empty_cell_and_other_types_are_named() -> None:
    (found,) = initial_table([replace(WEIGHT, shape=(), rms=math.nan, mean=math.nan, outlier=math.nan)])[1:]
    assert found.split() == ["h.0.w", "scalar", "normal,", "std", "0.02"]
    assert row(replace(WEIGHT, dtype="bfloat16"))[-1] == "normal, std 0.02 (bfloat16)"


def test_names_cannot_write_control_characters() -> None:
    assert row(replace(WEIGHT, name="\x1b[31mw"))[0] == r"\x1b[31mw"


def test_no_values_make_no_table() -> None:
    assert initial_table([]) == []
