"""Sizes, means and extremes of initial values: against their definitions, and before the forward pass."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import TrainabilityFailure, at_most, measure
from pytest_trainability.measurement import Measurement

N = 200 * 300


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.out = nn.Linear(300, 200), nn.BatchNorm1d(200), nn.Linear(200, 3)
        nn.init.normal_(self.fc.weight, mean=0.01, std=0.05)
        nn.init.uniform_(self.out.weight, -0.3, 0.3)
        self.register_buffer("table", torch.tensor([3.0, -4.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.fc(x)).relu())


def measured(seeds: int = 3, **options: object) -> Measurement:
    return measure(Net, torch.randn(8, 300, generator=torch.Generator().manual_seed(0)), seeds=seeds, **options)  # type: ignore[arg-type]


def test_sizes_means_and_extremes_are_those_of_the_distributions() -> None:
    """Deviations are at most five standard errors of the mean over three seeds."""
    result = measured()
    error = 0.05 / math.sqrt(3 * N)
    assert result.parameter_mean["fc.weight"].mean == pytest.approx(0.01, abs=5 * error)
    rms = math.hypot(0.05, 0.01)
    assert result.parameter_rms["fc.weight"].mean == pytest.approx(rms, abs=5 * error)
    assert result.parameter_rms["out.weight"].mean == pytest.approx(
        0.3 / math.sqrt(3), rel=5 * 0.45 / math.sqrt(3 * 600)
    )
    # The largest of 600 uniform magnitudes is short of 0.3 by 0.3/600 on average.
    assert result.parameter_outlier["out.weight"].mean == pytest.approx(math.sqrt(3), rel=0.05)
    largest = math.sqrt(2 * math.log(N))
    assert result.parameter_outlier["fc.weight"].mean == pytest.approx(largest, rel=0.2)
    assert result.parameter_rms["table"].mean == pytest.approx(math.sqrt(12.5), rel=1e-12)
    assert result.parameter_mean["table"] == -0.5
    assert result.parameter_outlier["table"].mean == pytest.approx(4 / math.sqrt(12.5), rel=1e-12)


@pytest.mark.parametrize("late", [False, True])
def test_buffers_have_their_values_before_the_forward_pass(late: bool) -> None:
    result = measured(measures=[] if late else ["parameter_rms", "parameter_mean"])
    assert result.parameter_rms["norm.running_var"].values == (1.0, 1.0, 1.0)
    assert result.parameter_mean["norm.running_mean"].values == (0.0, 0.0, 0.0)


def test_zeros_have_no_outlier() -> None:
    result = measured(seeds=1)
    assert "norm.bias" not in result.parameter_outlier
    assert result.parameter_outlier["norm.weight"] == 1
    assert result.parameter_rms["norm.bias"] == 0


def test_a_parameter_that_is_not_finite_violates_every_bound() -> None:
    model = Net()
    model.table[0] = math.nan
    result = measure(model, torch.randn(4, 300))
    with pytest.raises(TrainabilityFailure, match="table"):
        result.check(parameter_rms=at_most(100))
    assert math.isnan(result.parameter_mean["table"].mean)
    assert math.isnan(result.parameter_outlier["table"].mean)


@pytest.mark.parametrize("name", ["parameter_rms", "parameter_outlier"])
def test_sizes_are_averaged_by_their_logarithms(name: str) -> None:
    found = getattr(measured(), name)["out.weight"]
    assert len(set(found.values)) == 3
    assert found.mean == pytest.approx(math.exp(math.fsum(map(math.log, found.values)) / 3), rel=1e-12)
