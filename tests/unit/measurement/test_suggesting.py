"""What the values of a measurement support."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_trainability import at_least, measure, within
from pytest_trainability.records.suggestions import Suggestion


def tower() -> nn.Module:
    return nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(16, 16), nn.Tanh())])


def found_in(result: object) -> dict[str, Suggestion]:
    return {found.measure: found for found in result.suggestions()}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


def test_measures_of_every_run_and_those_that_were_read_get_bounds(x: torch.Tensor) -> None:
    result = measure(tower, x, seeds=4)
    assert result.dead_fraction.max < 1
    found = found_in(result)
    assert list(found) == ["log_gain", "gradient_norm", "activation_rms", "unused_parameters", "dead_fraction"]
    assert found["gradient_norm"].high is None and found["gradient_norm"].low is not None
    assert found["unused_parameters"].ends == (None, 0)
    assert found["log_gain"].low < float(result.log_gain) < found["log_gain"].high  # type: ignore[operator]


def test_the_bounds_hold_for_other_seeds_and_not_for_another_model(x: torch.Tensor) -> None:
    bounds = {name: found.ends for name, found in found_in(measure(tower, x, seeds=8)).items()}
    measure(tower, x, seeds=range(100, 104)).check(**bounds)
    with pytest.raises(AssertionError, match="log_gain"):
        measure(lambda: nn.Sequential(*tower(), *tower()), x, seeds=4).check(**bounds)


def test_a_present_bound_comes_along_with_its_patterns_and_verdict(x: torch.Tensor) -> None:
    result = measure(tower, x, seeds=3)
    result.check(gradient_norm=at_least(1e-9, excluding="*.bias"))
    with pytest.raises(AssertionError):
        result.check(log_gain=within(0.1))
    found = found_in(result)
    assert (found["gradient_norm"].current, found["gradient_norm"].excluding) == ((1e-9, None), ("*.bias",))
    assert ".weight" in found["gradient_norm"].measured
    assert found["gradient_norm"].holds and not found["log_gain"].holds
    assert [s.is_default for s in result.suggestions(["log_gain"]) if s.measure == "log_gain"] == [True]


def test_a_finished_module_supports_counts_only(x: torch.Tensor) -> None:
    found = found_in(measure(tower(), x))
    assert [name for name, one in found.items() if not one.missing] == ["unused_parameters"]


def test_along_time_the_exponent_is_bounded_and_not_the_gain() -> None:
    found = found_in(measure(lambda: nn.RNN(4, 4, batch_first=True), torch.randn(2, 6, 4), steps="time", seeds=3))
    assert "lyapunov_max" in found and "log_gain" not in found


def test_values_that_are_not_finite_say_on_how_many_seeds(x: torch.Tensor) -> None:
    class Infinite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tower()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.body(x) / 0
            return found

    assert "on 0 of 3 seeds" in found_in(measure(Infinite, x, seeds=3))["gradient_norm"].missing


class Skipping(nn.Module):
    """A chain in which a seed may skip a step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
        self.skipped = int(torch.randint(1, 5, ()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            x = x if index == self.skipped else torch.tanh(layer(x))
        return x


def test_steps_that_a_seed_has_skipped_do_not_shift_the_values_of_others() -> None:
    result = measure(Skipping, torch.randn(4, 8), seeds=4)
    assert found_in(result)["activation_rms"].low is not None
