"""Changes of classes since a baseline."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_trainability.checks.baseline_entries import Entry
from pytest_trainability.checks.baseline_values import NameSet, Series
from pytest_trainability.checks.baselines import compare
from pytest_trainability.checks.class_changes import class_changes
from pytest_trainability.report.changes import change_texts

ENVIRONMENT = {"device": "cpu", "dtype": "float32", "platform": "linux", "torch": "2.6", "threads": "1"}


def entry(*lines: str, names: tuple[str, ...] = ("a", "b", "c"), value: float = 1.0) -> Entry:
    norms = Series("", "log", dict.fromkeys(names, (value,)))
    measures = {
        "gradient_norm": norms,
        "gradient_classes": NameSet(lines),
        "log_gain": Series("", "linear", {"": (0.0,)}),
    }
    return Entry(ENVIRONMENT, {}, (0,), ("d d",), measures)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("a: zero by algebra", "a: dead", "a (zero by algebra → dead)"),
        ("a: waking at step 1", "a: dead", "a (waking at step 1 → dead)"),
        ("b: dead", "a: zero by algebra", "b (dead → signal), a (signal → zero by algebra)"),
        ("a: waking at step 1", "a: waking at step 2", "a (waking at step 1 → waking at step 2)"),
    ],
)
def test_a_change_says_from_which_class_to_which(old: str, new: str, text: str) -> None:
    changes = compare(entry(old), entry(new), {})
    assert change_texts(changes) == [f"{len(changes)} of 3 changed: {text}"]


def test_equal_classes_are_no_change() -> None:
    assert compare(entry("a: dead"), entry("a: dead"), {}) == ()


def test_a_baseline_without_classes_is_no_change() -> None:
    old = entry()
    old = replace(old, measures={name: found for name, found in old.measures.items() if name != "gradient_classes"})
    assert compare(old, entry("a: dead"), {}) == ()


def test_a_parameter_that_is_gone_has_no_class() -> None:
    changes = compare(entry("a: dead"), entry(names=("b", "c")), {})
    assert {change.measure for change in changes} == {"gradient_norm"}


def test_whether_a_sum_cancels_exactly_depends_on_the_machine() -> None:
    for repeatable, count in ((True, 2), (False, 1)):
        lines = ["a: dead", "b: zero by algebra"], ["a: zero by algebra, a weight", "b: waking at step 1"]
        assert len(list(class_changes(*lines, gone=(), repeatable=repeatable, considered=2))) == count
    elsewhere = replace(entry("a: zero by algebra"), environment={**ENVIRONMENT, "platform": "darwin"})
    assert compare(entry("a: dead"), elsewhere, {}) == ()


def test_a_sum_that_cancels_on_one_draw_and_not_on_another_is_no_change() -> None:
    lines = ["a: zero on this draw"], ["b: zero on this draw"]
    assert not list(class_changes(*lines, gone=(), repeatable=True, considered=2))
    (change,) = class_changes(["a: zero on this draw"], ["a: dead"], gone=(), repeatable=True, considered=2)
    assert (change.old_text, change.new_text) == ("zero on this draw", "dead")
