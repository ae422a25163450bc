"""Rows of copies, and their comparison: lost and new equality, whichever of two equal tensors comes first."""

from __future__ import annotations

from pytest_trainability.checks.copy_changes import COPIES, copy_changes, copy_rows
from pytest_trainability.records.reports import BaselineChange

NAMES = [f"{side}.{i}.{leaf}" for side in ("student", "teacher") for i in range(3) for leaf in ("weight", "bias")]
TEACHER = {f"teacher.{i}.{leaf}": f"student.{i}.{leaf}" for i in range(3) for leaf in ("weight", "bias")}


def changes(old: dict[str, str], new: dict[str, str], names: list[str] | None = None) -> list[BaselineChange]:
    return list(copy_changes(copy_rows([old]), copy_rows([new]), known=(NAMES, NAMES if names is None else names)))


def test_rows_are_folded() -> None:
    assert copy_rows([TEACHER]) == {
        "teacher.{0-2}.weight": "teacher.* = student.*",
        "teacher.{0-2}.bias": "teacher.* = student.*",
    }


def test_a_copy_that_a_seed_lacks_has_no_row() -> None:
    assert copy_rows([{"b": "a"}, {}]) == {}


def test_equal_models_have_no_changes() -> None:
    assert not changes(TEACHER, TEACHER)


def test_a_teacher_that_is_drawn_anew_is_one_change() -> None:
    (change,) = changes(TEACHER, {})
    assert (change.measure, change.kind, change.element) == (COPIES, "moved", "teacher.*")
    assert (change.count, change.considered) == (6, 6)
    assert change.new_text == "no longer equal to student.*"
    assert change.elements == ("teacher.{0-2}.weight", "teacher.{0-2}.bias")


def test_a_part_that_is_drawn_anew_is_counted() -> None:
    (change,) = changes(TEACHER, {name: first for name, first in TEACHER.items() if "bias" in name})
    assert (change.count, change.considered) == (3, 6)


def test_another_order_of_the_modules_is_no_change() -> None:
    assert not changes(TEACHER, {first: name for name, first in TEACHER.items()})
    three = {"b.w": "a.w", "c.w": "a.w"}
    assert not changes(three, {"a.w": "c.w", "b.w": "c.w"}, ["a.w", "b.w", "c.w"])


def test_tensors_that_are_gone_are_not_compared() -> None:
    assert not changes(TEACHER, {}, [name for name in NAMES if name.startswith("student")])


def test_new_copies_are_a_change() -> None:
    without = {name: first for name, first in TEACHER.items() if ".0." not in name}
    (change,) = changes(without, TEACHER)
    assert change.new_text == "now equal to student.*"
    assert change.elements == ("teacher.0.weight", "teacher.0.bias")


def test_a_baseline_without_copies_knows_nothing_of_them() -> None:
    assert not changes({}, TEACHER)


def test_names_without_a_common_end() -> None:
    rows = copy_rows([{"average": "code"}])
    (change,) = copy_changes(rows, {}, known=(["average", "code"], ["average", "code"]))
    assert rows == {"average": "average = code"}
    assert (change.element, change.new_text) == ("average", "no longer equal to code")
