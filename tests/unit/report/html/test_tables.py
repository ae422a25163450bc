"""Values of a document as numbers, and the tables of them."""

from __future__ import annotations

import math

from documents import estimate, profile

from pytest_trainability.report.html.tables import Column, Table, column_of, expand, values_of


def test_values_are_read_with_those_that_are_not_finite():
    found = values_of([profile("activation_rms", {"a": [1.0, math.inf], "b": [2.0, 4.0]}, "step", scale="log")])
    values = found["activation_rms"]
    assert list(values.elements) == ["a", "b"] and values.log
    assert values.elements["a"].seeds == (1.0, math.inf)
    assert values.elements["b"].low == 2.0 and values.elements["b"].high == 4.0


def test_labels_have_the_unit():
    values = values_of([estimate("log_gain", [1.0], unit="nats"), estimate("sharpness", [1.0])])
    assert [one.label for one in values.values()] == ["log_gain, nats", "sharpness"]


def test_names_that_are_too_many_stay_folded():
    assert expand("h.{0-2}.w") == ["h.0.w", "h.1.w", "h.2.w"]
    assert expand("h.{0-99999999999}") == ["h.{0-99999999999}"]


def test_a_table_has_a_row_for_each_name():
    names = ("a", "b")
    table = Table("steps", "Steps", names, (column_of("x", names, {"a": 1 / 3}), Column("y", ("1", "2"))))
    assert table.rows == [("a", "0.3333", "1"), ("b", "", "2")]
