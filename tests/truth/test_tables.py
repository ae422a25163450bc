"""Tables keep the places of their entries: changes that move neither size nor mean of any tensor, and healthy models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import compare, measure
from pytest_trainability.records.reports import BaselineChange

SIZE = 8


class Tabled(nn.Module):
    """A layer whose result is multiplied by a table, a mask or positions, of which none is drawn."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(3))
        self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)) * (0.5 + self.get_buffer("table").to(x.dtype)[:SIZE])
        return x


def changes(old: Callable[[], nn.Module], new: Callable[[], nn.Module], *, seeds: int = 2) -> list[BaselineChange]:
    before, after = (measure(build, torch.ones(4, SIZE), seeds=range(seeds), name="net") for build in (old, new))
    return list(compare(before, after))


def of_tables(old: Tensor, new: Tensor) -> list[str]:
    found = changes(lambda: Tabled(old), lambda: Tabled(new))
    return [f"{change.element}: {change.old_to_new}" for change in found if change.measure == "tables"]


HALF = torch.arange(SIZE) < SIZE // 2
RAMP = torch.arange(SIZE) - (SIZE - 1) / 2
CASES = {
    "a mask of booleans": (HALF, ~HALF, "entries → others of the same rms"),
    "a mask of numbers": (HALF.float(), (~HALF).float(), "entries → others of the same rms"),
    "positions": (torch.arange(SIZE), torch.arange(SIZE).roll(1), "entries → others of the same rms"),
    "slopes": (RAMP, -RAMP, "entries → their negatives"),
    "frequencies": (
        10000 ** (-torch.arange(SIZE) / SIZE),
        10000 ** (-torch.arange(SIZE).flip(0) / SIZE),
        "entries → others of the same rms",
    ),
}


@pytest.mark.parametrize(("old", "new", "text"), CASES.values(), ids=CASES.keys())
def test_entries_at_other_places_are_a_change(old: Tensor, new: Tensor, text: str) -> None:
    assert of_tables(old, new) == [f"table: {text}"]
    assert of_tables(old, old) == []


def test_a_mask_that_is_inverted_in_one_of_many_layers_is_named() -> None:
    def build(*, wrong: bool) -> nn.Module:
        masks = [HALF if (i % 2) or (wrong and i == 2) else ~HALF for i in range(4)]
        return nn.Sequential(*map(Tabled, masks))

    found = [c for c in changes(lambda: build(wrong=False), lambda: build(wrong=True)) if c.measure == "tables"]
    assert [(c.element, c.new_text) for c in found] == [("2.table", "those of 1.table")]


def test_weights_that_are_drawn_by_a_generator_of_their_own_are_the_same_on_all_seeds() -> None:
    def seeded() -> nn.Module:
        model = Tabled(HALF)
        with torch.no_grad():
            for layer in model.layers:
                assert isinstance(layer, nn.Linear)
                bound = SIZE**-0.5
                layer.weight.uniform_(-bound, bound, generator=torch.Generator().manual_seed(0))
        return model

    found = [c for c in changes(lambda: Tabled(HALF), seeded) if c.measure == "tables"]
    assert [c.new_text for c in found] == ["the same on all seeds"]
    assert changes(seeded, seeded) == []


def test_one_seed_does_not_tell_what_is_drawn() -> None:
    found = changes(lambda: Tabled(HALF), lambda: Tabled(~HALF), seeds=1)
    assert [c for c in found if c.measure == "tables"] == []
