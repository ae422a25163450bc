"""Classes of gradients as text, and over seeds."""

from __future__ import annotations

import pytest

from pytest_trainability.records.gradient_classes import (
    CANCELLED,
    CANCELLED_WEIGHT,
    DEAD,
    FROZEN,
    SIGNAL,
    UNKNOWN,
    UNUSED,
    GradientClasses,
    gets_none,
    kind_of,
    listed,
    waking,
    without_names,
)

WAKES, BLOCKED = waking(1, by_design=True), waking(2, by_design=False)


def test_classes_are_texts_that_can_be_read_back() -> None:
    """A key of a ``ModuleDict`` may contain the separator."""
    labels = {"a: b.weight": CANCELLED_WEIGHT, "c": WAKES, "d": BLOCKED, "e": SIGNAL}
    assert listed(labels) == [
        "a: b.weight: zero by algebra, a weight",
        "c: waking at step 1",
        "d: waking at step 2, not by design",
    ]
    assert without_names(listed(labels)) == {n: label for n, label in labels.items() if label != SIGNAL}


@pytest.mark.parametrize(
    ("label", "kind", "none"),
    [
        (SIGNAL, "signal", False),
        (CANCELLED, "zero by algebra", False),
        (CANCELLED_WEIGHT, "zero by algebra", True),
        (WAKES, "waking", False),
        (BLOCKED, "waking", True),
        (DEAD, "dead", True),
        (UNUSED, "unused", True),
        (FROZEN, "frozen", False),
        (UNKNOWN, "unknown", True),
    ],
)
def test_kinds_of_classes_and_whether_they_are_excused(label: str, kind: str, none: bool) -> None:
    assert kind_of(label) == kind
    assert gets_none(label) == none


def test_classes_of_several_seeds() -> None:
    seeds = [
        ["late: waking at step 1", "bias: zero by algebra", "mixed: dead"],
        ["late: waking at step 2", "mixed: waking at step 1"],
    ]
    classes = GradientClasses.of(seeds, ["head", "late", "bias", "mixed"])
    assert classes.labels["head"] == (SIGNAL, SIGNAL)
    assert classes.labels["bias"] == (CANCELLED, SIGNAL)
    assert classes.step("late") == 2 and classes.step("head") == 0
    assert [classes.wakes(name) for name in ("late", "head", "bias", "mixed")] == [True, False, False, False]
    assert classes.not_judged() == ["late", "bias"]
    assert classes.without_gradient() == ["mixed"]
    shares = classes.largest_shares()
    # The bias counts where its gradient is no round-off.
    assert [(share.names, share.judged, share.by_design) for share in shares] == [(("mixed",), 3, 1), ((), 4, 2)]
    assert [share.share for share in shares] == [1 / 3, 0]
    assert classes.is_round_off("bias", 0) and not classes.is_round_off("bias", 1)
    assert classes.counts_text() == "gradients: 1 signal, 1 waking, 1 zero by algebra, 1 dead"


def test_a_repeated_block_with_a_larger_share_counts() -> None:
    lines = ["h.0.w: unused", "h.1.w: dead"]
    classes = GradientClasses.of([lines], ["stem", "head", "h.2.w"], {"3 × Block": ["h.0.w", "h.1.w", "h.2.w"]})
    (share,) = classes.largest_shares()
    assert (share.names, share.judged, share.block) == (("h.0.w", "h.1.w"), 3, "3 × Block")


def test_frozen_parameters_are_not_trainable() -> None:
    classes = GradientClasses.of([["a: frozen", "b: unused"]], ["c"])
    assert classes.trainable() == ["c", "b"]
    assert classes.counts_text() == "gradients: 1 signal, 1 unused, 1 frozen"
    assert GradientClasses.of([["a: frozen"]], ["c"]).counts_text() == ""


def test_a_branch_moves_if_all_its_parameters_do() -> None:
    classes = GradientClasses.of(
        [["a.weight: waking at step 2", "a.bias: zero by algebra", "b.weight: dead"]], ["b.bias"]
    )
    assert classes.moves(["a.weight", "a.bias"])
    assert not classes.moves(["b.weight", "b.bias"])
    assert not classes.moves([])


def test_biases_that_cancel_are_harmless_and_waking_that_no_design_explains_is_counted_apart() -> None:
    classes = GradientClasses.of([["key.bias: zero by algebra", "a: frozen"]], ["b"])
    assert classes.are_harmless()
    blocked = GradientClasses.of([["a: waking at step 1, not by design", "b: waking at step 1"]], ["c"])
    assert not blocked.are_harmless()
    assert blocked.counts_text() == "gradients: 1 signal, 1 waking, 1 waking not by design"


def test_a_weight_is_zero_by_algebra_if_it_is_on_one_seed() -> None:
    classes = GradientClasses.of([["router: zero by algebra, a weight", "bias: zero by algebra"], []], ["head"])
    assert [classes.is_cancelled_weight(name) for name in ("router", "bias", "head", "other")] == [
        True,
        False,
        False,
        False,
    ]
    assert [classes.is_cancelled(name) for name in ("router", "bias", "head", "other")] == [False, True, False, False]


def test_a_sum_that_cancels_on_one_draw_is_harmless_and_not_judged() -> None:
    classes = GradientClasses.of([["b: zero on this draw"], []], ["a", "b"])
    assert classes.are_harmless()
    assert classes.not_judged() == ["b"]
    assert classes.is_round_off("b", 0)
    assert not classes.is_round_off("b", 1)
    assert classes.counts_text() == "gradients: 1 signal, 1 zero on this draw"
    assert [(s.names, s.judged) for s in classes.largest_shares()] == [((), 1), ((), 2)]
