"""Operations by step: rows that are short and equal where the operations are, and what counts as a change."""

from __future__ import annotations

import pytest

from pytest_trainability.checks.operation_changes import (
    LONGEST_ROW,
    OPERATIONS,
    VARIES,
    is_beyond_chance,
    operation_changes,
    operation_rows,
)
from pytest_trainability.records.reports import BaselineChange

BLOCK = "LayerNorm Addmm Gelu Addmm Add"
FUSED = "Addmm Split Transpose Transpose Transpose ScaledDotProductAttention Transpose Addmm"
WRITTEN_OUT = "Addmm Split Transpose Transpose Transpose Transpose Bmm Mul Add Softmax Bmm Transpose Addmm"


def rows(**steps: str) -> dict[str, str]:
    """Return the rows of steps that are given as words; ``b3`` is ``b.3``."""
    return operation_rows([{f"{name[0]}.{name[1:]}": words.split() for name, words in steps.items()}])


def blocks(count: int = 4, **others: str) -> dict[str, str]:
    return rows(**{**{f"b{i}": BLOCK for i in range(count)}, **others})


def changes(old: dict[str, str], new: dict[str, str], *, elsewhere: bool = False) -> list[BaselineChange]:
    return list(operation_changes(old, new, same_environment=not elsewhere))


def difference(old: str, new: str, *, elsewhere: bool = False) -> tuple[str, str] | None:
    """Return what the comparison of one step says; None for no change."""
    found = changes(rows(b0=old), rows(b0=new), elsewhere=elsewhere)
    return (found[0].old_text, found[0].new_text) if found else None


# Rows -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "row"),
    [
        ("", ""),
        ("Addmm", "Addmm"),
        ("Mul Mul Mul Add", "Mul ×3, Add"),
        ("Mul Add Mul Add Mul Add", "(Mul, Add) ×3"),
        ("Add Mul Add Mul", "(Add, Mul) ×2"),
        ("A B B A B B", "(A, B, B) ×2"),
        (" ".join(f"A{i}" for i in range(17)) * 2, None),
    ],
)
def test_repeated_operations_are_counted(words: str, row: str | None) -> None:
    expected = ", ".join(words.split()) if row is None else row
    assert rows(b0=words) == {"b.0": expected}


def test_steps_of_equal_operations_share_a_row_in_the_order_of_the_steps() -> None:
    found = blocks(12, b5="LayerNorm Addmm", b12="Mm")
    assert found == {
        "b.{0-4,6-11}": "LayerNorm, Addmm, Gelu, Addmm, Add",
        "b.5": "LayerNorm, Addmm",
        "b.12": "Mm",
    }


def test_calls_of_one_module_share_a_row() -> None:
    assert operation_rows([{f"cell[{i}]": ("Addmm", "Tanh") for i in range(100)}]) == {"cell[{0-99}]": "Addmm, Tanh"}


def test_long_steps_are_counts_and_a_digest_of_their_order() -> None:
    words = [f"Operation{i * i % 97}" for i in range(300)]
    (row,) = operation_rows([{"step": words}]).values()
    (other,) = operation_rows([{"step": [*words[:100], words[101], words[100], *words[102:]]}]).values()
    assert row.startswith("Operation0 ×4, Operation1 ×")
    assert row.rpartition(", order ")[0] == other.rpartition(", order ")[0]
    assert row != other
    (short,) = operation_rows([{"step": ["Mul", "Add"] * 900}]).values()
    assert short == "(Mul, Add) ×900"
    (many,) = operation_rows([{"step": ["Mul", "Add"] * 100_000}]).values()
    assert many.startswith("Mul ×100000, Add ×100000, order ") and len(many) < LONGEST_ROW


def test_what_seeds_do_not_agree_on_is_not_recorded() -> None:
    seeds = [{"a": ("Addmm",), "b": ("Addmm",), "c": ()}, {"a": ("Addmm", "Relu"), "c": ()}]
    assert operation_rows(seeds) == {"a": VARIES, "b": VARIES, "c": ""}


# Comparison -----------------------------------------------------------------------------------------------------------
CHANGED: dict[str, tuple[str, str]] = {
    "LayerNorm Addmm Relu Addmm Add": ("Gelu", "Relu"),
    "LayerNorm Addmm Gelu Addmm": ("Add", ""),
    "LayerNorm Addmm Gelu Addmm Mul Add": ("", "Mul"),
    "Addmm Gelu Addmm Add LayerNorm": (
        "LayerNorm, Addmm, Gelu, Addmm, Add",
        "Addmm, Gelu, Addmm, Add, LayerNorm",
    ),
    "LayerNorm Gelu Addmm Addmm Add": ("Addmm, Gelu", "Gelu, Addmm"),
    "LayerNorm Addmm Gelu Addmm ToCopy Add": ("", "ToCopy"),
    "": ("LayerNorm, Addmm, Gelu, Addmm, Add", ""),
}


@pytest.mark.parametrize("new", CHANGED)
def test_what_changed_is_named(new: str) -> None:
    assert difference(BLOCK, new) == CHANGED[new]


def test_long_differences_are_cut() -> None:
    words = " ".join(f"A{i}" for i in range(9))
    assert difference("Add", f"Add {words}") == ("", "A0, A1, A2, A3, A4, A5, …")


def test_steps_that_changed_alike_are_one_change_and_the_first_one_comes_first() -> None:
    relu, without = BLOCK.replace("Gelu", "Relu"), BLOCK.removesuffix(" Add")
    first, second = changes(blocks(12), blocks(12, b2=relu, b3=without, b11=without))
    assert (first.measure, first.element, first.count, first.considered) == (OPERATIONS, "b.2", 1, 1)
    assert (second.element, second.count, second.considered, second.elements) == ("b.*", 2, 12, ("b.{3,11}",))


def test_unchanged_rows_steps_of_one_side_and_steps_that_vary_are_no_change() -> None:
    assert changes(blocks(4), blocks(4)) == []
    assert changes(blocks(4), blocks(6, c0="Mm")) == []
    assert changes({"a": VARIES, "b": "Addmm"}, {"a": "Addmm", "b": VARIES}) == []
    assert changes({}, blocks(4)) == changes(blocks(4), {}) == []


@pytest.mark.parametrize("elsewhere", [False, True])
def test_attention_may_be_fused_or_written_out(elsewhere: bool) -> None:
    assert difference(FUSED, WRITTEN_OUT, elsewhere=elsewhere) is None
    scaled_first = WRITTEN_OUT.replace("Transpose Bmm Mul Add", "Mul Transpose Mul Bmm MaskedFill").replace(
        "Softmax", "Softmax Dropout"
    )
    assert difference(scaled_first, FUSED, elsewhere=elsewhere) is None
    assert difference(FUSED, WRITTEN_OUT.replace("Softmax", "Sigmoid"), elsewhere=elsewhere) is not None


def test_another_axis_is_a_change_and_is_written_as_in_code() -> None:
    softmaxes = "Bmm Softmax[-1] Bmm", "Bmm Softmax[-2] Bmm"
    assert difference(*softmaxes) == difference(*softmaxes, elsewhere=True) == ("Softmax(dim=-1)", "Softmax(dim=-2)")
    assert difference("Cumsum[-1] Softmax[-1]", "Cumsum[-2] Softmax[-1]") == ("Cumsum(dim=-1)", "Cumsum(dim=-2)")


def test_a_baseline_without_axes_is_compared_without_them() -> None:
    assert difference("Bmm Softmax Bmm", "Bmm Softmax[-2] Bmm") is None
    assert difference("Bmm Softmax Cumsum[-1]", "Bmm Softmax[-2] Cumsum[-2]") == ("Cumsum(dim=-1)", "Cumsum(dim=-2)")
    long = " ".join(f"Softmax Operation{i}" for i in range(LONGEST_ROW // 10))
    assert difference(long, long.replace("Softmax", "Softmax[-1]")) is None


@pytest.mark.parametrize("elsewhere", [False, True])
def test_attention_over_the_keys_may_be_fused_and_over_the_queries_may_not(elsewhere: bool) -> None:
    assert difference(FUSED, WRITTEN_OUT.replace("Softmax", "Softmax[-1]"), elsewhere=elsewhere) is None
    assert difference(FUSED, WRITTEN_OUT.replace("Softmax", "Softmax[-2]"), elsewhere=elsewhere) is not None


def test_a_lost_mask_of_attention_that_stays_written_out_is_found() -> None:
    assert difference(WRITTEN_OUT, WRITTEN_OUT.replace("Add ", "")) == ("Add", "")


ELSEWHERE = {
    "a product and its bias": ("Addmm Relu", "Mm Add Relu"),
    "dropout": ("Addmm Dropout", "Addmm Mul"),
    "transposes": ("Addmm Transpose", "Addmm"),
    "a cast": ("ToCopy Addmm", "Addmm"),
    "batched products": ("Bmm", "Baddbmm"),
}


@pytest.mark.parametrize(("old", "new"), ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_another_environment_computes_the_same_otherwise(old: str, new: str) -> None:
    assert difference(old, new, elsewhere=True) is None
    assert difference(old, new) is not None


def test_another_function_is_found_in_another_environment() -> None:
    assert difference("Addmm Gelu Transpose", "Mm Add Relu", elsewhere=True) == ("Gelu", "Relu")


# Chance ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seeds", "expected"),
    [((8, 8), True), ((7, 7), False), ((1, 1), False), ((1, 100), False), ((4, 12), False), ((6, 12), True)],
)
def test_enough_seeds_that_agree_exclude_chance(seeds: tuple[int, int], expected: bool) -> None:
    """Two outcomes of probability p and 1 - p: the largest probability that all of one side differ from all of the other."""
    m, n = seeds
    worst = max(p**m * (1 - p) ** n + (1 - p) ** m * p**n for p in (i / 1000 for i in range(1001)))
    assert is_beyond_chance(blocks(), blocks(), seeds, 1e-4) is expected
    assert worst <= 1e-4 or not expected


def test_chance_is_not_excluded_where_operations_vary() -> None:
    assert not is_beyond_chance({"a": VARIES, "b": "Addmm"}, {"b": "Addmm"}, (8, 8), 1e-4)
    assert not is_beyond_chance({"b": "Addmm"}, {"a": VARIES, "b": "Addmm"}, (8, 8), 1e-4)
