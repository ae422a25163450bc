"""Rules of parts of a tensor, and functions of the shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pytest_trainability import UsageError, init
from pytest_trainability.init.places import Place
from pytest_trainability.init.rules import Rule, pieces_of


def parts(rule: Any, *shape: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    found = pieces_of(rule, Place("w", shape), torch.zeros(shape))
    return {piece.label: (repr(piece.rule), tuple(piece.tensor.shape)) for piece in found}


def test_a_packed_tensor_has_a_part_per_rule() -> None:
    rule = init.packed(init.zeros(), init.ones(), init.normal(), dim=1)
    assert parts(rule, 2, 6) == {
        "[:, 0:2]": ("init.zeros()", (2, 2)),
        "[:, 2:4]": ("init.ones()", (2, 2)),
        "[:, 4:6]": ("init.normal(std=1.0)", (2, 2)),
    }
    assert parts(init.packed(init.zeros(), init.ones(), sizes=[1, 2]), 3)["[1:3]"] == ("init.ones()", (2,))


def test_fans_of_a_packed_tensor_are_those_of_the_slice() -> None:
    found = pieces_of(init.packed(*[init.xavier_uniform()] * 3), Place("in_proj", (9, 3)), torch.zeros(9, 3))
    assert [piece.place.shape for piece in found] == [(3, 3)] * 3


@pytest.mark.parametrize(("row", "others"), [(0, [3]), (1, [1, 2]), (-1, [3])])
def test_a_padding_row_is_zero(row: int, others: list[int]) -> None:
    found = pieces_of(init.normal().with_zero_row(row), Place("w", (4, 5)), torch.zeros(4, 5))
    assert repr(found[0].rule) == "init.zeros()"
    assert [len(piece.tensor) for piece in found[1:]] == others
    assert all(piece.place.shape == (4, 5) for piece in found)


def test_a_rule_may_be_a_function_of_the_shape() -> None:
    rule: Callable[[tuple[int, ...]], Rule] = lambda shape: init.zeros() if len(shape) == 1 else init.ones()  # noqa: E731
    assert parts(rule, 3) == {"": ("init.zeros()", (3,))}
    assert parts(init.packed(rule, rule), 4, 1)["[0:2]"] == ("init.ones()", (2, 1))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (0.02, "unknown rule 0.02 for 'w'"),
        (lambda shape: 0.02, "is a function that returned float"),
        (lambda: init.zeros(), "is a function that raised TypeError"),
        (init.zeros, "Did you mean init.zeros()?"),
        (init.packed(init.zeros(), init.ones()), "must fill dimension 0, which has 3 entries"),
        (init.packed(init.zeros(), dim=2), "needs the dimension 2"),
        (init.normal().with_zero_row(3), "must exist. 'w' has the shape (3, 4)"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(rule: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parts(rule, 3, 4)
    assert message in str(caught.value)


def test_a_row_must_be_a_number() -> None:
    with pytest.raises(UsageError, match="needs the index of a row"):
        init.normal().with_zero_row("first")  # type: ignore[arg-type]
