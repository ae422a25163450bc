"""Comparing an entry with its baseline: what counts as a change, what does not, and how often chance is taken for one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from pytest_trainability.checks import baselines
from pytest_trainability.checks.baselines import Entry, NameSet, Series, compare, environment_key
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
"""Of eight draws, standard deviation 0.49."""
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
    """Return an entry; a measure of plain numbers is a scalar. As many seeds as there are numbers."""
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
    """Return positive numbers whose logarithms these are."""
    return [math.exp(value + by) for value in values]


FULL: dict[str, Any] = {
    "log_gain": [1.0, 1.2, 0.9, 1.1],
    "growth_rate": {"block.0": [0.5, 0.6, 0.4, 0.5], "block.1": [-INF, 0.1, NAN, None]},
    "gradient_norm": {"w": [1e-3, 2e-3, 1e-3, 3e-3], "b": [0.0, 0.0, 0.0, 0.0]},
    "unused_parameters": NameSet(("head.bias",)),
}


# What is no change ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
def test_identical_numbers_are_no_change(draws: str) -> None:
    assert changes(entry(FULL), entry(FULL, draws=draws)) == ()
    assert compare(entry(FULL), entry(FULL, draws=draws), dict.fromkeys(TOLERANCES, 0.0)) == ()


def test_nothing_recorded_is_no_change() -> None:
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


def test_one_seed_that_arithmetic_has_sent_elsewhere_is_no_change() -> None:
    """A router or a ReLU at its kink decides otherwise: one of eight moves far, and the mean with it."""
    other = list(SPREAD)
    other[3] += 8.0
    assert abs(np.mean(other) - np.mean(SPREAD)) > TOLERANCES["log_gain"]
    assert changes(gain(SPREAD), gain(other)) == ()


def test_versions_and_threads_are_one_environment_and_devices_are_not() -> None:
    given = {
        "torch": "2.6.0",
        "platform": "darwin arm64",
        "dtype": "float32",
        "device": "cuda",
        "threads": "8",
        "isa": "avx2",
        "blas": "mkl",
    }
    assert environment_key(given) == "cuda float32 blas=mkl isa=avx2"
    assert gain([1.0]).key == "cpu float32"


# Numbers that repeat ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_where_numbers_repeat_the_tolerance_decides(count: int) -> None:
    """The same weights, device and torch: two seeds say as much as eight."""
    old = [0.5 * i for i in range(count)]
    for shift, changed in ((0.31, True), (-0.31, True), (0.29, False)):
        assert bool(changes(gain(old), gain([v + shift * (1 + 0.001 * i) for i, v in enumerate(old)]))) is changed


@pytest.mark.parametrize("other", [{"torch": "2.6.0"}, {"draws": FRESH}], ids=["another torch", "other weights"])
def test_where_they_need_not_repeat_two_seeds_say_little(other: dict[str, str]) -> None:
    assert changes(gain([0.0, 0.1]), gain([0.5, 0.7], **other)) == ()


def test_where_the_run_has_drawn_otherwise_the_pairs_need_not_repeat() -> None:
    """A draw more in the forward pass gives dropout other masks; the weights are the same, and so are the pairs."""
    old, new = gain(SPREAD, draws="w "), gain([v + 0.31 + 0.3 * i for i, v in enumerate(SPREAD)], draws="w x")
    assert changes(old, gain(new.measures["log_gain"].values[""], draws="w ")) != ()
    assert changes(old, new) == ()


def test_a_network_that_amplifies_round_off_does_not_repeat() -> None:
    """Chaos over hundreds of steps: nine nats make a thousandth of round-off in float32, and of float64 twenty-nine."""
    shifted_by_one = ([20.0, 22.0], [21.0, 23.2])
    single, double = (compare(*(gain(v, dtype=d) for v in shifted_by_one), TOLERANCES) for d in ("float32", "float64"))
    assert single == ()
    assert len(double) == 1


# Power ------------------------------------------------------------------------------------------------------------


def test_a_common_shift_below_the_spread_is_found_in_pairs_only() -> None:
    """0.4 nats where seeds differ by 0.49: the same weights show it, other weights cannot."""
    new = shifted(SPREAD, 0.4)
    (change,) = changes(gain(SPREAD), gain(new))
    assert (change.measure, change.kind, change.element) == ("log_gain", "moved", "")
    assert change.shift == pytest.approx(0.4)
    assert (change.old, change.new) == pytest.approx((np.mean(SPREAD), np.mean(new)))
    assert (change.tolerance, change.unit, change.scale, change.considered) == (0.3, "nats", "linear", 1)
    assert changes(gain(SPREAD), gain(new, draws=FRESH)) == ()


def test_pairs_go_by_seed_and_not_by_position() -> None:
    backwards = gain(shifted(SPREAD, 0.4)[::-1], seeds=range(7, -1, -1))
    (change,) = changes(gain(SPREAD), backwards)
    assert change.shift == pytest.approx(0.4)


def test_a_shift_above_the_spread_is_found_in_other_draws() -> None:
    (change,) = changes(gain(SPREAD), gain(shifted(SPREAD, 4.0), seeds=range(100, 108)))
    assert change.shift == pytest.approx(4.0)


@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("spread", [(0.0,) * 8, (0.0, 2**-20) * 4], ids=["equal", "nearly equal"])
def test_the_tolerance_is_still_within(draws: str, sign: int, spread: Sequence[float]) -> None:
    """Exactly the tolerance is none, a hair above it is one, in either direction. Binary fractions are exact."""
    for shift, found in ((0.25, 0), (0.25 + 2**-10, 1)):
        result = changes(gain(spread), gain(shifted(spread, sign * shift), draws=draws), log_gain=0.25)
        assert [change.shift for change in result] == [sign * shift] * found


def test_a_scale_is_compared_by_ratio() -> None:
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
    """A key bias, which the softmax cancels: 1e-9 on one machine, 7e-9 on another, zero on a third."""
    old = norms({"key.bias": [1e-9] * 4, "w": LARGE})
    for other in (7e-9, 0.0, 1e-30):
        assert changes(old, norms({"key.bias": [other] * 4, "w": LARGE}, draws=draws)) == ()
        assert changes(norms({"key.bias": [other] * 4, "w": LARGE}, draws=draws), old) == ()


@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
def test_an_element_that_truly_vanishes_is_a_change(draws: str) -> None:
    old, new = norms({"b": [1e-4] * 4, "w": LARGE}), norms({"b": [0.0] * 4, "w": LARGE}, draws=draws)
    for before, after, sign in ((old, new, -1), (new, old, 1)):
        (change,) = changes(before, after)
        assert (change.measure, change.kind, change.element) == ("gradient_norm", "moved", "b")
        assert math.copysign(1, change.shift) == sign
        assert abs(change.shift) > 4
    assert changes(old, new)[0].new == 0.0


@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
def test_what_is_zero_in_both_has_not_moved(draws: str) -> None:
    """The inside of a branch that starts at zero. What it is set beside, the largest gradient, may well move."""
    old = norms({"branch": [0.0] * 4, "head": LARGE})
    new = norms({"branch": [0.0] * 4, "head": [2 * value for value in LARGE]}, draws=draws)
    assert {change.element for change in changes(old, new)} <= {"head"}
    assert {change.element for change in changes(old, new, gradient_norm=0.0)} <= {"head"}


def test_round_off_depends_on_the_precision() -> None:
    elements = {"b": [1e-8] * 4, "w": LARGE}
    moved = {**elements, "b": [1e-7] * 4}
    assert changes(norms(elements), norms(moved)) == ()
    (change,) = changes(norms(elements, dtype="float64"), norms(moved, dtype="float64"))
    assert change.shift == pytest.approx(math.log(10))


def test_a_scalar_has_nothing_to_be_small_beside() -> None:
    """A quantity alone, or on a linear scale, is compared however small it is."""
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


def test_elements_that_have_vanished_or_are_new_are_changes_and_the_rest_is_compared() -> None:
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


def test_a_measure_of_another_kind_is_another_measure() -> None:
    old, new = entry({"log_gain": NameSet(("a",))}), gain([1.0] * 4)
    assert [change.kind for change in changes(old, new)] == ["vanished", "new"]


def test_changes_come_in_the_order_of_the_measures_and_the_largest_of_a_profile_first() -> None:
    steps = {name: [1.0] * 4 for name in "abcd"}
    old = entry({"activation_rms": {"x": [1.0] * 4}, "log_gain": [1.0] * 4, "growth_rate": steps})
    moved = {"a": [1.1] * 4, "b": [0.0] * 4, "c": [INF] * 4, "d": [2.5] * 4}
    new = entry({"growth_rate": moved, "gradient_norm": {"w": [1.0] * 4}, "log_gain": [9.0] * 4})
    found = [(change.measure, change.kind, change.element) for change in changes(old, new)]
    assert found == [
        *(("growth_rate", "moved", name) for name in "cdba"),
        ("gradient_norm", "new", ""),
        ("log_gain", "moved", ""),
        ("activation_rms", "vanished", ""),
    ]


# What is not finite -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_what_becomes_not_finite_or_finite_again_is_a_change(value: float, draws: str) -> None:
    finite, other = gain(SPREAD), gain([value] * 8, draws=draws)
    for before, after in ((finite, other), (other, finite)):
        (change,) = changes(before, after)
        assert change.kind == "moved"
        assert math.isnan(change.shift)
        assert str(changes(finite, other)[0].new) == str(value)


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
def test_what_stays_not_finite_is_no_change(value: float, draws: str) -> None:
    some = [*SPREAD[:6], value, value]
    assert changes(gain([value] * 8), gain([value] * 8, draws=draws)) == ()
    assert changes(gain(some), gain(some, draws=draws)) == ()


def test_one_of_many_seeds_that_dies_is_a_change_in_pairs_and_chance_otherwise() -> None:
    """The same weights no longer pass a gradient; other weights may be the one in eight that never did."""
    one = [*SPREAD[:7], -INF]
    for before, after in ((SPREAD, one), (one, SPREAD)):
        (change,) = changes(gain(before), gain(after))
        assert math.isnan(change.shift)
        assert changes(gain(before), gain(after, draws=FRESH)) == ()


def test_another_kind_of_not_finite_is_a_change_in_pairs() -> None:
    """A gradient that vanished overflows now."""
    (change,) = changes(gain([-INF] * 4), gain([INF] * 4))
    assert math.isnan(change.shift)


def test_the_finite_seeds_are_compared_where_as_many_are_not() -> None:
    some = [*SPREAD[:7], -INF]
    (change,) = changes(gain(some), gain(shifted(some, 0.4)))
    assert change.shift == pytest.approx(0.4)
    (change,) = changes(gain(some), gain(shifted(some, 6.0), draws=FRESH))
    assert change.shift == pytest.approx(6.0)


def test_a_gradient_that_is_zero_for_good_is_no_change() -> None:
    assert changes(norms({"b": [0.0] * 8}), norms({"b": [0.0] * 8}, draws=FRESH)) == ()
    assert len(changes(norms({"b": [0.0] * 8}), norms({"b": [1e-30] * 8}))) == 1


# Missing values ---------------------------------------------------------------------------------------------------


def test_seeds_without_the_element_are_left_out() -> None:
    """Stochastic depth: a step that a seed did not take has no value there."""
    taken = [0.5, None, 0.5, 0.5, None, 0.5, 0.5, 0.5]
    other = [None, 0.9, 0.9, 0.9, 0.9, 0.9, None, 0.9]
    old, new = entry({"growth_rate": {"block.3": taken}}), entry({"growth_rate": {"block.3": other}})
    (change,) = changes(old, new)
    assert change.shift == pytest.approx(0.4)
    assert (change.old, change.new) == pytest.approx((0.5, 0.9))
    assert changes(old, old) == ()


@pytest.mark.parametrize("draws", ["", FRESH], ids=["paired", "unpaired"])
def test_an_element_that_no_seed_shares_tells_nothing(draws: str) -> None:
    old = entry({"growth_rate": {"block.3": [0.5, None]}})
    assert changes(old, entry({"growth_rate": {"block.3": [None, None]}}, draws=draws)) == ()
    if not draws:
        assert changes(old, entry({"growth_rate": {"block.3": [None, 0.9]}})) == ()


# Few seeds, other seeds -------------------------------------------------------------------------------------------


def test_one_seed_has_the_tolerance_alone() -> None:
    """A finished module: one draw, and whatever moved has a cause."""
    assert changes(gain([1.0]), gain([1.25])) == ()
    assert len(changes(gain([1.0]), gain([1.5]))) == 1


def test_one_seed_among_many_of_the_same_is_a_pair() -> None:
    assert changes(gain(SPREAD), gain(SPREAD[2:3], seeds=[2])) == ()
    (change,) = changes(gain(SPREAD), gain([SPREAD[2] + 0.4], seeds=[2]))
    assert change.shift == pytest.approx(0.4)


def test_one_draw_has_the_spread_of_the_others() -> None:
    assert changes(gain(SPREAD), gain([1.5], seeds=[100])) == ()
    assert len(changes(gain(SPREAD), gain([50.0], seeds=[100]))) == 1
    assert len(changes(gain([50.0], seeds=[100]), gain(SPREAD))) == 1


def test_two_seeds_are_a_sample() -> None:
    assert len(changes(gain([1.0, 1.1]), gain([1.5, 1.6001]))) == 1
    assert changes(gain([1.0, 1.1]), gain([1.5, 1.6], draws=FRESH)) == ()


@pytest.mark.parametrize(
    ("old_seeds", "new_seeds"),
    [(range(8), range(4)), (range(4), range(8)), (range(8), (6, 1, 3)), ((5, 0, 2), range(8))],
    ids=str,
)
def test_a_part_of_the_seeds_is_compared_in_pairs(old_seeds: Sequence[int], new_seeds: Sequence[int]) -> None:
    old = gain([SPREAD[seed] for seed in old_seeds], seeds=old_seeds)
    assert changes(old, gain([SPREAD[seed] for seed in new_seeds], seeds=new_seeds)) == ()
    (change,) = changes(old, gain([SPREAD[seed] + 0.4 for seed in new_seeds], seeds=new_seeds))
    assert change.shift == pytest.approx(0.4)


def test_seeds_that_overlap_in_part_are_two_samples() -> None:
    """To compare the common ones only would leave out what the rest says."""
    old, new = gain(SPREAD), gain(shifted(SPREAD, 0.4), seeds=range(4, 12))
    assert changes(old, new) == ()


def test_one_draw_that_differs_makes_two_samples() -> None:
    new = gain(shifted(SPREAD, 0.4))
    other = Entry(new.environment, new.conditions, new.seeds, (*new.draws[:7], "other"), new.measures)
    assert len(changes(gain(SPREAD), new)) == 1
    assert changes(gain(SPREAD), other) == ()


# False alarms -----------------------------------------------------------------------------------------------------

ELEMENTS = 100
NAMES = [f"w{i}" for i in range(ELEMENTS)]


def alarm_rate(generator: np.random.Generator, checks: int, *counts: int, paired: bool = False) -> float:
    """Return how often two samples of one normal law are said to differ, without a tolerance to help."""
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
def test_chance_is_taken_for_a_change_as_seldom_as_promised(count: int) -> None:
    """One in 10,000: of 1,500 checks of 100 elements two may, four standard deviations above the expectation."""
    checks = 1500
    assert alarm_rate(np.random.default_rng(count), checks, count, count) <= at_most(baselines.FALSE_ALARMS, checks)


@pytest.mark.parametrize("counts", [(4, 4), (8, 8), (4, 8), (2, 8), (1, 8), (8, 3)], ids=str)
def test_the_level_is_kept_at_any_number_of_seeds(counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """At 5 %, where as many checks say more."""
    monkeypatch.setattr(baselines, "FALSE_ALARMS", 0.05)
    checks = 800
    assert alarm_rate(np.random.default_rng(1), checks, *counts) <= at_most(0.05, checks)


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "unpaired"])
def test_the_level_is_used(paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that never raised an alarm would have no power either. Pairs keep it, too: dropout that another version draws
    otherwise makes two samples of them."""
    monkeypatch.setattr(baselines, "FALSE_ALARMS", 0.2)
    rate = alarm_rate(np.random.default_rng(2), 400, 8, 8, paired=paired)
    assert 0.05 < rate <= at_most(0.2, 400)


def test_a_level_that_elements_do_not_share_would_raise_alarms_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: each of 100 elements at 5 % by itself."""
    monkeypatch.setattr(baselines, "FALSE_ALARMS", 0.05 * ELEMENTS)
    assert alarm_rate(np.random.default_rng(3), 200, 8, 8) > 0.9


def test_all_seeds_must_have_died_where_few_were_drawn() -> None:
    """Of four seeds, no number of dead ones is as unlikely as the level: all must be, where none was."""
    alive, three, dead = [1.0] * 4, [1.0, -INF, -INF, -INF], [-INF] * 4
    assert changes(gain(alive), gain(three, draws=FRESH)) == ()
    assert len(changes(gain(alive), gain(dead, draws=FRESH))) == 1
    assert len(changes(gain(dead), gain(alive, draws=FRESH))) == 1
