"""Measurements of all sizes: which elements are followed, and which models are refused."""

from __future__ import annotations

import math
import re
from collections import OrderedDict

import pytest
import torch
from families import ONES, Scaled, perceptron, scaled, vectors
from torch import Tensor, nn

from pytest_trainability import (
    Estimate,
    Profile,
    TrainabilityFailure,
    UsageError,
    at_least,
    depth_sweep,
    measure,
    width_sweep,
)
from pytest_trainability.checks.statistics import Level, estimate
from pytest_trainability.scaling.sweep import _summarized, _summary_of


def test_each_size_is_measured_with_the_same_seeds_and_settings():
    found = width_sweep(perceptron, [4, 8], vectors, seeds=[3, 1, 7], dtype="float64", train=False)
    assert found.seeds == (3, 1, 7)
    for size, value, measurement in zip(found.sizes, found.values, found.measurements):
        alone = measure(lambda size=size: perceptron(size), vectors, seeds=[3, 1, 7], dtype="float64", train=False)
        assert (measurement.seeds, measurement.dtype, measurement.mode) == ((3, 1, 7), "float64", "eval")
        assert {n: e.values for n, e in value.items()} == {n: e.values for n, e in alone.activation_rms.items()}
    # Slopes are fitted for each seed separately.
    (small, large), slope = (value["2"].values for value in found.values), found.slope["2"]
    assert slope.values == pytest.approx([math.log(b / a) / math.log(2) for a, b in zip(small, large)])


def test_elements_that_some_size_lacks_are_left_out_and_named():
    found = width_sweep(lambda n: scaled(*[2] * n), [2, 3], ONES, seeds=1)
    assert list(found.slope) == ["input", "0", "1"]
    assert found.left_out == ("2",)
    with pytest.raises(TrainabilityFailure, match="not at every width and seed, and not followed: 2"):
        found.check(at_least(1))


def test_without_common_elements_a_summary_is_suggested():
    def build(n: int) -> nn.Module:
        return nn.Sequential(OrderedDict({f"{letter}{n}": Scaled(n) for letter in "ab"}))

    said = re.escape("activation_rms has none. Follow a summary, which does not depend on names: summary='max'")
    with pytest.raises(UsageError, match=said):
        width_sweep(build, [2, 3], ONES, seeds=1, excluding="input")
    assert abs(width_sweep(build, [2, 3], ONES, seeds=1, summary="last").slope - 2) < 1e-6


@pytest.mark.parametrize(
    ("summary", "expected"),
    # States 1, n, n/8: the largest is n, the smallest 1 or n/8, the geometric mean (n²/8)^(1/3).
    [("max", 1), ("min", 1 / 3), ("mean", 2 / 3), ("first", 0), ("last", 1)],
)
def test_summaries(summary, expected):
    found = width_sweep(lambda n: scaled(n, 1 / 8), [4, 8, 16], ONES, seeds=1, summary=summary)
    if summary == "min":  # ½, 1, 1
        expected = math.log(2) * math.log(4) / 2 / (2 * math.log(2) ** 2)
    assert isinstance(found.slope, Estimate)
    assert float(found.slope) == pytest.approx(expected, abs=1e-6)
    assert found.reading.startswith({"max": "largest", "min": "smallest"}.get(summary, summary) + " activation_rms ")


def test_a_profile_over_depths_is_followed_by_its_largest_and_smallest_element():
    found = depth_sweep(lambda depth: scaled(*[2] * depth), [2, 4], ONES, seeds=1, measure="activation_rms")
    assert isinstance(found.slope, Profile)
    assert {name: round(float(e), 6) for name, e in found.slope.items()} == {"max": 2.0, "min": 0.0}
    assert list(depth_sweep(lambda depth: scaled(*[2] * depth), [2, 4], ONES, measure="growth_rate").slope) == [
        "max",
        "min",
    ]


def test_exponents_are_followed_one_by_one():
    found = depth_sweep(
        lambda depth: scaled(*[2] * depth), [2, 4], ONES, seeds=1, measure="lyapunov_spectrum", exponents=2
    )
    assert list(found.slope) == ["exponent 1", "exponent 2"]
    assert found.slope["exponent 2"].unit == "nats/step per e-fold"
    assert abs(found.slope["exponent 1"]) < 1e-6  # ln 2 per step, whatever the depth


def test_elements_that_are_zero_by_design_can_be_excluded():
    def build(depth: int) -> nn.Module:
        return nn.Sequential(*scaled(*[2] * depth), scaled(0.0), nn.Linear(3, 3))

    zero = depth_sweep(build, [2, 4], ONES, seeds=1, measure="gradient_norm")
    assert math.isnan(zero.slope["min"].mean)
    rest = depth_sweep(build, [2, 4], ONES, seeds=1, measure="gradient_norm", matching="?.bias")
    assert abs(rest.slope["min"]) < 1


@pytest.mark.parametrize("name", ["activation_rms", "gradient_norm"])
def test_a_function_that_ignores_the_size_is_refused(name):
    with pytest.raises(
        UsageError, match=r"build must use the width: models of width 4 and 16 are equal. At every width `<lambda>`"
    ):
        width_sweep(lambda _: perceptron(8), [4, 8, 16], vectors, seeds=2, measure=name)


def test_a_layer_that_is_applied_several_times_depends_on_the_size():
    class Looped(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.depth, self.layer = depth, nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.depth):
                x = self.layer(x)
            return x

    assert depth_sweep(Looped, [2, 4], vectors, seeds=1).slope < 0


def test_changes_must_be_requested_with_the_training():
    found = width_sweep(perceptron, [4, 8], vectors, seeds=1, after_steps=1, loss=Tensor.mean)
    with pytest.raises(UsageError, match=re.escape("width_sweep(..., measure='activation_change')")):
        found.of("activation_change")


# Summaries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["max", "min", "mean"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_summary_of_nan_is_nan(how, place):
    """Comparisons with NaN are false, so that the largest of a list depends on where NaN stands."""
    values = [1.0, 3.0, 2.0]
    values[place] = math.nan
    assert math.isnan(_summary_of(values, how, "linear"))
    elements = {str(i): estimate([value, 4.0], scale="log") for i, value in enumerate(values)}
    summary = _summarized(elements, how, Level(0.9))
    assert math.isnan(summary.values[0]) and summary.values[1] == pytest.approx(4.0) and math.isnan(summary.mean)


def test_summaries_of_one_seed():
    values = [1.0, 4.0, 2.0]
    found = {how: _summary_of(values, how, "log") for how in ("max", "min", "mean", "first", "last")}
    assert found == {"max": 4.0, "min": 1.0, "mean": pytest.approx(2.0), "first": 1.0, "last": 2.0}
    assert _summary_of(values, "mean", "linear") == pytest.approx(7 / 3)


def test_a_summary_has_scale_unit_and_level_of_its_elements():
    elements = {
        "a": estimate([1.0, 2.0], unit="nats", scale="log"),
        "b": estimate([3.0, 1.0], unit="nats", scale="log"),
    }
    found = _summarized(elements, "max", Level(0.5))
    assert (found.values, found.unit, found.scale, found.name) == ((3.0, 2.0), "nats", "log", "max")
    assert found.high == estimate([3.0, 2.0], scale="log", level=Level(0.5)).high


def test_one_model_that_is_not_a_number_has_no_largest_slope():
    """The largest state of the broken size would otherwise be a finite one."""
    found = width_sweep(lambda n: scaled(math.nan if n == 4 else n, 1.0), [2, 4, 8], ONES, seeds=1, summary="max")
    assert math.isnan(found.slope.mean)
    with pytest.raises(TrainabilityFailure, match="largest activation_rms is not a number at width 4"):
        found.check(at_least(-1e9))


class Skipping(nn.Module):
    """Skips its second block on odd seeds."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.odd = torch.initial_seed() % 2
        self.blocks = nn.ModuleList(Scaled(n) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = x if index == 1 and self.odd else block(x)
        return x


def test_elements_that_some_seed_lacks_are_left_out_of_profiles_and_refused_in_summaries():
    found = width_sweep(Skipping, [2, 4], ONES, seeds=2, steps="blocks.*")
    assert found.left_out == ("blocks.1",)
    with pytest.raises(
        UsageError, match=r"a summary needs elements that every seed has\. 'blocks\.1' of activation_rms"
    ):
        width_sweep(Skipping, [2, 4], ONES, seeds=2, steps="blocks.*", summary="max")


def test_several_summaries_are_a_profile():
    found = width_sweep(lambda n: scaled(n, 1 / 8), [4, 8], ONES, seeds=1, summary=("last", "mean"))
    assert list(found.slope) == ["last", "mean"] and found.summary == ("last", "mean")
    assert float(found.slope["last"]) == pytest.approx(1, abs=1e-6)


def test_patterns_may_be_one_or_several():
    one, several = (
        width_sweep(lambda n: scaled(n, n, n), [2, 4], ONES, seeds=1, matching=matching, excluding=excluding)
        for matching, excluding in (("[01]", "1"), (["0", "1"], ["1"]))
    )
    assert list(one.slope) == list(several.slope) == ["0"]


def test_the_log_gain_of_a_report_is_that_of_the_largest_size():
    found = width_sweep(lambda n: scaled(n), [2, 4, 16], ONES, seeds=2)
    record = found._sweep.to_record([], ())
    assert record.log_gain == pytest.approx(math.log(16), rel=1e-6)
    assert "the log gain is that of width 16" in record.notes
