"""Comparison with a baseline: which differences are changes, and how often chance is reported as a change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pytest_trainability.checks import baselines
from pytest_trainability.checks.baseline_entries import Entry
from pytest_trainability.checks.baseline_values import NameSet, Series
from pytest_trainability.checks.baselines import compare
from pytest_trainability.measures import MEASURES, recorded_along
from pytest_trainability.records.reports import BaselineChange

NAN, INF = math.nan, math.inf
TOLERANCES = {
    "log_gain": 0.3,
    "growth_rate": 0.05,
    "gradient_norm": 0.3,
    "activation_rms": 0.1,
    "unused_parameters": 0.0,
}
SCALES = {"gradient_norm": "log", "activation_rms": "log"}
SPREAD = (0.31, -0.52, 0.04, 0.77, -0.23, -0.61, 0.42, -0.18)
"""Log gains of eight draws, with standard deviation 0.49."""
FRESH = "fresh"
"""Draws that differ from those of every other entry."""

Values = Sequence[float | None]


def entry(
    measures: Mapping[str, Values | Mapping[str, Values] | NameSet],
    *,
    seeds: Sequence[int] | None = None,
    draws: str = "",
    dtype: str = "float32",
    torch: str = "2.13.0",
    platform: str = "linux x86_64",
) -> Entry:
    """Return an entry. A measure given as a list is a scalar. The default number of seeds is the number of values."""
    recorded: dict[str, Series | NameSet] = {}
    for name, values in measures.items():
        if not isinstance(values, NameSet):
            elements = values if isinstance(values, Mapping) else {"": values}
            scale: Any = SCALES.get(name, "linear")
            values = Series("nats", scale, {element: tuple(found) for element, found in elements.items()})
        recorded[name] = values
    lengths = [len(v) for r in recorded.values() if isinstance(r, Series) for v in r.values.values()]
    seeds = tuple(seeds if seeds is not None else range(max(lengths, default=4)))
    environment = {"device": "cpu", "dtype": dtype, "torch": torch, "platform": platform, "threads": "1"}
    return Entry(environment, {"chain": "4 × Linear"}, seeds, tuple(f"{draws}{seed}" for seed in seeds), recorded)


def gain(values: Values, **changes: Any) -> Entry:
    return entry({"log_gain": values}, **changes)


def norms(elements: Mapping[str, Values], **changes: Any) -> Entry:
    return entry({"gradient_norm": elements}, **changes)


def changes(old: Entry, new: Entry, **tolerances: float) -> tuple[BaselineChange, ...]:
    return compare(old, new, {**TOLERANCES, **tolerances})


def shifted(values: Sequence[float], by: float) -> list[float]:
    return [value + by for value in values]


def geometric(values: Sequence[float], by: float = 0.0) -> list[float]:
    """Return the exponentials of numbers."""
    return [math.exp(value + by) for value in values]


FULL: dict[str, Any] = {
    "log_gain": [1.0, 1.2, 0.9, 1.1],
    "growth_rate": {"block.0": [0.5, 0.6, 0.4, 0.5], "block.1": [-INF, 0.1, NAN, None]},
    "gradient_norm": {"w": [1e-3, 2e-3, 1e-3, 3e-3], "b": [0.0, 0.0, 0.0, 0.0]},
    "unused_parameters": NameSet(("head.bias",)),
}


# Differences that are no change ------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
def test_identical_numbers_are_no_change(draws: str) -> None:
    assert changes(entry(FULL), entry(FULL, draws=draws)) == ()
    assert compare(entry(FULL), entry(FULL, draws=draws), dict.fromkeys(TOLERANCES, 0.0)) == ()


def test_entries_without_measures_have_no_changes() -> None:
    assert changes(entry({}), entry({})) == ()


def test_arithmetic_is_no_change() -> None:
    """Another version of torch or number of threads: relative differences of 1e-5, some all of one sign."""
    generator = np.random.default_rng(0)
    values = generator.normal(-14, 2, 8)
    profile = {f"w{i}": np.exp(generator.normal(-5, 1, 8)) for i in range(50)}
    for noise in (lambda: 1 + 1e-5 * generator.uniform(-1, 1, 8), lambda: 1 + 1e-5):
        old = entry({"log_gain": values.tolist(), "gradient_norm": {n: v.tolist() for n, v in profile.items()}})
        moved = {n: (v * noise()).tolist() for n, v in profile.items()}
        new = entry({"log_gain": (values * noise()).tolist(), "gradient_norm": moved})
        assert changes(old, new) == ()


def test_a_single_seed_that_moves_far_is_no_change() -> None:
    """Round-off switches a router or a ReLU at its kink: one of eight seeds moves far, and the mean with it."""
    other = list(SPREAD)
    other[3] += 8.0
    assert abs(np.mean(other) - np.mean(SPREAD)) > TOLERANCES["log_gain"]
    assert changes(gain(SPREAD), gain(other)) == ()


def test_of_two_seeds_both_must_move() -> None:
    assert changes(gain([-14.0, -13.0]), gain([-14.0, -9.0])) == ()
    assert len(changes(gain([-14.0, -13.0]), gain([-12.0, -9.0]))) == 1


# Numbers that unchanged code repeats -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_tolerance_decides_on_numbers_that_repeat(count: int) -> None:
    """With the same weights, device and torch, two seeds suffice as well as eight."""
    old = [0.5 * i for i in range(count)]
    for shift, changed in ((0.31, True), (-0.31, True), (0.29, False)):
        assert bool(changes(gain(old), gain([v + shift * (1 + 0.001 * i) for i, v in enumerate(old)]))) is changed


@pytest.mark.parametrize("other", [{"torch": "2.6.0"}, {"draws": FRESH}], ids=["another torch", "other weights"])
def test_two_seeds_are_inconclusive_on_numbers_that_need_not_repeat(other: dict[str, str]) -> None:
    assert changes(gain([0.0, 0.1]), gain([0.5, 0.7], **other)) == ()


def test_pairs_need_not_repeat_if_the_run_draws_other_numbers() -> None:
    """One more random number in the forward pass changes the dropout masks, but not the weights."""
    old, new = gain(SPREAD, draws="w "), gain([v + 0.31 + 0.3 * i for i, v in enumerate(SPREAD)], draws="w x")
    assert changes(old, gain(new.measures["log_gain"].values[""], draws="w ")) != ()
    assert changes(old, new) == ()


def test_a_network_that_amplifies_round_off_does_not_repeat() -> None:
    """Chaos over hundreds of steps: nine nats amplify the round-off of float32 to 1e-3, 29 nats that of float64."""
    shifted_by_one = ([20.0, 22.0], [21.0, 23.2])
    single, double = (compare(*(gain(v, dtype=d) for v in shifted_by_one), TOLERANCES) for d in ("float32", "float64"))
    assert single == ()
    assert len(double) == 1


# Power ------------------------------------------------------------------------------------------------------------


def test_a_common_shift_below_the_spread_is_found_in_pairs_only() -> None:
    """A shift of 0.4 nats with a standard deviation of 0.49: same weights reveal it, other weights cannot."""
    new = shifted(SPREAD, 0.4)
    (change,) = changes(gain(SPREAD), gain(new))
    assert (change.measure, change.kind, change.element) == ("log_gain", "moved", "")
    assert change.shift == pytest.approx(0.4)
    assert (change.old, change.new) == pytest.approx((np.mean(SPREAD), np.mean(new)))
    assert (change.tolerance, change.unit, change.scale, change.considered) == (0.3, "nats", "linear", 1)
    assert changes(gain(SPREAD), gain(new, draws=FRESH)) == ()


def test_pairs_are_formed_by_seed_and_not_by_position() -> None:
    backwards = gain(shifted(SPREAD, 0.4)[::-1], seeds=range(7, -1, -1))
    (change,) = changes(gain(SPREAD), backwards)
    assert change.shift == pytest.approx(0.4)


def test_a_shift_above_the_spread_is_found_with_other_draws() -> None:
    (change,) = changes(gain(SPREAD), gain(shifted(SPREAD, 4.0), seeds=range(100, 108)))
    assert change.shift == pytest.approx(4.0)


@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("spread", [(0.0,) * 8, (0.0, 2**-20) * 4], ids=["equal", "nearly equal"])
def test_a_shift_equal_to_the_tolerance_is_no_change(draws: str, sign: int, spread: Sequence[float]) -> None:
    """A shift slightly above it is a change, in either direction. Binary fractions are exact."""
    for shift, found in ((0.25, 0), (0.25 + 2**-10, 1)):
        result = changes(gain(spread), gain(shifted(spread, sign * shift), draws=draws), log_gain=0.25)
        assert [change.shift for change in result] == [sign * shift] * found


NOISY = (0.9, -0.1, 1.3, -0.4, 0.8, -0.2, 1.1, 0.2)
"""Differences whose mean, 0.45, exceeds the tolerance of the log gain, but not by more than chance."""


def noisy(**changes: Any) -> Entry:
    return gain([value + by for value, by in zip(SPREAD, NOISY)], **changes)


def test_the_tolerance_alone_decides_in_the_same_environment() -> None:
    (change,) = changes(gain(SPREAD), noisy())
    assert change.shift == pytest.approx(sum(NOISY) / 8)


@pytest.mark.parametrize("key", ["device", "dtype", "platform", "torch"])
def test_chance_decides_in_another_environment(key: str) -> None:
    """Dropout masks differ between platforms, devices, types and versions of torch: seeds are compared in pairs."""
    new = noisy()
    other = replace(new, environment={**new.environment, key: "bfloat16" if key == "dtype" else "another"})
    assert changes(gain(SPREAD), other) == ()
    assert changes(other, gain(SPREAD)) == ()


def test_the_number_of_threads_changes_no_masks() -> None:
    new = noisy()
    assert len(changes(gain(SPREAD), replace(new, environment={**new.environment, "threads": "8"}))) == 1


@pytest.mark.parametrize(("log_gain", "found"), [(8.9, 1), (9.2, 0), (INF, 0), (NAN, 0)])
@pytest.mark.parametrize("side", ["old", "new"])
def test_chance_decides_where_the_network_amplifies_round_off(side: str, log_gain: float, found: int) -> None:
    """From ln(1e-3 · 2^23) = 9.03 nats in float32 on."""
    rates = {"growth_rate": {"block.0": SPREAD}}, {"growth_rate": {"block.0": [v + d for v, d in zip(SPREAD, NOISY)]}}
    gains = [[log_gain] * 8, [-INF] * 8]
    old, new = (entry({"log_gain": values, **r}) for values, r in zip(gains if side == "old" else gains[::-1], rates))
    assert sum(change.measure == "growth_rate" for change in changes(old, new)) == found


def test_a_tolerance_of_zero_is_the_precision_of_files() -> None:
    """Files hold four decimals, so that a shift in the fifth is a rounded number and no change."""
    old = gain([1.0, 1.2, 0.9, 1.1])
    assert changes(old, gain([1.00009, 1.20009, 0.90009, 1.10009]), log_gain=0.0) == ()
    (change,) = changes(old, gain([1.00011, 1.20011, 0.90011, 1.10011]), log_gain=0.0)
    assert change.tolerance == baselines.MIN_TOLERANCE == 1e-4
    assert compare(old, gain([1.00009, 1.20009, 0.90009, 1.10009]), {}) == ()


def test_log_scale_measures_are_compared_by_ratio() -> None:
    """A factor of 1.3 is 0.26 nats, one of 1.4 is 0.34, at any magnitude."""
    for magnitude in (1e-23, 1.0, 1e23):
        old = norms({"w": [magnitude] * 4})
        for factor, found in ((1.3, 0), (1 / 1.3, 0), (1.4, 1), (1 / 1.4, 1)):
            result = changes(old, norms({"w": [magnitude * factor] * 4}))
            assert [change.shift for change in result] == pytest.approx([math.log(factor)] * found)
            assert [change.new for change in result] == pytest.approx([magnitude * factor] * found)


def test_one_element_of_many_is_named() -> None:
    steps = {f"block.{i}": shifted(SPREAD, 0.01 * i) for i in range(24)}
    new = {**steps, "block.11": shifted(steps["block.11"], -0.2)}
    (change,) = changes(entry({"growth_rate": steps}), entry({"growth_rate": new}))
    assert (change.element, change.considered) == ("block.11", 24)
    assert change.shift == pytest.approx(-0.2)


# Round-off --------------------------------------------------------------------------------------------------------

LARGE = [0.1, 0.11, 0.09, 0.1]


@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
def test_a_gradient_of_round_off_is_not_compared(draws: str) -> None:
    """The bias of attention keys, which the softmax cancels: 1e-9 on one machine, 7e-9 on another, zero on a third."""
    old = norms({"key.bias": [1e-9] * 4, "w": LARGE})
    for other in (7e-9, 0.0, 1e-30):
        assert changes(old, norms({"key.bias": [other] * 4, "w": LARGE}, draws=draws)) == ()
        assert changes(norms({"key.bias": [other] * 4, "w": LARGE}, draws=draws), old) == ()


@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
def test_an_element_that_falls_below_round_off_is_a_change(draws: str) -> None:
    old, new = norms({"b": [1e-4] * 4, "w": LARGE}), norms({"b": [0.0] * 4, "w": LARGE}, draws=draws)
    for before, after, sign in ((old, new, -1), (new, old, 1)):
        (change,) = changes(before, after)
        assert (change.measure, change.kind, change.element) == ("gradient_norm", "moved", "b")
        assert math.copysign(1, change.shift) == sign
        assert abs(change.shift) > 4
    assert changes(old, new)[0].new == 0.0


@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
def test_an_element_that_is_zero_on_both_sides_has_not_moved(draws: str) -> None:
    """A zero-initialized branch, although the largest gradient, which sets the level of round-off, moves."""
    old = norms({"branch": [0.0] * 4, "head": LARGE})
    new = norms({"branch": [0.0] * 4, "head": [2 * value for value in LARGE]}, draws=draws)
    assert {change.element for change in changes(old, new)} <= {"head"}
    assert {change.element for change in changes(old, new, gradient_norm=0.0)} <= {"head"}


@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
def test_round_off_of_the_larger_side_counts_for_both(draws: str) -> None:
    """An element that is round-off next to the largest gradient of either side has not moved."""
    small = norms({"b": [1e-9] * 4, "w": LARGE})
    large = norms({"b": [1e-3] * 4, "w": [1e5 * value for value in LARGE]}, draws=draws)
    for old, new in ((small, large), (large, small)):
        assert [change.element for change in changes(old, new)] == ["w"]


@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
def test_an_element_moves_next_to_one_that_explodes(draws: str) -> None:
    """The level of round-off of 1e31 is 1e25. What was healthy counts below it, and its factor is that of its numbers."""
    stack = {f"flow.{i}": LARGE for i in range(4)}
    factors = {"flow.0": 1.0, "flow.1": 1e5, "flow.2": 1e20, "flow.3": 1e32}
    exploded = {name: [factors[name] * value for value in LARGE] for name in stack}
    for old, new, sign in ((stack, exploded, 1), (exploded, stack, -1)):
        found = changes(norms(old), norms(new, draws=draws))
        assert {c.element: c.shift for c in found} == pytest.approx(
            {name: sign * math.log(factor) for name, factor in factors.items() if factor > 1}
        )
        assert all(c.shift == pytest.approx(math.log(c.new / c.old)) for c in found)


def test_the_first_step_that_moved_comes_first() -> None:
    states = {"input": LARGE, **{f"flow.{i}": LARGE for i in range(4)}}
    rates = {f"flow.{i}": [0.0] * 4 for i in range(4)}
    later = {n: [v * f for v in LARGE] for n, f in zip(states, (1.0, 1.0, 1e2, 1e3, 1e31))}
    found = changes(
        entry({"growth_rate": rates, "activation_rms": states}), entry({"growth_rate": rates, "activation_rms": later})
    )
    assert [change.element for change in found] == ["flow.1", "flow.3", "flow.2"]


def test_round_off_depends_on_the_precision() -> None:
    elements = {"b": [1e-8] * 4, "w": LARGE}
    moved = {**elements, "b": [1e-7] * 4}
    assert changes(norms(elements), norms(moved)) == ()
    (change,) = changes(norms(elements, dtype="float64"), norms(moved, dtype="float64"))
    assert change.shift == pytest.approx(math.log(10))


def test_small_scalars_and_linear_values_are_compared() -> None:
    """Only profiles on a logarithmic scale have a level of round-off."""
    (change,) = changes(norms({"w": [1e-20] * 4}), norms({"w": [1e-18] * 4}))
    assert change.shift == pytest.approx(math.log(100))
    steps = {"block.0": [5e3] * 4, "block.1": [1e-3] * 4}
    (change,) = compare(
        entry({"growth_rate": steps}),
        entry({"growth_rate": {**steps, "block.1": [7e-3] * 4}}),
        {"growth_rate": 1e-3},
    )
    assert change.element == "block.1"


# Names ------------------------------------------------------------------------------------------------------------


def test_a_measure_that_has_vanished_or_is_new_is_a_change() -> None:
    old, new = entry({"log_gain": [1.0] * 4, "growth_rate": {"a": [1.0] * 4}}), gain([1.0] * 4)
    assert changes(old, new) == (BaselineChange("growth_rate", "vanished"),)
    assert changes(new, old) == (BaselineChange("growth_rate", "new"),)


def test_vanished_and_new_elements_are_changes_and_the_rest_is_compared() -> None:
    old = norms({"norm.weight": LARGE, "b": LARGE, "norm.bias": LARGE})
    new = norms({"c": LARGE, "b": [2 * value for value in LARGE]})
    vanished, fresh, moved = changes(old, new)
    assert (vanished.kind, vanished.elements) == ("vanished", ("norm.bias", "norm.weight"))
    assert (fresh.kind, fresh.elements) == ("new", ("c",))
    assert (moved.kind, moved.element, moved.considered) == ("moved", "b", 1)


def test_names_are_compared_as_sets() -> None:
    old, new = (entry({"unused_parameters": NameSet(names)}) for names in (("a", "b"), ("b", "c")))
    assert changes(old, old) == ()
    assert changes(old, entry({"unused_parameters": NameSet(("b", "a"))})) == ()
    vanished, fresh = changes(old, new)
    assert (vanished.kind, vanished.elements) == ("vanished", ("a",))
    assert (fresh.kind, fresh.elements) == ("new", ("c",))


def test_a_measure_of_another_kind_has_vanished_and_is_new() -> None:
    old, new = entry({"log_gain": NameSet(("a",))}), gain([1.0] * 4)
    assert [change.kind for change in changes(old, new)] == ["vanished", "new"]


def test_changes_are_in_the_order_of_measures_and_the_first_step_is_before_the_largest() -> None:
    steps = {name: [1.0] * 4 for name in "abcd"}
    old = entry({"activation_rms": {"x": [1.0] * 4}, "log_gain": [1.0] * 4, "growth_rate": steps})
    moved = {"a": [1.1] * 4, "b": [0.0] * 4, "c": [INF] * 4, "d": [2.5] * 4}
    new = entry({"growth_rate": moved, "gradient_norm": {"w": [1.0] * 4}, "log_gain": [9.0] * 4})
    found = [(change.measure, change.kind, change.element) for change in changes(old, new)]
    assert found == [
        *(("growth_rate", "moved", name) for name in "acdb"),
        ("gradient_norm", "new", ""),
        ("log_gain", "moved", ""),
        ("activation_rms", "vanished", ""),
    ]


# Infinity and NaN --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_values_that_become_infinite_or_finite_again_are_changes(value: float, draws: str) -> None:
    finite, other = gain(SPREAD), gain([value] * 8, draws=draws)
    for before, after in ((finite, other), (other, finite)):
        (change,) = changes(before, after)
        assert change.kind == "moved"
        assert math.isnan(change.shift)
        assert str(changes(finite, other)[0].new) == str(value)


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
def test_values_that_stay_infinite_are_no_change(value: float, draws: str) -> None:
    some = [*SPREAD[:6], value, value]
    assert changes(gain([value] * 8), gain([value] * 8, draws=draws)) == ()
    assert changes(gain(some), gain(some, draws=draws)) == ()


def test_a_single_dead_seed_is_a_change_in_pairs_and_chance_otherwise() -> None:
    """The same weights no longer pass a gradient. Among other weights, one in eight may never have passed one."""
    one = [*SPREAD[:7], -INF]
    for before, after in ((SPREAD, one), (one, SPREAD)):
        (change,) = changes(gain(before), gain(after))
        assert math.isnan(change.shift)
        assert changes(gain(before), gain(after, draws=FRESH)) == ()


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("seeds", [1, 2, 3, 8])
@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
def test_a_single_seed_with_a_fault_is_a_change_where_none_had_one(value: float, seeds: int, draws: str) -> None:
    """In a scalar, in a profile and in a spectrum, in both directions, whatever the number of seeds that have it."""
    healthy = SPREAD[:seeds]
    for faults in range(1, seeds + 1):
        faulty = [*healthy[: seeds - faults], *[value] * faults]
        for name, element in (("log_gain", ""), ("growth_rate", "block.0"), ("lyapunov_spectrum", "exponent 1")):
            old, new = (entry({name: {element: values}}) for values in (healthy, faulty))
            if draws:
                new = replace(new, draws=tuple(f"{draws}{seed}" for seed in new.seeds))
            for before, after in ((old, new), (new, old)):
                (change,) = changes(before, after)
                assert (change.measure, change.element, change.kind) == (name, element, "moved")
                assert math.isnan(change.shift)


def test_a_fault_is_a_change_next_to_seeds_that_are_minus_infinity() -> None:
    """A baseline with one dead seed, of which other draws have one that is NaN instead."""
    (change,) = changes(gain([*SPREAD[:7], -INF]), gain([*SPREAD[:7], NAN], draws=FRESH))
    assert math.isnan(change.shift)
    (change,) = changes(gain([-INF] * 8), gain([INF] * 8, draws=FRESH))
    assert math.isnan(change.shift)


def test_a_fault_is_a_change_where_the_baseline_lacks_the_element() -> None:
    """A step that the baseline's seed dropped at random, and an element that only some seeds have."""
    old = entry({"growth_rate": {"block.3": [0.5, None]}})
    (change,) = changes(old, entry({"growth_rate": {"block.3": [0.5, NAN]}}))
    assert math.isnan(change.shift)
    (change,) = changes(old, entry({"growth_rate": {"block.3": [0.5, None], "block.4": [None, NAN]}}, draws=FRESH))
    assert (change.kind, change.elements) == ("new", ("block.4",))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_baseline_with_some_faulty_seeds_is_stable(count: int) -> None:
    """Other draws of a model that overflows now and then."""
    old, new = gain([*SPREAD[:-count], *[NAN] * count]), gain([NAN, NAN, *SPREAD[2:]], draws=FRESH)
    assert changes(old, new) == changes(new, old) == ()


def test_steps_before_a_dead_one_are_no_fault() -> None:
    """A seed stops the gradient at block.1, so that the growth rate of block.0 is NaN there. Other weights may do that."""
    alive = {"log_gain": SPREAD, "growth_rate": {"block.0": SPREAD, "block.1": SPREAD}}
    rates = {"block.0": [*SPREAD[:7], NAN], "block.1": [*SPREAD[:7], -INF]}
    dead = {"log_gain": [*SPREAD[:7], -INF], "growth_rate": rates}
    assert changes(entry(alive), entry(dead, draws=FRESH)) == ()
    assert {change.measure for change in changes(entry(alive), entry(dead))} == {"log_gain", "growth_rate"}
    broken = {**dead, "growth_rate": {**rates, "block.1": [*SPREAD[:7], NAN]}}
    assert {c.element for c in changes(entry(alive), entry(broken, draws=FRESH))} == {"block.0", "block.1"}


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_derived_quantity_may_be_infinite_where_the_run_is_finite(value: float) -> None:
    """A noise scale is infinite if its estimate is not positive. Where the run itself is NaN, it is a fault."""
    fine = entry({"log_gain": SPREAD, "gradient_noise_scale": SPREAD})
    other = {"log_gain": SPREAD, "gradient_noise_scale": [*SPREAD[:7], value]}
    assert changes(fine, entry(other, draws=FRESH)) == ()
    assert changes(fine, entry(other)) == changes(entry(other), fine) == (), "round-off on a single seed"
    two = entry({"log_gain": SPREAD, "gradient_noise_scale": [*SPREAD[:6], value, value]})
    assert [change.measure for change in changes(fine, two)] == ["gradient_noise_scale"]
    faulty = entry({**other, "log_gain": [*SPREAD[:7], NAN]}, draws=FRESH)
    assert {change.measure for change in changes(fine, faulty)} == {"log_gain", "gradient_noise_scale"}


def test_measures_of_every_run_are_measures_and_include_those_of_every_baseline() -> None:
    """``unused_parameters`` are names."""
    numbers = {m.name for m in (*recorded_along("depth"), *recorded_along("time")) if m.kind != "names"}
    assert numbers <= set(baselines._OF_EVERY_RUN) <= MEASURES.keys()


def test_round_off_may_carry_an_exponent_across_the_numerical_rank_on_one_seed() -> None:
    """The same weights with another number of threads. The other seeds are compared."""
    rates = [-15.1, -15.3, -INF, -15.2]
    other = [-15.1, -INF, -INF, -15.2]
    old, new = (entry({"log_gain": LARGE, "lyapunov_spectrum": {"exponent 9": values}}) for values in (rates, other))
    assert changes(old, new) == changes(new, old) == ()
    moved = entry({"log_gain": LARGE, "lyapunov_spectrum": {"exponent 9": [-15.0, -INF, -INF, -15.1]}})
    (change,) = changes(old, moved)
    assert change.shift == pytest.approx(0.1)
    single = [entry({"log_gain": [1.0], "lyapunov_spectrum": {"exponent 9": [value]}}) for value in (-15.0, -INF)]
    assert len(changes(*single)) == 1


@pytest.mark.parametrize("dead", [0.05, 0.3, 0.6])
def test_dead_seeds_raise_no_alarm_on_other_draws(dead: float) -> None:
    """Unchanged code of which each draw has no gradient with some probability, of eight seeds and of four."""
    generator = np.random.default_rng(5)
    for count in (4, 8):
        samples = np.where(generator.random((400, count)) < dead, -INF, 0.5).tolist()
        alarms = sum(bool(changes(gain(a), gain(b, draws=FRESH))) for a, b in zip(samples[::2], samples[1::2]))
        # With four seeds all must die where none had: 2 (0.6 · 0.4)^4 = 0.7 % of 200 pairs, and four standard deviations.
        assert alarms <= 5


def test_the_number_of_finite_seeds_is_shown() -> None:
    (change,) = changes(gain(SPREAD), gain([SPREAD[0], *[NAN] * 7], draws=FRESH))
    assert (change.old_finite, change.new_finite) == ("", "finite on 1 of 8 seeds")
    some = [*SPREAD[:7], -INF]
    (change,) = changes(gain(some), gain(shifted(some, 6.0), draws=FRESH))
    assert (change.old_finite, change.new_finite) == ("finite on 7 of 8 seeds",) * 2
    assert change.new - change.old == pytest.approx(change.shift) == pytest.approx(6.0)
    (change,) = changes(norms({"w": [1.0] * 4}), norms({"w": [INF] * 4}))
    assert change.new == INF


def test_another_infinity_is_a_change_in_pairs() -> None:
    """A gradient that vanished now overflows."""
    (change,) = changes(gain([-INF] * 4), gain([INF] * 4))
    assert math.isnan(change.shift)


def test_finite_seeds_are_compared_if_the_others_agree() -> None:
    some = [*SPREAD[:7], -INF]
    (change,) = changes(gain(some), gain(shifted(some, 0.4)))
    assert change.shift == pytest.approx(0.4)
    (change,) = changes(gain(some), gain(shifted(some, 6.0), draws=FRESH))
    assert change.shift == pytest.approx(6.0)


def test_a_gradient_that_stays_zero_is_no_change() -> None:
    assert changes(norms({"b": [0.0] * 8}), norms({"b": [0.0] * 8}, draws=FRESH)) == ()
    assert len(changes(norms({"b": [0.0] * 8}), norms({"b": [1e-30] * 8}))) == 1


# Missing values ---------------------------------------------------------------------------------------------------


def test_seeds_without_the_element_are_skipped() -> None:
    """With stochastic depth, a seed has no value for a step that it dropped."""
    taken = [0.5, None, 0.5, 0.5, None, 0.5, 0.5, 0.5]
    other = [None, 0.9, 0.9, 0.9, 0.9, 0.9, None, 0.9]
    old, new = entry({"growth_rate": {"block.3": taken}}), entry({"growth_rate": {"block.3": other}})
    (change,) = changes(old, new)
    assert change.shift == pytest.approx(0.4)
    assert (change.old, change.new) == pytest.approx((0.5, 0.9))
    assert changes(old, old) == ()


@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
def test_an_element_without_a_common_seed_is_no_change(draws: str) -> None:
    old = entry({"growth_rate": {"block.3": [0.5, None]}})
    assert changes(old, entry({"growth_rate": {"block.3": [None, None]}}, draws=draws)) == ()
    if not draws:
        assert changes(old, entry({"growth_rate": {"block.3": [None, 0.9]}})) == ()


# Few seeds, other seeds -------------------------------------------------------------------------------------------


def test_the_tolerance_decides_on_one_seed() -> None:
    """A finished module is a single draw, so that every shift has a cause."""
    assert changes(gain([1.0]), gain([1.25])) == ()
    assert len(changes(gain([1.0]), gain([1.5]))) == 1


def test_one_seed_among_the_seeds_of_the_baseline_is_a_pair() -> None:
    assert changes(gain(SPREAD), gain(SPREAD[2:3], seeds=[2])) == ()
    (change,) = changes(gain(SPREAD), gain([SPREAD[2] + 0.4], seeds=[2]))
    assert change.shift == pytest.approx(0.4)


def test_a_single_draw_has_the_spread_of_the_other_sample() -> None:
    assert changes(gain(SPREAD), gain([1.5], seeds=[100])) == ()
    assert len(changes(gain(SPREAD), gain([50.0], seeds=[100]))) == 1
    assert len(changes(gain([50.0], seeds=[100]), gain(SPREAD))) == 1
    # Whichever side is the single draw: 6 is eleven standard errors of the difference away, and 2 is four.
    for value, found in [(6.0, 1), (2.0, 0)]:
        assert len(changes(gain(SPREAD), gain([value], seeds=[100]))) == found
        assert len(changes(gain([value], seeds=[100]), gain(SPREAD))) == found


def test_two_seeds_are_a_sample() -> None:
    assert len(changes(gain([1.0, 1.1]), gain([1.5, 1.6001]))) == 1
    assert changes(gain([1.0, 1.1]), gain([1.5, 1.6], draws=FRESH)) == ()


@pytest.mark.parametrize(
    ("old_seeds", "new_seeds"),
    [(range(8), range(4)), (range(4), range(8)), (range(8), (6, 1, 3)), ((5, 0, 2), range(8))],
    ids=str,
)
def test_a_subset_of_the_seeds_is_compared_in_pairs(old_seeds: Sequence[int], new_seeds: Sequence[int]) -> None:
    old = gain([SPREAD[seed] for seed in old_seeds], seeds=old_seeds)
    assert changes(old, gain([SPREAD[seed] for seed in new_seeds], seeds=new_seeds)) == ()
    (change,) = changes(old, gain([SPREAD[seed] + 0.4 for seed in new_seeds], seeds=new_seeds))
    assert change.shift == pytest.approx(0.4)


def test_seeds_that_overlap_partly_are_two_samples() -> None:
    """A comparison of the common seeds alone would ignore the others."""
    old, new = gain(SPREAD), gain(shifted(SPREAD, 0.4), seeds=range(4, 12))
    assert changes(old, new) == ()


def test_a_single_different_draw_makes_two_samples() -> None:
    new = gain(shifted(SPREAD, 0.4))
    other = Entry(new.environment, new.conditions, new.seeds, (*new.draws[:7], "other"), new.measures)
    assert len(changes(gain(SPREAD), new)) == 1
    assert changes(gain(SPREAD), other) == ()


# False alarms -----------------------------------------------------------------------------------------------------

ELEMENTS = 100
NAMES = [f"w{i}" for i in range(ELEMENTS)]


def alarm_rate(generator: np.random.Generator, checks: int, *counts: int, paired: bool = False) -> float:
    """Return how often two samples of one normal distribution are reported as different, without a tolerance."""
    alarms = 0
    for _ in range(checks):
        elements = [dict(zip(NAMES, generator.standard_normal((ELEMENTS, count)).tolist())) for count in counts]
        old, new = (
            entry({"growth_rate": values}, draws=draws, torch=torch)
            for values, draws, torch in zip(elements, ("", "" if paired else FRESH), ("2.6.0", "2.13.0"))
        )
        alarms += bool(compare(old, new, {"growth_rate": 0.0}))
    return alarms / checks


def at_most(rate: float, checks: int) -> float:
    """Return a rate and four standard deviations of its estimate."""
    return rate + 4 * math.sqrt(rate * (1 - rate) / checks)


@pytest.mark.parametrize("count", [4, 8])
def test_chance_is_reported_as_a_change_at_the_stated_rate(count: int) -> None:
    """One in 10,000: at most two of 1,500 checks of 100 elements, four standard deviations above the expectation."""
    checks = 1500
    assert alarm_rate(np.random.default_rng(count), checks, count, count) <= at_most(baselines.FALSE_ALARMS, checks)


@pytest.mark.parametrize("counts", [(4, 4), (8, 8), (4, 8), (2, 8), (1, 8), (8, 3)], ids=str)
def test_the_level_is_kept_at_any_number_of_seeds(counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """At 5 %, at which the same number of checks has more power."""
    monkeypatch.setattr(baselines, "FALSE_ALARMS", 0.05)
    checks = 800
    assert alarm_rate(np.random.default_rng(1), checks, *counts) <= at_most(0.05, checks)


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "unpaired"])
def test_the_level_is_used(paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that never raises an alarm has no power. The level holds for pairs as well, whose dropout masks may differ."""
    monkeypatch.setattr(baselines, "FALSE_ALARMS", 0.2)
    rate = alarm_rate(np.random.default_rng(2), 400, 8, 8, paired=paired)
    assert 0.05 < rate <= at_most(0.2, 400)


def test_a_level_that_elements_do_not_share_raises_many_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: each of 100 elements is tested at 5 %."""
    monkeypatch.setattr(baselines, "FALSE_ALARMS", 0.05 * ELEMENTS)
    assert alarm_rate(np.random.default_rng(3), 200, 8, 8) > 0.9


def test_all_of_few_seeds_must_have_died() -> None:
    """With four seeds no number of dead ones is as unlikely as the level. Then all must be dead where none was."""
    alive, three, dead = [1.0] * 4, [1.0, -INF, -INF, -INF], [-INF] * 4
    assert changes(gain(alive), gain(three, draws=FRESH)) == ()
    assert len(changes(gain(alive), gain(dead, draws=FRESH))) == 1
    assert len(changes(gain(dead), gain(alive, draws=FRESH))) == 1


# What explains changes ------------------------------------------------------------------------------------------------
OF_CODE = {"settings": {"b.{0-3}": "mul(2)"}}, {"settings": {"b.{0-3}": "mul(3)"}}
FRAMES = {"conditions": {"frame": "per sample"}}, {"conditions": {"frame": "joint"}}


@pytest.mark.parametrize("differ", [OF_CODE, FRAMES], ids=["constants", "frame"])
def test_what_explains_a_change_is_none_by_itself(differ: tuple[dict[str, Any], dict[str, Any]]) -> None:
    old, new = (replace(gain(SPREAD), **parts) for parts in differ)
    assert changes(old, new) == ()


def test_constants_and_the_frame_are_listed_before_the_numbers_that_moved() -> None:
    old, new = (replace(gain(values), **a, **b) for values, a, b in zip((SPREAD, shifted(SPREAD, 2)), OF_CODE, FRAMES))
    assert [(c.measure, c.old_text, c.new_text) for c in changes(old, new)] == [
        ("settings", "mul(2)", "mul(3)"),
        ("frame", "per sample", "joint"),
        ("log_gain", "", ""),
    ]


def test_the_only_constant_of_a_model_may_be_gone() -> None:
    """Constants that are not known are none that have gone. Those of the model itself have the name of its class."""
    modules = {"": "Critic", "value": "Linear"}
    old, new = (replace(gain(v), modules=modules) for v in (SPREAD, shifted(SPREAD, 2)))
    old = replace(old, settings={"Critic": "squeeze(value, dim=-1)"})
    (found, _) = changes(old, replace(new, settings={}))
    assert (found.measure, found.element, found.old_text) == ("settings", "Critic", "squeeze(value, dim=-1)")
    assert [c.measure for c in changes(old, new)] == ["log_gain"]
    assert [c.measure for c in changes(old, replace(new, settings={}, modules={"": "Actor"}))] == [
        "modules",
        "modules",
        "log_gain",
    ]


def with_output(entry: Entry, output: str) -> Entry:
    return replace(entry, conditions={**entry.conditions, "output": output})


def test_another_shape_of_the_output_is_a_change() -> None:
    old, new = with_output(gain(SPREAD), "(32,)"), with_output(gain(SPREAD), "(32, 1)")
    (found,) = changes(old, new)
    assert (found.measure, found.old_to_new) == ("output", "(32,) → (32, 1)")
    assert changes(gain(SPREAD), new) == changes(old, gain(SPREAD)) == changes(old, old) == ()
    # Other weights may choose another shape, such as that of the tokens that are kept.
    fresh = with_output(gain(SPREAD, draws=FRESH), "(32, 1)")
    assert changes(old, fresh) == ()
    moved = with_output(gain(shifted(SPREAD, 9), draws=FRESH), "(32, 1)")
    assert [c.measure for c in changes(old, moved)] == ["output", "log_gain"]


def test_steps_without_a_gradient_to_the_inputs_are_named_if_they_had_one() -> None:
    steps = {name: [0.0] * 4 for name in ("encoder", "decoder.0", "decoder.2")}
    old, new = entry({"growth_rate": steps}), entry({"growth_rate": {"encoder": [0.0] * 4}})
    cut = replace(new, conditions={**new.conditions, "without gradient to the inputs": "decoder.0, teacher.0"})
    path, gone = changes(old, cut)
    assert (path.measure, path.kind, path.elements) == ("gradient path", "vanished", ("decoder.0",))
    assert (gone.measure, gone.elements) == ("growth_rate", ("decoder.0", "decoder.2"))
    assert [c.measure for c in changes(old, new)] == ["growth_rate"]


def test_constants_are_compared_within_one_version_of_torch() -> None:
    old = replace(gain(SPREAD, torch="2.6.0"), **OF_CODE[0])
    assert "settings" not in {c.measure for c in changes(old, replace(gain(shifted(SPREAD, 9)), **OF_CODE[1]))}


def test_constants_of_a_module_of_another_class_are_left_out() -> None:
    old, new = (
        replace(gain(SPREAD), modules={"b.0": kind}, settings={"b.0": call, "b.1": call})
        for kind, call in (("ELU", "elu(alpha=1)"), ("GELU", "elu(alpha=2)"))
    )
    assert [(c.measure, c.element) for c in changes(old, new)] == [("modules", "b.0"), ("settings", "b.1")]


def test_a_frame_that_was_decided_by_gradients_that_are_not_finite_explains_nothing() -> None:
    old, new = (replace(gain(values), **frame) for values, frame in zip((SPREAD, (*SPREAD[:-1], NAN)), FRAMES))
    assert [c.measure for c in changes(old, new)] == ["log_gain"]
