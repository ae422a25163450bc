"""Changes of texts: names that changed alike share one change."""

from __future__ import annotations

from pytest_trainability.checks.text_changes import text_changes


def test_names_that_changed_alike_are_one_change() -> None:
    changed = {("GELU", "ReLU"): ["blocks.0.act", "blocks.2.act"], ("Linear", "Conv2d"): ["head"]}
    known = ["blocks.0.act", "blocks.1.act", "blocks.2.act", "head"]
    alike, alone = text_changes("modules", changed, known)
    assert (alike.measure, alike.kind, alike.element) == ("modules", "moved", "blocks.*.act")
    assert (alike.old_text, alike.new_text, alike.count, alike.considered) == ("GELU", "ReLU", 2, 3)
    assert alike.elements == ("blocks.{0,2}.act",)
    assert (alone.element, alone.old_text, alone.new_text, alone.count) == ("head", "Linear", "Conv2d", 1)


def test_without_changes_there_is_none() -> None:
    assert list(text_changes("modules", {}, ["head"])) == []
