"""Likely causes: growth rates and facts about the steps give a line that names a remedy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from pytest_trainability.checks.diagnosis import diagnose, is_about_growth
from pytest_trainability.measures import MEASURES
from pytest_trainability.records.reports import StepFacts, VerdictRecord

NAN, INF = math.nan, math.inf


def facts(name: str = "0", **changes: Any) -> StepFacts:
    given: dict[str, Any] = {
        "name": name,
        "kind": "Linear",
        "weight_std": 0.0625,
        "fan_in": 64,
        "weights": 1,
        "operations": ("Addmm", "Tanh"),
    }
    return StepFacts(**{**given, **changes})


def tower(count: int, **changes: Any) -> list[StepFacts]:
    return [facts(str(i), **changes) for i in range(count)]


def test_without_growth_rates_there_is_no_cause() -> None:
    assert diagnose([], []) == []
    assert diagnose([1.0, 2.0], tower(1)) == []


def test_a_healthy_chain_has_no_cause() -> None:
    assert diagnose([0.01, -0.01, 0.005, 0.0], tower(4)) == []


def test_steady_decay_is_a_factor_and_names_better_weights() -> None:
    what, cure = diagnose([math.log(0.5)] * 6, tower(6))
    assert what == "every step multiplies the gradient by 0.5, steadily"
    assert "Linear weights of std 0.0625 with tanh" in cure
    assert cure.endswith("a gain of 1 at fan-in 64 needs a std of about 0.125")


def test_uneven_growth_is_reported_on_average() -> None:
    assert diagnose([0.1, 0.9, 0.2, 1.0, 0.3], tower(5))[0].endswith("on average")


def test_exploding_tanh_needs_critical_weights() -> None:
    """Saturation hides the size of the weights, so that the remedy is not the present std divided by the gain."""
    assert diagnose([0.5] * 6, tower(6, weight_std=1.0))[1].endswith("fan-in 64 needs a std of about 0.125")


@pytest.mark.parametrize("node", ["Relu", "LeakyRelu"])
def test_relu_needs_he_initialization(node: str) -> None:
    (_, cure) = diagnose([-0.9] * 6, tower(6, operations=("Addmm", node)))
    assert "He initialization for fan-in 64 has std 0.177" in cure
    assert "kaiming_normal_" in cure


def test_sigmoid_needs_another_activation() -> None:
    assert "slope is at most 1/4" in diagnose([-1.4] * 6, tower(6, operations=("Sigmoid",)))[1]


def test_the_deepest_step_without_gradient_is_named() -> None:
    (line,) = diagnose([-0.1, -INF, -0.1, -INF, -0.1], tower(5))
    assert line.startswith("3 passes no gradient: ")
    (line,) = diagnose([-0.1, -INF, -0.1], tower(3, weight_std=0.0))
    assert line == "1 has constant weights and passes no gradient: is it initialized?"


def test_nan_is_reported_where_the_backward_pass_meets_it_first() -> None:
    (line,) = diagnose([NAN, NAN, 0.1, 0.1], tower(4))
    assert line.startswith("the gradient is not finite from 1 on")


def test_the_first_value_that_is_not_finite_is_named() -> None:
    """The backward pass is NaN from its beginning, for a fault in any layer."""
    (line,) = diagnose([NAN] * 4, tower(4), ("parameter 1.weight", "state after 2", "loss", "gradient of 0.weight"))
    assert line == "first value that is not finite: parameter 1.weight"
    (line,) = diagnose([NAN] * 4, tower(4), ("gradient of 0.weight",))
    assert line.startswith("the gradient is not finite from 3 on")


def test_infinity_is_not_a_dead_step() -> None:
    (line,) = diagnose([0.1, INF, 0.1, 0.1], tower(4))
    assert "not finite from 1 on" in line


def test_an_outlier_is_named_alone() -> None:
    (line,) = diagnose([0.01, 0.02, -6.0, 0.01, 0.0], tower(5))
    assert line == "2 alone contributes -6 of -6 nats: check its initialization"


def test_a_large_rate_without_the_majority_is_no_outlier() -> None:
    """Ten steps lose a nat each and one loses two: the others lose more in total, and it is the steady decay that matters."""
    what, _ = diagnose([-1.0] * 5 + [-2.0] + [-1.0] * 5, tower(11))
    assert what.startswith("every step multiplies the gradient by ")


def test_a_step_near_the_others_is_no_outlier() -> None:
    """It contributes most of the total, but within the spread of the others."""
    assert "alone" not in diagnose([0.3, -0.3, 0.2, -0.2, 0.9], tower(5))[0]


def test_few_steps_have_no_outlier() -> None:
    assert "alone" not in diagnose([0.0, 0.0, -6.0], tower(3))[0]


def test_an_outlier_in_time_is_about_the_input() -> None:
    (line,) = diagnose([0.01, 0.02, -6.0, 0.01, 0.0], tower(5, recurrent=True))
    assert line.endswith("nats: check its input at this time step")


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


def test_residual_blocks_have_other_remedies() -> None:
    block = {"weights": 4, "kind": "Block", "operations": ("Add", "Gelu")}
    normed = {**block, "operations": ("Add", "NativeLayerNorm")}
    assert "the branches have no normalization" in diagnose([0.3] * 8, tower(8, **block))[1]
    assert diagnose([0.3] * 8, tower(8, **normed))[1] == "scale the branch's last projection by 1/sqrt(2 × 8) = 0.25"
    assert "post-norm" in diagnose([-0.3] * 8, tower(8, **normed))[1]


RNN = {"kind": "RNN", "recurrent": True, "operations": ("Addmm", "Tanh")}
LSTM = {"kind": "LSTM", "recurrent": True, "forget_bias": 0.0, "operations": ("Addmm", "Sigmoid", "Tanh")}
GRU = {"kind": "GRU", "recurrent": True, "operations": ("Addmm", "Sigmoid", "Tanh")}
KEEP = "orthogonal weights of gain 1 (nn.init.orthogonal_) keep more, gated cells most"
SCALE = "scale them down until spectral_radius is about 1, or clip gradients"


@pytest.mark.parametrize(
    ("step", "rate", "remedy"),
    [
        (RNN, -0.5, [f"recurrent weights of std 0.0625 and tanh slopes below 1: {KEEP}"]),
        ({**RNN, "operations": ("Addmm", "Relu")}, -0.5, [f"recurrent weights of std 0.0625: {KEEP}"]),
        (RNN, 0.5, [f"recurrent weights of std 0.0625: {SCALE}"]),
        (
            LSTM,
            -0.5,
            [
                "forget gates of mean bias 0 keep 0.5 of the cell per step: raise the bias (1 is usual, ln(T - 1) for T steps)"
            ],
        ),
        (LSTM, 0.5, [f"the weights of LSTM: {SCALE}"]),
        (
            GRU,
            -0.5,
            ["the update gates of a GRU decide how much it keeps: raise their biases, the second third of bias_ih"],
        ),
        (GRU, 0.5, [f"the weights of GRU: {SCALE}"]),
        ({**RNN, "weight_std": NAN}, -0.5, []),
        ({**RNN, "weight_std": 0.0}, 0.5, []),
    ],
)
def test_remedies_along_time(step: dict[str, Any], rate: float, remedy: list[str]) -> None:
    assert diagnose([rate] * 6, tower(6, **step))[1:] == remedy


@pytest.mark.parametrize(
    ("step", "rate", "remedy"),
    [
        (
            {"operations": ("Addmm",)},
            -0.5,
            "Linear weights of std 0.0625 with no activation: a gain of 1 at fan-in 64 needs",
        ),
        (
            {"operations": ("Addmm", "Gelu")},
            0.5,
            "Linear weights of std 0.0625 with gelu: a gain of 1 at fan-in 64 needs",
        ),
        (
            {"operations": ("Addmm", "Relu")},
            0.5,
            "Linear weights of std 0.0625 with relu: He initialization for fan-in 64",
        ),
    ],
)
def test_remedies_of_plain_layers(step: dict[str, Any], rate: float, remedy: str) -> None:
    assert diagnose([rate] * 6, tower(6, **step))[1].startswith(remedy)


def test_weights_of_other_activations_are_divided_by_the_gain() -> None:
    (_, remedy) = diagnose([math.log(2)] * 6, tower(6, operations=("Addmm", "Gelu")))
    assert remedy.endswith("needs a std of about 0.0312")


@pytest.mark.parametrize("changes", [{"weight_std": 0.0}, {"weight_std": NAN}, {"weights": 0}, {"weights": 2}])
def test_layers_without_a_single_random_weight_have_no_remedy(changes: dict[str, Any]) -> None:
    assert len(diagnose([-0.5] * 6, tower(6, **changes))) == 1


def test_rates_are_neutral_below_two_hundredths() -> None:
    assert diagnose([0.0199] * 6, tower(6)) == diagnose([-0.0199] * 6, tower(6)) == []
    assert diagnose([0.0201] * 6, tower(6)) != []


@pytest.mark.parametrize(("rate", "line"), [(100.0, "multiplies the gradient by 2.69e+43"), (101.0, "by +101 nats")])
def test_very_large_rates_are_given_in_nats(rate: float, line: str) -> None:
    assert line in diagnose([rate] * 6, tower(6))[0]


def test_a_normalization_at_the_end_of_a_branch_undoes_the_scale_of_weights() -> None:
    """Then its gain decides; in front of the weights, as in a pre-norm block, it does not."""
    block = {"weights": 3, "kind": "Bottleneck"}
    last = ("Convolution", "NativeBatchNorm", "Add", "Relu")
    first = ("NativeBatchNorm", "Relu", "Convolution", "Add")
    cure = "initialize the gain of each branch's last normalization with 1/sqrt(16) = 0.25"
    assert diagnose([0.3] * 16, tower(16, operations=last, **block))[1] == cure
    assert "last projection" in diagnose([0.3] * 16, tower(16, operations=first, **block))[1]
    # The order of the last normalization and the last product counts, not that of earlier ones.
    both = ("NativeBatchNorm", "Convolution", "Relu", "NativeLayerNorm", "Add")
    assert diagnose([0.3] * 16, tower(16, operations=both, **block))[1] == cure
    assert "last projection" in diagnose([0.3] * 16, tower(16, operations=(*both, "Addmm"), **block))[1]
    # Without a product there is no weight whose scale a normalization could undo.
    assert "last projection" in diagnose([0.3] * 16, tower(16, operations=("Add", "NativeLayerNorm"), **block))[1]


def test_without_a_single_weight_there_is_no_remedy() -> None:
    assert len(diagnose([0.3] * 6, tower(6, weight_std=NAN))) == 1
    assert len(diagnose([0.3] * 6, tower(6, weights=2))) == 1


@pytest.mark.parametrize("rate", [800.0, -800.0, 1e4])
def test_extreme_rates_do_not_overflow(rate: float) -> None:
    assert diagnose([rate] * 5, tower(5))
