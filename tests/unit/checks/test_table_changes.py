"""Tables: what is the same on all seeds, and what has changed in it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.checks.initial_values import InitialRow
from pytest_trainability.checks.table_changes import TABLES, table_changes, table_rows
from pytest_trainability.init.projections import projections_of
from pytest_trainability.records.tensors import Projections


def rows(**tensors: Tensor) -> dict[str, Projections]:
    one = {name.replace("_", "."): projections_of(tensor) for name, tensor in tensors.items()}
    found = table_rows([one, one])
    assert found is not None
    return found


def texts(old: dict[str, Projections], new: dict[str, Projections], **options: float) -> list[str]:
    return [f"{c.element}: {c.old_to_new}" for c in table_changes(old, new, **options)]  # type: ignore[arg-type]


EVEN = torch.tensor([0.0, 1.0] * 4)
ODD = 1 - EVEN
MASKS = {f"flows_{i}_mask": (EVEN, ODD)[i % 2] for i in range(6)}


def test_a_row_is_what_all_seeds_share() -> None:
    fixed, drawn = EVEN, [torch.randn(8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    seeds = [{"a": projections_of(fixed), "b": projections_of(d), "c": projections_of(fixed)} for d in drawn]
    assert table_rows(seeds) == {"a": seeds[0]["a"], "c": seeds[0]["a"]} or list(table_rows(seeds) or ()) == ["a", "c"]
    assert table_rows(seeds[:1]) is None
    assert table_rows([{}, {}]) == {}


def test_tables_that_are_alike_share_a_row() -> None:
    assert list(rows(**MASKS)) == ["flows.{0,2,4}.mask", "flows.{1,3,5}.mask"]


def test_masks_that_no_longer_alternate_are_a_change() -> None:
    same = dict.fromkeys(MASKS, EVEN)
    assert texts(rows(**MASKS), rows(**MASKS)) == []
    assert texts(rows(**MASKS), rows(**same)) == ["flows.*.mask: entries of its own → those of flows.0.mask"]
    (change,) = table_changes(rows(**MASKS), rows(**same))
    assert (change.measure, change.kind, change.elements, change.count) == (TABLES, "moved", ("flows.{1,3,5}.mask",), 3)
    assert change.considered == 6


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (EVEN, EVEN.flip(0), "entries → others of the same rms"),
        (EVEN - 0.5, 0.5 - EVEN, "entries → their negatives"),
        (EVEN.bool(), torch.arange(8) > 5, "entries → others, rms 0.707 → 0.5"),
        (torch.arange(8), torch.arange(9), "shape 8 → shape 9"),
        (torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool), "entries → others, rms 1 → 0"),
    ],
    ids=["reversed", "negated", "fewer", "longer", "zeros"],
)
def test_the_text_says_what_is_known(old: Tensor, new: Tensor, text: str) -> None:
    assert texts(rows(t=old), rows(t=new)) == [f"t: {text}"]


def test_whole_numbers_are_compared_exactly_and_computed_ones_with_a_tolerance() -> None:
    """A sine of angles up to 4096 in single precision is off by 10⁻⁴; a frequency that is off by 2⁻²³ moves it by 5 · 10⁻⁴."""
    positions = torch.arange(4096.0)[:, None]
    frequencies = 10000 ** (-torch.arange(32) / 32)
    exact = torch.sin(positions.double() * frequencies.double())
    other = torch.sin(positions * (frequencies * (1 + 2.0**-23)))
    assert not rows(t=exact)["t"].is_near(rows(t=other)["t"])
    assert texts(rows(t=exact), rows(t=other)) == []
    assert texts(rows(t=exact), rows(t=exact.bfloat16())) == []
    wrong = torch.sin(positions.double() * 5000 ** (-torch.arange(32) / 32))
    assert texts(rows(t=exact), rows(t=wrong)) == ["t: entries → others of the same rms"] or texts(
        rows(t=exact), rows(t=wrong)
    )
    index = torch.arange(10**6)
    swapped = index.clone()
    swapped[:2] = torch.tensor([1, 0])
    assert texts(rows(t=index), rows(t=swapped)) == ["t: entries → others of the same rms"]


def test_the_tolerance_of_initial_values_is_that_of_computed_entries() -> None:
    x = torch.linspace(0.1, 1, 50, dtype=torch.float64)
    moved = x * torch.linspace(0.9, 1.1, 50, dtype=torch.float64)
    assert texts(rows(t=x), rows(t=moved)) != []
    assert texts(rows(t=x), rows(t=moved), tolerance=0.1) == []


def test_what_is_drawn_on_one_side_only_is_a_change() -> None:
    """A generator that is seeded inside, and its reverse. A constant is no table, and is none of both."""
    table = rows(w=EVEN)
    drawn = {"w": InitialRow((8,), 0.7, 0.5, 0.1, 0.08, 8)}
    constant = {"w": InitialRow((8,), 1.0, 1.0, 0.0, 0.0, 8)}
    (change,) = table_changes({}, table, drawn=(drawn, {}))
    assert change.old_to_new == "drawn anew on each seed → the same on all seeds"
    (change,) = table_changes(table, {}, drawn=({}, drawn))
    assert change.old_to_new == "the same on all seeds → drawn anew on each seed"
    assert list(table_changes({}, table, drawn=(constant, {}))) == []
    assert list(table_changes({}, table, drawn=({}, {}))) == []


def test_few_numbers_may_agree_by_chance() -> None:
    few = {"w": InitialRow((2,), 0.7, 0.5, math.inf, 0.08, 8)}
    assert list(table_changes({}, rows(w=EVEN), drawn=(few, {}))) == []


def test_what_is_reported_elsewhere_is_left_out() -> None:
    assert list(table_changes(rows(t=EVEN), rows(t=EVEN.flip(0)), but={"t"})) == []


def test_a_rotary_table_is_one_row_for_all_layers() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("cos", torch.outer(torch.arange(32.0), 10000 ** (-torch.arange(4) / 4)).cos())

    tensors = {f"layers_{i}_cos": Layer().get_buffer("cos") for i in range(12)}
    assert list(rows(**tensors)) == ["layers.{0-11}.cos"]
