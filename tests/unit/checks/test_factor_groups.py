"""Groups of factors: which are alike, which stand out, and which parameters and gates set their gain."""

from __future__ import annotations

import math

import pytest
from step_factors import factor, residual, scaled, tower

from pytest_trainability.checks.factor_groups import (
    closed_gates,
    explains_fair_part,
    factor_groups,
    gains_by_layer,
    is_unusual_gain,
    outlier,
    unlike_weights,
    usual_gain,
    vanishing,
)
from pytest_trainability.records.factors import GateRecord


def test_factors_of_like_modules_form_groups() -> None:
    weights, slopes = sorted(factor_groups(tower(5, -1.0, -0.5)), key=lambda group: group.gain)
    assert (weights.place, weights.gain, weights.weights) == ("5 × Linear (0, 2, …)", -5.0, "*.weight")
    assert (slopes.place, slopes.gain) == ("4 × ReLU (1, 3, …)", -2.0)


def test_entries_that_only_move_are_in_no_group() -> None:
    assert factor_groups([factor("layout", 0.0, operations=("View",))]) == []


def test_the_gain_of_a_layer_is_that_of_its_weights_and_of_what_follows() -> None:
    first, last = gains_by_layer(tower(2, -1.0, -0.5))
    assert (first, last) == (("0.weight", -1.5), ("2.weight", -1.0))


# What stands out --------------------------------------------------------------------------------------------------


def test_a_factor_that_acts_against_the_failure_is_not_named() -> None:
    factors = [*tower(6, -1.0, -0.35), scaled(4.0)]
    assert outlier(factors) is None


def test_peers_of_a_normalization_are_all_normalizations() -> None:
    """A gain of one nat is usual for the others, so that it is the deviation of -11 nats that counts."""
    norms = [factor("normalization", 1.0, i, module=f"{i}.norm", module_kind="LayerNorm") for i in range(4)]
    odd = factor("normalization", -10.0, 4, module="other", module_kind="GroupNorm", operations=("NativeGroupNorm",))
    assert usual_gain(odd, [*norms, odd]) == 1.0
    assert outlier([*norms, odd]) is odd


def test_a_function_without_peers_usually_does_nothing() -> None:
    assert usual_gain(scaled(-2.0), tower(4, 0.3, -0.3)) == 0.0


def test_a_group_explains_a_fair_part_from_a_quarter_on_in_the_direction_of_the_total() -> None:
    assert explains_fair_part(-2.6, -10.0)
    assert not explains_fair_part(-2.5, -10.0)
    assert not explains_fair_part(2.6, -10.0)


def test_the_factor_that_passes_nothing_is_found() -> None:
    blocked = factor(gain=-math.inf)
    assert vanishing([*tower(3, 0.35, -0.35), blocked]) is blocked
    assert vanishing(tower(3, 0.35, -0.35)) is None


@pytest.mark.parametrize(
    ("rms", "unusual"), [(0.5, True), (0.51, False), (1.99, False), (2.0, True), (math.nan, False)]
)
def test_the_gain_of_a_normalization_is_unusual_from_a_factor_of_two_on(rms: float, unusual: bool) -> None:
    assert is_unusual_gain(rms) is unusual


# Weights in branches, and gates -----------------------------------------------------------------------------------


def test_weights_in_branches_stand_out_if_all_others_are_four_times_smaller() -> None:
    unlike = [residual(i, {"up": 0.1, "gate": 1.0, "down": 0.05}) for i in range(3)]
    found = unlike_weights(unlike)
    assert found is not None
    group, usual = found
    assert [member.weight for member in group.members] == [f"blocks.{i}.gate.weight" for i in range(3)]
    assert usual == pytest.approx(0.4)
    assert unlike_weights([residual(i, {"up": 0.1, "gate": 0.39}) for i in range(3)]) is None


def test_weights_in_branches_do_not_stand_out_alone_or_where_gradients_shrink() -> None:
    assert unlike_weights([residual(0, {"up": 1.0})]) is None
    assert unlike_weights([residual(0, {"up": 1.0, "down": 0.1}, gain=-0.5)]) is None
    assert unlike_weights(tower(4, 1.0, 0.0)) is None


def test_the_most_extreme_gate_comes_first() -> None:
    gates = (GateRecord(0.05, bias="f.bias", bias_mean=-3.0, part=1, parts=4), GateRecord(0.999, constant=7.0))
    closed = factor("gated", -1.0, weight="f.weight", weight_rms=0.1, fan_in=9, gates=(*gates, GateRecord(0.0)))
    assert closed_gates([closed]) == [gates[1], gates[0]]
