"""Likely causes: growth rates and the factors of the steps give lines that name a place, a reason and its share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from step_factors import activation, factor, scaled, tower

from pytest_trainability.checks.diagnosis import diagnose, is_about_growth
from pytest_trainability.measures import MEASURES
from pytest_trainability.records.factors import FactorRecord
from pytest_trainability.records.reports import VerdictRecord

NAN, INF = math.nan, math.inf


def names(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def causes(factors: Sequence[FactorRecord], count: int, **changes: Any) -> list[str]:
    """Return the lines on a chain whose growth rates are those of its factors."""
    growth = [sum(f.gain for f in factors if f.step == i) for i in range(count)]
    return diagnose(growth, names(count), factors, **changes)


# Without factors --------------------------------------------------------------------------------------------------


def test_without_growth_rates_there_is_no_cause() -> None:
    assert diagnose([], []) == []
    assert diagnose([1.0, 2.0], ["0"]) == []


def test_a_healthy_chain_has_no_cause() -> None:
    assert diagnose([0.01, -0.01, 0.005, 0.0], names(4)) == []
    assert causes(tower(24, 0.35, -0.35), 24) == []


def test_steady_decay_is_a_factor() -> None:
    assert diagnose([math.log(0.5)] * 6, names(6)) == ["every step multiplies the gradient by 0.5, steadily"]


def test_uneven_growth_is_reported_on_average() -> None:
    assert diagnose([0.1, 0.9, 0.2, 1.0, 0.3], names(5))[0].endswith("on average")


def test_rates_are_neutral_below_two_hundredths() -> None:
    assert diagnose([0.0199] * 6, names(6)) == diagnose([-0.0199] * 6, names(6)) == []
    assert diagnose([0.0201] * 6, names(6)) != []


@pytest.mark.parametrize(("rate", "line"), [(100.0, "multiplies the gradient by 2.69e+43"), (101.0, "by +101 nats")])
def test_very_large_rates_are_given_in_nats(rate: float, line: str) -> None:
    assert line in diagnose([rate] * 6, names(6))[0]


def test_an_outlying_step_is_named_alone() -> None:
    assert diagnose([0.01, 0.02, -6.0, 0.01, 0.0], names(5)) == [
        "2 alone contributes -6.00 nats, everything else +0.04"
    ]


def test_a_large_rate_without_the_majority_is_no_outlier() -> None:
    """Ten steps lose a nat each and one loses two: the others lose more in total, and it is the steady decay that matters."""
    (line,) = diagnose([-1.0] * 5 + [-2.0] + [-1.0] * 5, names(11))
    assert line.startswith("every step multiplies the gradient by ")


def test_a_step_near_the_others_is_no_outlier() -> None:
    """It contributes most of the total, but within the spread of the others."""
    assert "alone" not in diagnose([0.3, -0.3, 0.2, -0.2, 0.9], names(5))[0]


def test_few_steps_have_no_outlier() -> None:
    assert "alone" not in diagnose([0.0, 0.0, -6.0], names(3))[0]


# Not finite -------------------------------------------------------------------------------------------------------


def test_nan_is_reported_where_the_backward_pass_meets_it_first() -> None:
    (line,) = diagnose([NAN, NAN, 0.1, 0.1], names(4))
    assert line.startswith("the gradient is not finite from 1 on")


def test_the_first_value_that_is_not_finite_is_named() -> None:
    """The backward pass is NaN from its beginning, for a fault in any layer."""
    (line,) = diagnose([NAN] * 4, names(4), (), ("parameter 1.weight", "state after 2", "loss", "gradient of 0.weight"))
    assert line == "first value that is not finite: parameter 1.weight"
    (line,) = diagnose([NAN] * 4, names(4), (), ("gradient of 0.weight",))
    assert line.startswith("the gradient is not finite from 3 on")


def test_infinity_is_not_a_dead_step() -> None:
    (line,) = diagnose([0.1, INF, 0.1, 0.1], names(4))
    assert "not finite from 1 on" in line


# Nothing passes ---------------------------------------------------------------------------------------------------


def test_without_factors_the_step_that_passes_nothing_is_named() -> None:
    assert diagnose([-0.1, -INF, -0.1, -INF, -0.1], names(5)) == ["3 passes no gradient"]


@pytest.mark.parametrize(
    ("blocked", "line"),
    [
        (
            factor("normalization", -INF, 1, module="norm", module_kind="GroupNorm", group_size=1),
            "norm (GroupNorm) passes no gradient: it normalizes groups of one element, so that its output is constant",
        ),
        (
            factor("weights", -INF, 1, weight_rms=0.0),
            "2 (Linear) passes no gradient: its weight 2.weight is zero",
        ),
        (
            factor("weights", -INF, 1),
            "2 (Linear) passes no gradient: the outputs of 2.weight do not depend on its inputs",
        ),
        (
            factor("parallel", -INF, 1, branches=((), ()), module="block", module_kind="Block"),
            "block (Block) passes no gradient: both the branch and its skip connection are cut",
        ),
        (
            activation(-INF, 1),
            "1 (ReLU) passes no gradient: all its slopes are zero (dead units, or a step function)",
        ),
    ],
    ids=["one element", "zero weights", "weights", "parallel", "dead"],
)
def test_a_factor_that_passes_nothing_says_why(blocked: FactorRecord, line: str) -> None:
    assert diagnose([-INF, -INF, 0.0], names(3), [blocked, *tower(3, 0.35, -0.35)[2:]]) == [line]


# A single factor --------------------------------------------------------------------------------------------------


def test_what_lies_between_two_layers_is_named_and_not_the_layer_behind_it() -> None:
    factors = [*tower(6, 0.35, -0.35), scaled(math.log(1e-4))]
    assert causes(factors, 6) == [
        "Mul in shrink (Shrink) multiplies the gradient by 0.0001: -9.21 nats, everything else +0.35"
    ]


def test_weights_that_deviate_from_their_peers_are_named_with_their_scale() -> None:
    factors = tower(6, 0.35, -0.35)
    factors[4] = factor(gain=-5.0, step=2, weight_rms=0.0006)
    what, why = causes(factors, 6)
    assert what == "4 (Linear) multiplies the gradient by 0.00674: the whole log gain"
    assert why == "4.weight: rms 0.0006 over 64 inputs, rms × √inputs = 0.0048"


# Groups -----------------------------------------------------------------------------------------------------------


def test_groups_explain_their_share_and_weights_are_compared_with_what_the_slopes_need() -> None:
    what, weights, needed = causes(tower(20, -1.0, -0.35), 20)
    assert what == "every step multiplies the gradient by 0.264, steadily"
    assert weights == "20 × Linear (0, 2, …) multiply the gradient by 0.368 each: -20.0 of -26.7 nats"
    # exp(26.65 / 20) = 3.79 times as large.
    needs = "at slopes of rms 0.7 a gain of 1 needs an rms of about 0.474"
    assert needed == f"weights of rms 0.125 over 64 inputs in 20 × Linear (0, 2, …): {needs}"


def test_a_group_along_time_acts_at_each_time_step() -> None:
    gated = {"module": "rnn", "module_kind": "LSTM", "weight": "rnn.weight_hh_l0", "weight_rms": 0.0625, "fan_in": 64}
    factors = [factor("gated", -0.3, i, forget_bias=1.0, **gated) for i in range(30)]
    _, gain, weights, kept = causes(factors, 30, along="time")
    assert gain == "rnn (LSTM) multiplies the gradient by 0.741 per time step: the whole log gain"
    assert weights.startswith("rnn.weight_hh_l0: rms 0.0625 over 64 inputs")
    assert kept.startswith("forget gates of mean bias 1 ")


def test_normalized_weights_have_no_needed_size() -> None:
    norms = [factor("normalization", -1.0, i, module=f"{i}.n", module_kind="LayerNorm") for i in range(8)]
    assert not any("needs an rms" in line for line in causes([*tower(8, -1.0, 0.0), *norms], 8))


# Measures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "explained_by_growth", "gain", "about_growth"),
    [
        # A measure that increases with the log gain, such as gradient_norm.
        (1e-9, 1, -14.0, True),
        (1e-9, 1, 14.0, False),
        (1e3, 1, 14.0, True),
        (1e3, 1, -14.0, False),
        # A measure that decreases with it, such as underflow_fraction.
        (1e3, -1, -14.0, True),
        (1e3, -1, 14.0, False),
        (1e-9, -1, 14.0, True),
        (1e-9, -1, -14.0, False),
        # A measure that does not depend on it.
        (1e-9, 0, -14.0, False),
        (NAN, 0, NAN, False),
        # Infinity and NaN are explained by the chain.
        (1e-9, 1, -INF, True),
        (1e-9, 1, NAN, True),
        (INF, -1, 14.0, True),
        (1e-9, 1, 0.0, False),
    ],
)
def test_growth_explains_a_measure_on_the_matching_side(
    make_verdict: Callable[..., VerdictRecord], value: float, explained_by_growth: int, gain: float, about_growth: bool
) -> None:
    verdict = make_verdict(value=value, low=1e-6, high=1.0)
    assert is_about_growth(verdict, explained_by_growth, gain) is about_growth


@pytest.mark.parametrize("gain", [-14.0, 14.0])
def test_too_much_underflow_is_explained_by_decay_only(make_verdict: Callable[..., VerdictRecord], gain: float) -> None:
    verdict = make_verdict(measure="underflow_fraction", value=0.9, unit="", low=None, high=0.1)
    declared = MEASURES["underflow_fraction"].explained_by_growth
    assert is_about_growth(verdict, declared, gain) is (gain < 0)
