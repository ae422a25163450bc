"""Every healthy model passes its family's profile on every seed, and the faults are seen by what ought to see them.

What no bound can see without knowing the model is compared with the baseline of the healthy twin; what neither sees is
listed, with the reason.
"""

from __future__ import annotations

from functools import cache

import pytest
from faults import FAULTS, HEALTHY, Case, changed, flagged, measured

from pytest_trainability.checks.profiles import find_profile
from pytest_trainability.measurement import Measurement
from pytest_trainability.measures import MEASURES
from pytest_trainability.records import Estimate, Names, Profile

ALL = range(8)
SOME = range(4)
"""Seeds that a fault is measured on: as many as a test takes by default."""

BY_THE_PROFILE: dict[int, str] = {
    1: "log_gain",
    2: "log_gain",
    3: "log_gain",
    4: "log_gain",
    5: "nonfinite",
    6: "log_gain",
    7: "log_gain",
    8: "log_gain",
    10: "activation_rms",
    11: "activation_rms",
    12: "log_gain",
    19: "activation_rms",
    20: "activation_rms",
    21: "activation_rms",
    23: "log_gain",
    24: "log_gain",
    25: "log_gain",
    26: "log_gain",
    31: "unused_parameters",
    33: "log_gain",
}
"""Which measure is outside its bound, by number of the fault."""

BY_THE_BASELINE: dict[int, tuple[str, str]] = {
    9: (
        "gradient_norm",
        "the loss of a doubled softmax is ln(classes), too, and its gradients are as good as any smaller ones",
    ),
    13: ("log_gain", "a stream may well grow by 2.5 nats: other models' do"),
    15: ("log_gain", "each block alone keeps its gradient; over six blocks the gain stays inside"),
    16: ("log_gain", "without normalization, small branches change nothing: the gain is 0, which is ideal"),
    17: ("log_gain", "post-LN was healthy for years, with warm-up"),
    18: ("log_gain", "attention is less uniform, not degenerate, at GPT-2's weights"),
    22: ("log_gain", "ResNet-152 is healthy, and grows by more"),
    28: ("activation_rms", "PyTorch's own weights are healthy ones, only others"),
    29: ("growth_rate", "one block of twenty grows less"),
    34: ("gradient_norm", "float32 does not flush it; a model trained in float16 asks for underflow_fraction"),
}
"""Which measure has moved from the healthy twin's by more than its tolerance, and why no bound can tell."""

UNSEEN: dict[int, str] = {}
"""Why neither sees it."""


def by_id(case: Case) -> str:
    return f"{case.number} {case.id}" if case.number else case.id


def numbered(*tables: dict[int, object]) -> list[Case]:
    return [case for case in FAULTS if any(case.number in table for table in tables)]


@cache
def healthy(twin: Case) -> Measurement:
    return measured(twin, SOME)


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
    found = measured(case, ALL)
    found.check(profile=case.family)
    # Not only on average: whoever measures one seed must pass, too.
    for measure_name in found._verdicts:
        bound = find_profile(case.family)[measure_name]
        for name, values in values_of_seeds(getattr(found, measure_name)):
            assert all(map(bound.holds, values)), (measure_name, name, values)


# Faults -----------------------------------------------------------------------------------------------------------


def test_every_fault_of_the_list_is_accounted_for() -> None:
    assert [case.number for case in FAULTS] == list(range(1, 37))
    assert sorted([*BY_THE_PROFILE, *BY_THE_BASELINE, *UNSEEN]) == list(range(1, 37))


def test_faults_and_twins_differ_in_what_is_wrong_only() -> None:
    healthy = {case.id for case in HEALTHY}
    for case in FAULTS:
        assert case.twin is not None
        assert case.twin.family == case.family
        assert case.twin.steps == case.steps
        assert case.twin.id in healthy or case.twin.rounded is not None


@pytest.mark.parametrize("case", numbered(BY_THE_PROFILE), ids=by_id)
def test_the_profile_flags(case: Case) -> None:
    verdicts = flagged(case, measured(case, SOME))
    assert BY_THE_PROFILE[case.number] in verdicts
    assert not verdicts[BY_THE_PROFILE[case.number]].marginal


@pytest.mark.parametrize("case", numbered(BY_THE_BASELINE), ids=by_id)
def test_only_the_baseline_tells(case: Case) -> None:
    name, _ = BY_THE_BASELINE[case.number]
    found = measured(case, SOME)
    assert flagged(case, found) == {}
    changes = changed(healthy(case.twin), found)[name]
    # What has moved, not what has another name.
    assert any(not abs(change.shift) <= MEASURES[name].tolerance for change in changes if change.kind == "moved")


@pytest.mark.parametrize("case", numbered(UNSEEN), ids=by_id)
def test_nobody_tells(case: Case) -> None:
    found = measured(case, SOME)
    assert flagged(case, found) == {}
    assert changed(healthy(case.twin), found) == {}
