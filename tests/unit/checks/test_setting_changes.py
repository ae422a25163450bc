"""Rows of constants in the code of modules, and what a comparison says of them."""

from __future__ import annotations

import pytest

from pytest_trainability.checks.setting_changes import LONGEST_ROW, OMITTED, setting_changes, setting_rows

NORM = "layer_norm((64), eps=1e-05)"


def difference(old: str, new: str) -> tuple[str, str] | None:
    """Return what is said of the calls of one module, which are given in one text."""
    found = list(setting_changes({"m": old}, {"m": new}))
    return (found[0].old_text, found[0].new_text) if found else None


def test_modules_of_equal_calls_share_a_row_in_the_order_of_the_modules() -> None:
    calls = {f"b.{i}": ("mean(dim=1)", "mul(2)", "mean(dim=1)") for i in range(12)}
    assert setting_rows([{"head": (NORM,), **calls}]) == {"head": NORM, "b.{0-11}": "mean(dim=1) ×2; mul(2)"}


def test_calls_that_a_seed_lacks_are_left_out() -> None:
    seeds = [{"a": ("mul(2)", "mul(2)", "add(1)"), "b": ("mul(3)",)}, {"a": ("mul(2)",)}]
    assert setting_rows(seeds) == {"a": "mul(2)"}


def test_a_long_row_is_not_compared() -> None:
    calls = [f"mul({i})" for i in range(LONGEST_ROW)]
    rows = setting_rows([{"a": calls, "b": calls[:2]}])
    assert rows == {"a": OMITTED, "b": "mul(0); mul(1)"}
    for other in ({"b": rows["b"]}, {"a": "mul(2)", "b": rows["b"]}):
        assert list(setting_changes(rows, other, shared={"a", "b"})) == []
        assert list(setting_changes(other, rows, shared={"a", "b"})) == []


def test_a_module_may_lose_its_only_call() -> None:
    """A module that is on one side only has other constants because it is gone; one on both sides has lost its calls."""
    old, new = {"b.{0-1}": "squeeze(dim=-1)", "head": "mul(2)"}, {"head": "mul(2)"}
    (gone,) = setting_changes(old, new, shared={"b.0", "b.1", "head"})
    (fresh,) = setting_changes(new, old, shared={"b.0", "b.1", "head"})
    assert (gone.element, gone.old_text, gone.new_text, gone.count) == ("b.*", "squeeze(dim=-1)", "", 2)
    assert (fresh.element, fresh.old_text, fresh.new_text, fresh.count) == ("b.*", "", "squeeze(dim=-1)", 2)
    assert list(setting_changes(old, new, shared={"head"})) == []


def test_a_long_row_does_without_the_readers() -> None:
    calls = [f"mul({i}) read by layers.*.self_attn as key_padding_mask" for i in range(100, 200)]
    assert setting_rows([{"a": [*calls, calls[-1]]}]) == {
        "a": "; ".join(f"mul({i})" for i in range(100, 199)) + "; mul(199) ×2"
    }


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (NORM, NORM, None),
        ("mean(dim=-1, keepdim=True) ×2", "mean(dim=0, keepdim=True) ×2", ("mean(dim=-1) ×2", "mean(dim=0) ×2")),
        # What is multiplied stays, as its place says what the number is for.
        ("mul(table, 8)", "mul(table, 1)", ("mul(table, 8)", "mul(table, 1)")),
        ("mul(2); add(1)", "add(1); mul(2)", None),
        ("mul(2); add(1)", "add(1)", ("mul(2)", "")),
        ("add(1)", "mul(2); add(1)", ("", "mul(2)")),
        ("mean(dim=(2, 3))", "mean(dim=2); getitem((0, :))", ("mean(dim=(2, 3))", "mean(dim=2), getitem((0, :))")),
        ("fold(dilation=(1, 1), padding=1)", "fold(dilation=2, padding=1)", ("fold(dilation=(1, 1))", "fold(dilation=2)")),
        # What reads a result is said of the new call, or of the old one if there is none, and is no difference.
        ("mul(2) read by a; add(1)", "mul(3) read by b; add(1) read by c", ("mul(2)", "mul(3) (read by b)")),
        ("eq(0) read by a as mask, b ×4", "ne(0) read by a as mask, b ×4", ("eq(0) ×4", "ne(0) ×4 (read by a as mask, b)")),
        ("mul(2) read by a ×2; add(1)", "add(1)", ("mul(2) ×2 (read by a)", "")),
        ("mul(2) read by a", "mul(2) read by b", None),
        ("mul(2)", "mul(2) read by b", None),
        ("mul(x, 2)", "mul(x, 2, no_grad)", ("mul(x, 2)", "mul(x, 2, no_grad)")),
        ("a(1); b(1); c(1); d(1); e(1)", "f(2)", ("a(1), b(1), c(1), d(1), …", "f(2)")),
    ],
)  # fmt: skip
def test_a_difference_names_the_calls_and_the_arguments_that_differ(
    old: str, new: str, said: tuple[str, str] | None
) -> None:
    assert difference(old, new) == said


def test_modules_that_changed_alike_are_one_change_and_those_of_one_side_are_none() -> None:
    old = {"b.{0-3}": NORM, "gone": "mul(2)"}
    (found,) = setting_changes(old, {"b.{0-2}": NORM.replace("1e-05", "10"), "b.3": NORM, "new": "mul(3)"})
    assert (found.measure, found.element, found.elements, found.count, found.considered) == (
        *("settings", "b.*", ("b.{0-2}",)),
        *(3, 4),
    )
    assert (found.old_text, found.new_text) == ("layer_norm((64), eps=1e-05)", "layer_norm((64), eps=10)")


def test_constants_of_another_class_are_those_of_other_code() -> None:
    assert list(setting_changes({"act": "elu(alpha=1)"}, {"act": "elu(alpha=2)"}, but={"act"})) == []
