"""Likely causes: growth rates and facts about the steps give a line that names a remedy."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pytest_trainability.checks.diagnosis import diagnose
from pytest_trainability.records.reports import StepFacts

NAN, INF = math.nan, math.inf


def facts(name: str = "0", **changes: Any) -> StepFacts:
    given: dict[str, Any] = {
        "name": name,
        "kind": "Linear",
        "weight_std": 0.0625,
        "fan_in": 64,
        "weights": 1,
        "operations": ("AddmmBackward0", "TanhBackward0"),
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


@pytest.mark.parametrize("node", ["ReluBackward0", "LeakyReluBackward0"])
def test_relu_needs_he_initialization(node: str) -> None:
    (_, cure) = diagnose([-0.9] * 6, tower(6, operations=("AddmmBackward0", node)))
    assert "He initialization for fan-in 64 has std 0.177" in cure
    assert "kaiming_normal_" in cure


def test_sigmoid_needs_another_activation() -> None:
    assert "slope is at most 1/4" in diagnose([-1.4] * 6, tower(6, operations=("SigmoidBackward0",)))[1]


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


def test_residual_blocks_have_other_remedies() -> None:
    block = {"weights": 4, "kind": "Block", "operations": ("AddBackward0", "GeluBackward0")}
    normed = {**block, "operations": ("AddBackward0", "NativeLayerNormBackward0")}
    assert "the branches have no normalization" in diagnose([0.3] * 8, tower(8, **block))[1]
    assert diagnose([0.3] * 8, tower(8, **normed))[1] == "scale the branch's last projection by 1/sqrt(2 × 8) = 0.25"
    assert "post-norm" in diagnose([-0.3] * 8, tower(8, **normed))[1]


def test_a_normalization_at_the_end_of_a_branch_undoes_the_scale_of_weights() -> None:
    """Then its gain decides; in front of the weights, as in a pre-norm block, it does not."""
    block = {"weights": 3, "kind": "Bottleneck"}
    last = ("ConvolutionBackward0", "NativeBatchNormBackward0", "AddBackward0", "ReluBackward0")
    first = ("NativeBatchNormBackward0", "ReluBackward0", "ConvolutionBackward0", "AddBackward0")
    cure = "initialize the gain of each branch's last normalization with 1/sqrt(16) = 0.25"
    assert diagnose([0.3] * 16, tower(16, operations=last, **block))[1] == cure
    assert "last projection" in diagnose([0.3] * 16, tower(16, operations=first, **block))[1]


def test_without_a_single_weight_there_is_no_remedy() -> None:
    assert len(diagnose([0.3] * 6, tower(6, weight_std=NAN))) == 1
    assert len(diagnose([0.3] * 6, tower(6, weights=2))) == 1


@pytest.mark.parametrize("rate", [800.0, -800.0, 1e4])
def test_extreme_rates_do_not_overflow(rate: float) -> None:
    assert diagnose([rate] * 5, tower(5))
