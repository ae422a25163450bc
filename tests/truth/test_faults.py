"""Every healthy model passes its family's profile on every seed, and the faults are seen by what ought to see them.

What no bound of a family can see is compared with the baseline of the healthy twin, and listed with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import pytest
from faults import FAULTS, HEALTHY, Case, changed, flagged, measured

from pytest_trainability import measure
from pytest_trainability.checks.presets import find_preset
from pytest_trainability.measurement import Measurement
from pytest_trainability.measures import MEASURES
from pytest_trainability.records.estimates import Estimate, Names, Profile

ALL = range(4)
TWO = range(2)
"""Seeds that a fault is measured on; it must be flagged on each."""
FOUR = range(4)
"""Seeds of a baseline: as many as a test takes by default."""

SLOW = {"dead_fraction", "saturated_fraction"}
"""What takes longer than all the rest, and is a share of so many units that it differs little between seeds."""

BY_THE_PROFILE: dict[int, str] = {
    1: "log_gain",
    2: "log_gain",
    3: "log_gain",
    4: "log_gain",
    5: "nonfinite",
    6: "log_gain",
    7: "duplicate_parameters",
    8: "dead_fraction",
    9: "squashed_scores",
    10: "saturated_fraction",
    11: "activation_rms",
    12: "log_gain",
    14: "duplicate_parameters",
    19: "excess_loss",
    20: "activation_rms",
    21: "excess_loss",
    23: "log_gain",
    24: "log_gain",
    25: "log_gain",
    26: "log_gain",
    27: "uninitialized_parameters",
    30: "duplicate_parameters",
    31: "unused_parameters",
    32: "interacting_samples",
    33: "log_gain",
    35: "linear_steps",
    36: "expert_usage",
}
"""Which measure is outside its bound, by number of the fault."""

BY_THE_BASELINE: dict[int, tuple[str, str]] = {
    13: ("log_gain", "a stream may well grow by 2.5 nats: other healthy models' do"),
    15: (
        "log_gain",
        "each block alone keeps the gradient's size; that tokens become alike is so in Whisper's encoder, too",
    ),
    16: ("log_gain", "without normalization small branches change next to nothing: the gain is 0, which is ideal"),
    17: ("log_gain", "post-LN was healthy for years, with warm-up"),
    18: ("gradient_norm", "at the weights of GPT-2 attention becomes less uniform, not degenerate"),
    22: ("log_gain", "ResNet-152 is healthy, and grows by more"),
    28: ("activation_rms", "PyTorch's own weights are healthy ones, only others"),
    29: ("gradient_norm", "one block of twenty is a little different"),
    34: ("gradient_norm", "float32 does not flush it; who trains in float16 asks for underflow_fraction"),
}
"""Which measure has moved from the healthy twin's by more than its tolerance, and why no bound of a family can tell."""


def by_id(case: Case) -> str:
    return f"{case.number} {case.id}" if case.number else case.id


def numbered(table: Iterable[int]) -> list[Case]:
    return [case for case in FAULTS if case.number in table]


@cache
def baseline(twin: Case) -> Measurement:
    return measured(twin, FOUR, bounds={})


def values_of_seeds(value: object) -> list[tuple[str, tuple[float, ...]]]:
    if isinstance(value, Names):
        return [(", ".join(value), tuple(map(float, value.counts)))]
    if isinstance(value, Profile):
        return [(name, element.values) for name, element in value.items()]
    assert isinstance(value, Estimate)
    return [("", value.values)]


# Healthy models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", HEALTHY, ids=by_id)
def test_a_healthy_model_passes_on_every_seed(case: Case) -> None:
    bounds = {name: bound for name, bound in find_preset(case.family).items() if name not in SLOW}
    found = measured(case, ALL, bounds=bounds)
    found.check(**bounds)
    # Not only on average: whoever measures one seed must pass, too.
    for name in found._verdicts:
        for element, values in values_of_seeds(getattr(found, name)):
            assert all(map(bounds[name].holds, values)), (name, element, values)


@pytest.mark.parametrize("case", [case for case in HEALTHY if SLOW & set(find_preset(case.family))], ids=by_id)
def test_a_healthy_model_has_no_more_idle_units_than_it_may(case: Case) -> None:
    bounds = {name: find_preset(case.family)[name] for name in sorted(SLOW)}
    found = measured(case, range(1), bounds=bounds)
    assert found.dead_fraction <= 0.6
    assert found.saturated_fraction <= 0.7
    found.check(**bounds)


# Faults -----------------------------------------------------------------------------------------------------------


def test_every_fault_of_the_list_is_accounted_for() -> None:
    assert [case.number for case in FAULTS] == list(range(1, 37))
    assert sorted([*BY_THE_PROFILE, *BY_THE_BASELINE]) == list(range(1, 37))


def test_faults_and_twins_differ_in_what_is_wrong_only() -> None:
    healthy = {case.id for case in HEALTHY}
    for case in FAULTS:
        assert case.twin is not None
        assert (case.twin.family, case.twin.steps) == (case.family, case.steps)
        # In float16 only training differs.
        assert case.twin.id in healthy or case.twin.rounded is not None


@pytest.mark.parametrize("case", numbered(BY_THE_PROFILE), ids=by_id)
def test_the_profile_flags(case: Case) -> None:
    assert case.number is not None
    name = BY_THE_PROFILE[case.number]
    assert name in case.caught_by
    found = measured(case, TWO)
    assert name in flagged(case, found)
    bound = find_preset(case.family)[name]
    elements = values_of_seeds(getattr(found, name))
    assert any(not any(map(bound.holds, values)) for _, values in elements)


@pytest.mark.parametrize("case", numbered(BY_THE_BASELINE), ids=by_id)
def test_only_the_baseline_tells(case: Case) -> None:
    assert case.number is not None
    assert case.twin is not None
    assert flagged(case, measured(case, TWO)) == {}
    name, _ = BY_THE_BASELINE[case.number]
    changes = changed(baseline(case.twin), measured(case, FOUR, bounds={}))
    # What has moved, not what has another name.
    assert any(change.kind == "moved" and abs(change.shift) > MEASURES[name].tolerance for change in changes[name])


def test_what_float16_flushes_is_seen_by_whoever_asks() -> None:
    (case,) = numbered([34])
    found = measure(case.build, seeds=TWO, measures=["underflow_fraction"], **case.arguments)
    assert found.underflow_fraction.matching("float16*").max > 0.9
    assert found.underflow_fraction.matching("bfloat16*").max == 0
