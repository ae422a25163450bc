"""Names that differ by numbers are folded, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_trainability.records.names import alike, and_more, expanded, folded, of_form, template, with_stars

FOLDED = {
    "one number": (["a.0.w", "a.1.w", "a.2.w"], ["a.{0-2}.w"]),
    "gaps": (["a.0.w", "a.2.w", "a.3.w", "a.7.w"], ["a.{0,2-3,7}.w"]),
    "two numbers": ([f"a.{i}.b.{j}.w" for i in range(2) for j in range(3)], ["a.{0-1}.b.{0-2}.w"]),
    "no full product": (["a.0.b.0", "a.0.b.1", "a.1.b.0"], ["a.0.b.{0-1}", "a.1.b.0"]),
    "other names between": (["a.0.w", "a.0.b", "a.1.w", "a.1.b"], ["a.{0-1}.w", "a.{0-1}.b"]),
    "a single name": (["a.0.w"], ["a.0.w"]),
    "leading zeros are no numbers": (["a.01.w", "a.1.w"], ["a.01.w", "a.1.w"]),
    "calls": (["cell[0]", "cell[1]", "cell[3]"], ["cell[{0-1,3}]"]),
    "numbered calls of numbered modules": (["a.0[0]", "a.0[1]", "a.1[0]", "a.1[1]"], ["a.{0-1}[{0-1}]"]),
    "other lengths": (["0", "0.0", "1"], ["{0-1}", "0.0"]),
    "four numbers inside a part": ([f"cell_{i}.w" for i in (0, 1, 2, 5)], ["cell_{0-2,5}.w"]),
    "three numbers inside a part": (["conv1.w", "conv2.w", "conv3.w"], ["conv1.w", "conv2.w", "conv3.w"]),
    "names that end with a number": ([f"p{i}" for i in range(1000)], ["p{0-999}"]),
    "two numbers inside a part": ([f"b{i}x{j}.w" for i in range(4) for j in range(5)], ["b{0-3}x{0-4}.w"]),
    "a number inside, and one alone": (
        [f"layer{i}.{j}.conv{k}" for i in range(1, 5) for j in range(2) for k in (1, 2)],
        ["layer{1-4}.{0-1}.conv1", "layer{1-4}.{0-1}.conv2"],
    ),
    "leading zeros inside a part": ([f"p0{i}" for i in range(9)], [f"p0{i}" for i in range(9)]),
    "digits that are no index": ([f"p{i}{'7' * 30}" for i in range(9)], [f"p{i}{'7' * 30}" for i in range(9)]),
    "other digits": ([f"p{i}" for i in "٠١٢٣٤٥"], [f"p{i}" for i in "٠١٢٣٤٥"]),
    "no name": ([], []),
}


@pytest.mark.parametrize(("names", "patterns"), FOLDED.values(), ids=FOLDED.keys())
def test_names_are_folded(names: list[str], patterns: list[str]) -> None:
    found = folded(names)
    assert list(found) == patterns
    assert [name for members in found.values() for name in members if name not in names] == []


@given(
    st.lists(
        st.lists(
            st.sampled_from(
                ["a", "b", "0", "1", "2", "10", "01", "", "a[0]", "a[1]", "1[2]", "a0", "a1", "a2", "a3", "a10", "1a2b"]
            ),
            min_size=1,
            max_size=4,
        ),
        unique_by=tuple,
    )
)
def test_expanding_is_the_inverse(parts: list[list[str]]) -> None:
    names = [".".join(found) for found in parts]
    patterns = folded(names)
    assert sorted(name for pattern in patterns for name in expanded(pattern)) == sorted(names)
    assert {pattern: sorted(members) for pattern, members in patterns.items()} == {
        pattern: sorted(expanded(pattern)) for pattern in patterns
    }


@pytest.mark.parametrize("pattern", ["a.{0-99999999}", "{0-9999}.{0-9999}.w", f"a.{{0-{10**30}}}"])
def test_a_pattern_of_too_many_names_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="more than 1000000 names"):
        expanded(pattern)


def test_a_template_has_no_numbers() -> None:
    names = ("a.0.w", "a.{0-3,7}.w", "w", "a.w0", "a.01", "cell[3]", "cell_{0-9}.w")
    assert [template(name) for name in names] == ["a.*.w", "a.*.w", "w", "a.w0", "a.01", "cell[*]", "cell_*.w"]


def test_short_forms_count_names() -> None:
    known = [f"blocks.{i}.{w}" for i in range(3) for w in ("q", "k")] + ["head"]
    assert with_stars(["blocks.0.q", "blocks.2.q", "head"], known) == [("blocks.*.q", 2, 3), ("head", 1, 1)]
    assert with_stars(["blocks.1.k"], known) == [("blocks.1.k", 1, 1)]
    known = [f"cells.cell_{i}.conv{j}" for i in range(6) for j in (1, 2)]
    assert with_stars(known[::2], known) == [("cells.cell_*.conv1", 6, 6)]
    assert with_stars(["cells.cell_0.conv2", "cells.cell_3.conv2"], known) == [("cells.cell_*.conv2", 2, 6)]


def test_a_number_that_all_names_have_stays_in_the_short_form() -> None:
    known = [f"{block}.{layer}.weight" for block in range(6) for layer in (0, 1)]
    assert with_stars([name for name in known if ".1." in name], known) == [("*.1.weight", 6, 6)]
    assert with_stars([name for name in known if name.startswith("4.")], known) == [("4.*.weight", 2, 2)]
    assert with_stars(known, known) == [("*.*.weight", 12, 12)]
    assert and_more(["2.1.weight", "{0-1}.1.weight", "5.1.weight"]) == " and 2 more *.1.weight"


def test_names_of_a_short_form_are_folded() -> None:
    names = ["blocks.0.q", "blocks.2.q", "blocks.1.k", "head"]
    assert of_form("blocks.*.q", names) == ["blocks.{0,2}.q"]
    assert of_form("blocks.1.k", names) == ["blocks.1.k"]
    assert of_form("head", names) == ["head"]
    assert of_form("cell_*.w", [f"cell_{i}.w" for i in range(5)] + ["cell_x.w"]) == ["cell_{0-4}.w"]


def test_items_are_grouped_by_names_and_remarks_without_numbers() -> None:
    items = ["b.1.w: gain 7.25", "a", "b.0.w: gain 8", "b.2.w: constant", "b.3.w", "b.4.w"]
    assert alike(items, str) == [
        ["b.1.w: gain 7.25", "b.0.w: gain 8"],
        ["a"],
        ["b.2.w: constant"],
        ["b.3.w", "b.4.w"],
    ]
    assert alike(["0", "2"], str) == [["0"], ["2"]]
    assert [and_more(group) for group in alike(items, str)] == [" and 1 more b.*.w", "", "", " and 1 more b.*.w"]
