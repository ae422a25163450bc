"""Rows of initial values and their comparison: what is found, and how rarely unchanged code is blamed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from pytest_trainability.checks.initial_values import INITIAL_VALUES, InitialRow, initial_changes, initial_rows
from pytest_trainability.records.reports import BaselineChange
from pytest_trainability.records.tensors import TensorStatistics

ERROR = 1e-4
Draw = Callable[[np.random.Generator], np.ndarray]


def statistics(values: np.ndarray) -> TensorStatistics:
    """Return the statistics of an array, directly from their definitions."""
    finite = values[np.isfinite(values)].astype(np.float64)
    mean = float(finite.mean()) if finite.size else math.nan
    powers = [float(((finite - mean) ** p).mean()) if finite.size else math.nan for p in (2, 4)]
    low, high = (float(f(finite)) if finite.size else math.nan for f in (np.min, np.max))
    if low == high:
        mean, powers = low, [0.0, 0.0]
    return TensorStatistics(values.size, values.size - finite.size, int((finite == 0).sum()), mean, *powers, low, high)


def rows(tensors: Mapping[str, Draw], seeds: range) -> dict[str, InitialRow]:
    """Return the rows of a model whose tensors are drawn one after the other."""
    drawn = []
    for seed in seeds:
        generator = np.random.default_rng(seed)
        arrays = {name: draw(generator) for name, draw in tensors.items()}
        drawn.append({name: (array.shape, statistics(array)) for name, array in arrays.items()})
    return initial_rows(drawn)


def normal(std: float, *shape: int, mean: float = 0.0) -> Draw:
    return lambda generator: generator.normal(mean, std, shape)


def constant(value: float, *shape: int) -> Draw:
    return lambda generator: np.full(shape, value)


def orthogonal(size: int, gain: float = 1.0) -> Draw:
    return lambda generator: gain * np.linalg.qr(generator.normal(size=(size, size)))[0]


def one_scale(*shape: int) -> Draw:
    """All entries share one random factor: their root mean square varies far more than that of independent entries."""
    return lambda generator: generator.normal(size=shape) * math.exp(0.2 * generator.normal())


def changes(
    old: Mapping[str, Draw], new: Mapping[str, Draw], *, seeds: int = 8, repeatable: bool = False, error: float = ERROR
) -> list[BaselineChange]:
    """Compare two models, the second one drawn with other seeds unless the draws are to repeat."""
    other = range(seeds) if repeatable else range(1000, 1000 + seeds)
    return list(
        initial_changes(rows(old, range(seeds)), rows(new, other), repeatable=repeatable, error=error, tolerance=1e-3)
    )


def blocks(count: int, **others: Draw) -> dict[str, Draw]:
    found = {f"blocks.{i}.proj.weight": normal(0.02, 40, 40) for i in range(count)}
    return {**found, **{f"blocks.{i}.ln.weight": constant(1.0, 40) for i in range(count)}, **others}


# Rows -----------------------------------------------------------------------------------------------------------------
def test_tensors_that_are_alike_share_a_row() -> None:
    found = rows(blocks(12, head=normal(0.1, 10, 40)), range(8))
    assert list(found) == ["blocks.{0-11}.proj.weight", "blocks.{0-11}.ln.weight", "head"]
    row = found["blocks.{0-11}.proj.weight"]
    assert (row.shape, row.entries, row.draws) == ((40, 40), 1600, 96)
    # One root mean square of 1,600 normal entries has a relative standard deviation of 1/sqrt(3200): the mean of 96 lies within
    # 5 standard errors, and the estimate of the spread from 95 degrees of freedom within 5 of its own.
    chance = 1 / math.sqrt(2 * 1600)
    assert row.rms == pytest.approx(0.02, rel=5 * chance / math.sqrt(96))
    assert row.spread == pytest.approx(chance, rel=5 / math.sqrt(2 * 95))
    assert row.chance == pytest.approx(chance, rel=0.02)
    assert found["blocks.{0-11}.ln.weight"] == InitialRow((40,), 1.0, 1.0, 0.0, 0.0, 96)


def test_a_block_that_differs_gets_a_separate_row() -> None:
    tensors = blocks(6)
    tensors["blocks.3.proj.weight"] = normal(0.04, 40, 40)
    assert list(rows(tensors, range(2)))[:2] == ["blocks.{0-2,4-5}.proj.weight", "blocks.3.proj.weight"]


def test_shapes_and_a_few_numbers_that_were_drawn_once_are_not_mixed() -> None:
    tensors = {"a.0": normal(1, 30), "a.1": normal(1, 40), "gate.0": normal(1, 1), "gate.1": normal(1, 1)}
    assert list(rows(tensors, range(1))) == ["a.0", "a.1", "gate.0", "gate.1"]


def test_a_tensor_that_is_not_finite_on_one_seed_has_no_numbers() -> None:
    found = initial_rows(
        [{"w": ((2,), statistics(np.array(values)))} for values in ([1.0, 2.0], [1.0, math.nan])],
    )
    assert not found["w"].is_finite and math.isnan(found["w"].mean)


def test_tensors_that_are_empty_or_missing_on_a_seed_are_left_out() -> None:
    one = {"w": ((1,), statistics(np.ones(1))), "empty": ((0,), statistics(np.ones(0)))}
    assert list(initial_rows([one, {**one, "extra": one["w"]}])) == ["w"]
    assert list(initial_rows([{**one, "extra": one["w"]}, one])) == ["w"]


# Comparison -----------------------------------------------------------------------------------------------------------
def test_what_changed_is_named_with_its_factor() -> None:
    new = blocks(12, head=normal(0.1, 10, 40))
    new |= {f"blocks.{i}.proj.weight": normal(0.08, 40, 40) for i in range(12)}
    (change,) = changes(blocks(12, head=normal(0.1, 10, 40)), new)
    assert (change.measure, change.kind, change.element) == (INITIAL_VALUES, "moved", "blocks.*.proj.weight")
    assert (change.count, change.considered) == (12, 12)
    # The mean of 96 has a standard error of 0.2 %, on both sides.
    assert change.shift == pytest.approx(math.log(4), abs=5 * 0.0018 * math.sqrt(2))


@pytest.mark.parametrize("seeds", [1, 8])
def test_two_percent_in_one_matrix_of_a_hundred_thousand_entries_is_found(seeds: int) -> None:
    """The relative standard error of one draw is 0.22 %: 2 % are 6 of those of a difference, and the limit is 4.9."""
    size = {"w": normal(1.0, 250, 400), **{f"other.{i}": normal(1.0, 10, 10) for i in range(50)}}
    found = changes(size, {**size, "w": normal(1.02, 250, 400)}, seeds=seeds)
    assert [change.element for change in found] == ["w"]
    assert found[0].shift == pytest.approx(math.log(1.02), abs=5 * 0.0022 * math.sqrt(2 / seeds))


CHANGED: dict[str, tuple[Draw, Draw, str]] = {
    "a constant": (constant(1.0, 40), constant(0.99, 40), "rms"),
    "zero": (constant(0.0, 40), constant(1e-6, 40), "rms"),
    "zero now": (normal(0.1, 40), constant(0.0, 40), "rms"),
    "the sign of a constant": (constant(1.0, 40), constant(-1.0, 40), "mean"),
    "a mean": (normal(0.1, 40, 40), normal(0.1, 40, 40, mean=0.02), "mean"),
    "an orthogonal matrix, by half a percent": (orthogonal(40), orthogonal(40, 1.005), "rms"),
    "two numbers of a table": (lambda _: np.array([1.0, 2.0]), lambda _: np.array([1.0, 2.1]), "rms"),
    "a shape": (normal(0.1, 40, 40), normal(0.1, 40, 80), "shape"),
    "not finite": (normal(0.1, 40), lambda _: np.array([math.nan] * 40), "finite"),
    "a shared factor, doubled": (one_scale(40, 40), lambda g: 4 * one_scale(40, 40)(g), "rms"),
}


@pytest.mark.parametrize(("before", "after", "what"), CHANGED.values(), ids=CHANGED.keys())
def test_changes_are_found_with_other_draws(before: Draw, after: Draw, what: str) -> None:
    (change,) = changes({"w": before, "v": normal(1, 40)}, {"w": after, "v": normal(1, 40)})
    assert change.element == "w"
    seen = {
        "mean": change.unit in {"mean", "value"} and change.scale == "linear",
        "shape": change.old_text.startswith("shape"),
        "finite": math.isnan(change.shift),
    }
    assert seen.get(what, not any(seen.values()) or math.isnan(change.shift))


def test_with_the_same_draws_the_tolerance_decides() -> None:
    old, new = {"w": normal(1.0, 10)}, {"w": normal(1.002, 10)}
    assert [change.element for change in changes(old, new, repeatable=True)] == ["w"]
    assert changes(old, {"w": normal(1.0005, 10)}, repeatable=True) == []
    assert changes(old, new) == []


def test_a_larger_tolerance_lets_larger_changes_pass() -> None:
    old, new = (rows({"w": normal(std, 100)}, range(4)) for std in (1.0, 1.2))
    found = [[*initial_changes(old, new, repeatable=True, error=ERROR, tolerance=t)] for t in (0.15, 0.2)]
    assert [len(changes) for changes in found] == [1, 0]


def test_what_has_vanished_or_is_new_is_listed() -> None:
    old, new = blocks(3), blocks(3, **{"blocks.0.extra": constant(0.0, 4)})
    del new["blocks.1.ln.weight"], new["blocks.2.ln.weight"]
    gone, fresh = changes(old, new)
    assert (gone.kind, gone.elements) == ("vanished", ("blocks.{1-2}.ln.weight",))
    assert (fresh.kind, fresh.elements) == ("new", ("blocks.0.extra",))


def test_a_block_that_stays_as_it_is_has_not_changed_when_others_are_gone() -> None:
    """The others of its row have drawn other numbers, although every seed repeats those of the block that stays."""
    found = changes(blocks(6), blocks(1), repeatable=True, seeds=4)
    assert [change.kind for change in found] == ["vanished"]


def test_a_matrix_that_leaves_its_row_is_named_alone() -> None:
    new = blocks(12)
    new["blocks.7.proj.weight"] = normal(0.03, 40, 40)
    (change,) = changes(blocks(12), new)
    assert (change.element, change.count, change.considered) == ("blocks.7.proj.weight", 1, 1)


UNCHANGED: dict[str, Draw] = {
    **{f"blocks.{i}.weight": normal(0.02, 12, 12) for i in range(4)},
    **{f"blocks.{i}.gate": normal(1.0, 1) for i in range(4)},
    "uniform": lambda g: g.uniform(-1, 1, 50),
    "heavy": lambda g: g.standard_t(5, size=200),
    "skewed": lambda g: g.exponential(size=200),
    "shared": one_scale(30, 30),
    "orthogonal": orthogonal(12),
    "table": constant(0.5, 7),
    "few": normal(1.0, 3),
}


@pytest.mark.parametrize("seeds", [1, 2, 4, 8])
def test_unchanged_code_is_rarely_blamed(seeds: int) -> None:
    """200 pairs of models at an error of 2e-2: more than 16 false alarms have a probability below 1e-6 (Poisson, mean 4).

    Fewer than four seeds cannot show that entries depend on each other, nor one how three numbers vary.
    """
    left_out = {1: {"shared", "orthogonal"}, 2: {"shared"}}.get(seeds, set())
    tensors = {name: draw for name, draw in UNCHANGED.items() if name not in left_out}
    alarms = 0
    for trial in range(200):
        start = 2 * seeds * trial
        old, new = (rows(tensors, range(first, first + seeds)) for first in (start, start + seeds))
        alarms += any(initial_changes(old, new, repeatable=False, error=2e-2, tolerance=1e-3))
    assert alarms <= 16


# Parts ----------------------------------------------------------------------------------------------------------------
def with_parts(
    *parts: tuple[float, float], rms: float = 1.0, spread: float = 0.0, draws: int = 8
) -> dict[str, InitialRow]:
    return {"w": InitialRow((64, 16), rms, 0.5, 0.01, spread, draws, parts)}


FORGET, INPUT = ((0.0, 0.0), (2.0, 2.0), (0.0, 0.0), (0.0, 0.0)), ((2.0, 2.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0))


@pytest.mark.parametrize("repeatable", [True, False])
def test_parts_that_changed_places_are_a_change(repeatable: bool) -> None:
    (found,) = initial_changes(
        with_parts(*FORGET), with_parts(*INPUT), repeatable=repeatable, error=ERROR, tolerance=1e-3
    )
    assert (found.element, found.old_text, found.new_text) == ("w", "quarters of mean 0, 2, 0, 0", "2, 0, 0, 0")


def test_the_sizes_of_parts_are_named_where_these_have_moved() -> None:
    old, new = with_parts((0.0, 1.0), (0.0, 0.1)), with_parts((0.0, 0.1), (0.0, 1.0))
    (found,) = initial_changes(old, new, repeatable=True, error=ERROR, tolerance=1e-3)
    assert (found.old_text, found.new_text) == ("halves of rms 1, 0.1", "0.1, 1")


def test_parts_of_one_side_are_a_change_where_the_draws_repeat() -> None:
    old, new = with_parts(), with_parts((0.0, 1.0), (1.0, 1.0), (0.0, 1.0))
    (found,) = initial_changes(old, new, repeatable=True, error=ERROR, tolerance=1e-3)
    assert (found.old_text, found.new_text) == ("parts that are alike", "thirds of mean 0, 1, 0")
    assert list(initial_changes(old, new, repeatable=False, error=ERROR, tolerance=1e-3)) == []
    # A baseline of an earlier version has not looked for parts.
    earlier = initial_changes(old, new, repeatable=True, error=ERROR, tolerance=1e-3, knows_parts=False)
    assert list(earlier) == []


def test_parts_that_moved_by_chance_are_no_change() -> None:
    """Parts of 256 of 1024 entries on eight draws: their mean has a standard deviation of 2 % of the root mean square."""
    old = with_parts((0.0, 1.0), (1.0, 1.0), (0.0, 1.0), (0.0, 1.0), spread=0.01)
    new = with_parts((0.05, 1.0), (1.0, 1.0), (0.0, 1.0), (0.0, 1.0), spread=0.01)
    assert list(initial_changes(old, new, repeatable=False, error=ERROR, tolerance=1e-3)) == []
    # Entries that depend on each other vary by more, and it is not known by how much.
    far = with_parts((1.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0), spread=0.2)
    assert list(initial_changes(far, new, repeatable=False, error=ERROR, tolerance=1e-3)) == []


def test_tensors_with_parts_have_rows_of_their_own() -> None:
    array = np.repeat([0.0, 3.0], 32)
    found = replace(statistics(array), parts=((0.0, 0.0), (3.0, 3.0)))
    seed = {f"b.{i}": ((64,), found) for i in range(3)}
    assert list(initial_rows([seed, seed])) == ["b.0", "b.1", "b.2"]
    assert initial_rows([seed, {name: ((64,), statistics(array)) for name in seed}])["b.{0-2}"].parts == ()


# Other draws -----------------------------------------------------------------------------------------------------------
def test_what_other_draws_explain_comes_last_and_says_so() -> None:
    """The same random numbers in another order: the law of one tensor has changed, and the others are drawn anew."""
    old = rows({"a": normal(0.1, 32, 32), "b": normal(0.5, 32), "c": normal(1, 8, 8)}, range(8))
    new = rows({"b": constant(0.0, 32), "a": normal(0.1, 32, 32), "c": normal(1, 8, 8)}, range(500, 508))
    found = list(initial_changes(old, new, repeatable=True, error=ERROR, tolerance=1e-3))
    assert [(c.element, bool(c.remark)) for c in found] == [("b", False), ("a", True), ("c", True)]


@pytest.mark.parametrize("factor", [1.02, 0.98])
def test_a_factor_within_chance_is_no_other_draw(factor: float) -> None:
    """The spread between seeds and the fourth moment are those of the baseline, which no other draws repeat."""
    (found,) = changes({"w": normal(0.1, 32, 32)}, {"w": normal(0.1 * factor, 32, 32)}, repeatable=True)
    assert found.shift == pytest.approx(math.log(factor))
    assert not found.remark
    assert changes({"w": normal(0.1, 32, 32)}, {"w": normal(0.1 * factor, 32, 32)}) == []


def test_constants_are_shown_with_their_sign() -> None:
    old = {"log_std": constant(0.0, 4), "scale": constant(2.0, 4), "drawn": normal(1, 40)}
    new = {"log_std": constant(-20.0, 4), "scale": constant(-2.0, 4), "drawn": constant(-1.0, 40)}
    found = {c.element: c for c in changes(old, new, repeatable=True)}
    assert {name: (c.old, c.new, c.unit) for name, c in found.items() if name != "drawn"} == {
        "log_std": (0.0, -20.0, "value"),
        "scale": (2.0, -2.0, "value"),
    }
    assert (found["drawn"].new, found["drawn"].unit) in {(1.0, ""), (-1.0, "mean")}
