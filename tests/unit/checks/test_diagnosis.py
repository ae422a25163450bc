"""Likely causes: growth rates and the factors of the steps give lines that name a place, a reason and its share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pytest_trainability.checks.diagnosis import (
    closed_gates,
    diagnose,
    factor_groups,
    is_about_growth,
    outlier,
    unlike_weights,
    usual_gain,
    vanishing,
)
from pytest_trainability.measures import MEASURES
from pytest_trainability.records.factors import FactorRecord, GateRecord, SlopeRecord
from pytest_trainability.records.reports import VerdictRecord

NAN, INF = math.nan, math.inf
RELU = SlopeRecord(0.7, 0.0, 1.0, 0.5)
TANH = SlopeRecord(0.8, 0.1, 1.0, 0.0)


def factor(kind: str = "weights", gain: float = 0.0, step: int = 0, **changes: Any) -> FactorRecord:
    """Return a factor of a linear layer, with some fields changed."""
    given: dict[str, Any] = {"module": f"{2 * step}", "module_kind": "Linear", "operations": ("Addmm",)}
    if kind == "weights":
        given |= {"weight": f"{2 * step}.weight", "weight_rms": 0.125, "fan_in": 64}
    return FactorRecord(step=step, kind=kind, gain=gain, **{**given, **changes})  # type: ignore[arg-type]


def activation(gain: float, step: int, *, slopes: SlopeRecord = RELU, **changes: Any) -> FactorRecord:
    given = {"module": f"{2 * step - 1}", "module_kind": "ReLU", "operations": ("Relu",), "slopes": slopes}
    return factor("entrywise", gain, step, **{**given, **changes})


def tower(count: int, weights: float, slopes: float) -> list[FactorRecord]:
    """Return the factors of linear layers with activations between them."""
    pairs = [[activation(slopes, i), factor(gain=weights, step=i)] for i in range(count)]
    return [f for pair in pairs for f in pair][1:]


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
    assert vanishing([blocked]) is blocked
    assert vanishing(tower(3, 0.35, -0.35)) is None


# A single factor --------------------------------------------------------------------------------------------------


def scaled(gain: float, step: int = 3) -> FactorRecord:
    c = math.exp(gain)
    slopes = SlopeRecord(c, c, c, 0.0)
    return factor("entrywise", gain, step, module="shrink", module_kind="Shrink", operations=("Mul",), slopes=slopes)


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


# Groups -----------------------------------------------------------------------------------------------------------


def test_factors_of_like_modules_form_groups() -> None:
    weights, slopes = sorted(factor_groups(tower(5, -1.0, -0.5)), key=lambda group: group.gain)
    assert (weights.place, weights.gain, weights.weights) == ("5 × Linear (0, 2, …)", -5.0, "*.weight")
    assert (slopes.place, slopes.gain) == ("4 × ReLU (1, 3, …)", -2.0)


def test_entries_that_only_move_are_in_no_group() -> None:
    assert factor_groups([factor("layout", 0.0, operations=("View",))]) == []


def test_groups_explain_their_share_and_weights_are_compared_with_what_the_slopes_need() -> None:
    what, weights, needed = causes(tower(20, -1.0, -0.35), 20)
    assert what == "every step multiplies the gradient by 0.264, steadily"
    assert weights == "20 × Linear (0, 2, …) multiply the gradient by 0.368 each: -20.0 of -26.7 nats"
    # exp(26.65 / 20) = 3.79 times as large.
    needs = "at slopes of rms 0.7 a gain of 1 needs an rms of about 0.474"
    assert needed == f"weights of rms 0.125 over 64 inputs in 20 × Linear (0, 2, …): {needs}"


def test_an_activation_is_named_by_its_operations_and_slopes() -> None:
    swish = {"module_kind": "Act", "operations": ("Sigmoid", "Mul"), "slopes": SlopeRecord(0.5, 0.4, 0.6, 0.0)}
    factors = [activation(-0.69, i, **swish) if i % 2 else factor(step=i) for i in range(20)]
    lines = causes(factors, 20)
    assert "Sigmoid × Mul in 10 × Act (1, 5, …) have slopes of rms 0.5: the whole log gain" in lines
    assert not any("1/4" in line for line in lines)


def test_parameters_that_the_forward_pass_has_written_are_named_with_their_means() -> None:
    scales = [
        factor(
            "entrywise",
            4.0 + i,
            i,
            module=f"norms.{i}",
            module_kind="Norm",
            operations=("Mul",),
            slopes=SlopeRecord(50.0, 1.0, 90.0, 0.0),
            parameters=(f"norms.{i}.scale",),
            parameter_means=(4.0 + i,),
            rewritten=(f"norms.{i}.scale",),
        )
        for i in range(3)
    ]
    (*_, line) = causes(scales, 3)
    assert line == "the first forward pass has changed norms.*.scale (means 4 to 6), which it reads"
    assert not any("changed" in line for line in causes([replace(scale, rewritten=()) for scale in scales], 3))


def test_dead_slopes_are_counted() -> None:
    dead = SlopeRecord(0.1, 0.0, 1.0, 0.99)
    assert any("99 % of them zero" in line for line in causes([activation(-2.3, i, slopes=dead) for i in range(9)], 9))


def test_a_decay_per_time_step_names_its_parameter() -> None:
    slopes = SlopeRecord(0.72, 0.711, 0.731, 0.0)
    decay = {"module": "cell", "module_kind": "Cell", "operations": ("Mul",), "parameters": ("cell.decay",)}
    factors = [activation(-0.33, i, slopes=slopes, **decay) for i in range(30)]
    _, why = causes(factors, 30, along="time")
    assert why == "Mul in cell (Cell) has slopes from 0.711 to 0.731, which cell.decay determines: the whole log gain"


def test_gates_show_the_gain_of_their_weights_and_what_they_keep() -> None:
    gated = {"module": "rnn", "module_kind": "LSTM", "weight": "rnn.weight_hh_l0", "weight_rms": 0.0625, "fan_in": 64}
    factors = [factor("gated", -0.3, i, forget_bias=1.0, **gated) for i in range(30)]
    _, gain, weights, kept = causes(factors, 30, along="time")
    assert gain == "rnn (LSTM) multiplies the gradient by 0.741 per time step: the whole log gain"
    assert "rms × √inputs = 0.5 (1 if each gate's is orthogonal)" in weights
    assert kept == "forget gates of mean bias 1 keep 0.731 of the cell per time step"


def test_a_normalization_shows_its_gain_its_input_and_its_constant() -> None:
    def lines(**changes: Any) -> list[str]:
        norm = {"module_kind": "LayerNorm", "operations": ("NativeLayerNorm",), **changes}
        return causes([factor("normalization", -1.0, i, module=f"{i}.norm", **norm) for i in range(8)], 8)[2:]

    small = lines(weight="norm.weight", weight_rms=0.02, input_deviation=0.5)
    assert small == [
        "its gain norm.weight has rms 0.02, where 1 is usual",
        "its inputs deviate by 0.5, by which it divides",
    ]
    assert lines(input_deviation=0.003, eps=1e-5) == ["its inputs deviate by no more than √eps = 0.00316"]
    assert lines(group_size=1) == ["it normalizes groups of one element"]
    assert lines() == []


def test_a_residual_block_shows_branch_and_skip_and_what_stands_out_in_the_branch() -> None:
    norm = factor("normalization", 3.0, module="b.norm", module_kind="LayerNorm", weight_rms=1.0)
    inner = (norm, factor(gain=1.6, module="b.proj"))
    blocks = [
        factor(
            "parallel", 1.8, i, module=f"blocks.{i}", module_kind="Block", branches=((), inner), branch_gains=(0.0, 1.7)
        )
        for i in range(6)
    ]
    lines = causes(blocks, 6)
    assert lines[1] == "6 × Block (blocks.*) multiply the gradient by 6.05 each: the whole log gain"
    assert lines[2] == "its branch multiplies the gradient by 5.47, the skip connection by 1"
    assert lines[3] == "in the branch, b.proj (Linear) multiplies the gradient by 4.95"
    assert lines[4] == "0.weight: rms 0.125 over 64 inputs, rms × √inputs = 1"


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


# Weights in branches, and gates -----------------------------------------------------------------------------------


def residual(step: int, sizes: dict[str, float], gain: float = 0.5) -> FactorRecord:
    """Return a residual block whose branch is one gated product of weights over 16 inputs."""
    products = tuple((f"blocks.{step}.{name}.weight", size, 16) for name, size in sizes.items())
    inner = factor("other", step=step, module=f"blocks.{step}.mlp", operations=("Mm", "Mul"), products=products)
    return factor(
        "parallel",
        gain,
        step,
        module=f"blocks.{step}",
        module_kind="Block",
        branches=((), (inner,)),
        branch_gains=(0.0, gain),
    )


def test_weights_in_branches_stand_out_if_all_others_are_four_times_smaller() -> None:
    unlike = [residual(i, {"up": 0.1, "gate": 1.0, "down": 0.05}) for i in range(3)]
    found = unlike_weights(unlike)
    assert found is not None
    group, usual = found
    assert [member.weight for member in group.members] == [f"blocks.{i}.gate.weight" for i in range(3)]
    assert usual == pytest.approx(0.4)
    text = " ".join(causes(unlike, 3))
    assert "in the branches, blocks.*.gate.weight has rms 1 over 16 inputs: a gain rms × √inputs of 4" in text
    assert unlike_weights([residual(i, {"up": 0.1, "gate": 0.39}) for i in range(3)]) is None


def test_weights_in_branches_do_not_stand_out_alone_or_where_gradients_shrink() -> None:
    assert unlike_weights([residual(0, {"up": 1.0})]) is None
    assert unlike_weights([residual(0, {"up": 1.0, "down": 0.1}, gain=-0.5)]) is None
    assert unlike_weights(tower(4, 1.0, 0.0)) is None


def test_the_most_extreme_gate_is_named_with_what_closes_it() -> None:
    gates = (GateRecord(0.05, bias="f.bias", bias_mean=-3.0, part=1, parts=4), GateRecord(0.999, constant=7.0))
    closed = factor("gated", -1.0, weight="f.weight", weight_rms=0.1, fan_in=9, gates=(*gates, GateRecord(0.0)))
    assert closed_gates([closed]) == [gates[1], gates[0]]
    constant = "a sigmoid is 0.999 on average: the constant 7 in the forward code of the model is added in front of it"
    assert constant in causes([closed], 1)
    of_bias = "a sigmoid is 0.05 on average: part 2 of 4 of f.bias has mean -3"
    assert of_bias in causes([replace(closed, gates=gates[:1])], 1)
