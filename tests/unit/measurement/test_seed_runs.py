"""How many seeds are drawn: as many as settle the bounds, at most those requested, and always with the same numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import (
    Bound,
    BoundError,
    Estimate,
    InapplicableError,
    Measure,
    Measurement,
    Rollout,
    UsageError,
    at_least,
    at_most,
    measure,
    within,
)
from pytest_trainability.engine.runs import common_needs
from pytest_trainability.measurement import Context, measure_in
from pytest_trainability.measurement.seed_runs import tolerated_by
from pytest_trainability.measures import MEASURES

X = torch.linspace(-1, 1, 32).reshape(4, 8)


def tower() -> nn.Module:
    return nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.Tanh())])


def sampled(model: Any = tower, seeds: Any = 8, **until: Any) -> Measurement:
    return measure_in(Context(), model, X, seeds=seeds, device="cpu", until=until)


def test_a_clear_bound_stops_early() -> None:
    result = sampled(log_gain=within(1000))
    assert result.seeds in {(0, 1), (0, 1, 2)}
    assert len(result.log_gain.values) == len(result.seeds)


def test_a_close_bound_draws_all_seeds() -> None:
    end = measure(tower, X, seeds=8, device="cpu").log_gain.mean
    assert sampled(log_gain=at_most(end)).seeds == tuple(range(8))


def test_every_bound_must_be_settled() -> None:
    end = measure(tower, X, seeds=8, device="cpu").log_gain.mean
    assert sampled(log_gain=at_most(end), gradient_norm=at_least(1e-30)).seeds == tuple(range(8))


def test_without_a_bound_all_seeds_are_drawn() -> None:
    assert sampled().seeds == tuple(range(8))


def test_seeds_are_drawn_in_the_requested_order() -> None:
    assert sampled(seeds=(7, 3, 5, 1), log_gain=within(1000)).seeds[:2] == (7, 3)


def test_further_measures_are_read_on_the_same_seeds() -> None:
    result = sampled(log_gain=within(1000))
    assert isinstance(result.forward_log_gain, Estimate)
    assert len(result.forward_log_gain.values) == len(result.seeds) < 8


def test_completing_gives_the_numbers_of_a_single_run() -> None:
    """A baseline needs all seeds, even if fewer settled the bounds."""
    result, whole = sampled(log_gain=within(1000)), measure(tower, X, seeds=8, device="cpu")
    result.complete()
    assert result.seeds == whole.seeds
    assert result.log_gain.values == whole.log_gain.values
    assert {n: e.values for n, e in result.gradient_norm.items()} == {
        n: e.values for n, e in whole.gradient_norm.items()
    }
    result.complete()
    assert result.seeds == whole.seeds


def test_bounds_are_judged_again_on_all_seeds() -> None:
    result = sampled(log_gain=within(1000))
    result.check(log_gain=within(1000))
    (early,) = result._verdicts.values()
    result.complete()
    (whole,) = result._verdicts.values()
    assert whole.value == result.log_gain.mean != early.value


def test_completing_on_changed_inputs_is_refused() -> None:
    inputs = X.clone()
    result = sampled(log_gain=within(1000))
    result._seed_runs.recipe.inputs.add_(1.0)
    with pytest.raises(UsageError, match=r"only some of the seeds were drawn, .* have changed since\. Measure again"):
        result.complete()
    X.copy_(inputs)


def test_an_interval_of_a_fixed_number_of_seeds_is_narrower() -> None:
    """Intervals that hold whenever drawing stops are wider."""
    looked = sampled(seeds=4, log_gain=at_most(measure(tower, X, device="cpu").log_gain.mean))
    fixed = measure(tower, X, device="cpu")
    assert looked.log_gain.values == fixed.log_gain.values
    assert looked.log_gain.half_width > fixed.log_gain.half_width


def test_a_dead_network_needs_one_seed() -> None:
    def dead() -> nn.Module:
        model = tower()
        nn.init.zeros_(model[4].weight)
        return model

    result = sampled(dead, log_gain=within(5))
    assert result.seeds == (0,)
    assert result.log_gain.mean == -math.inf


def test_a_finished_module_is_one_draw() -> None:
    result = sampled(tower(), log_gain=within(1000))
    assert result.seeds == (0,)
    assert any("one draw" in note for note in result.notes)


def test_bounds_of_absent_measures_do_not_keep_drawing() -> None:
    """The model has no attention, so that a bound on it is settled, if it allows that."""
    result = sampled(log_gain=within(1000), attention_entropy=Bound(low=0.0, if_any=True))
    assert len(result.seeds) < 8


def test_bounds_on_gradients_are_settled_without_parameters_that_wake() -> None:
    """All elements that the bound judges are far above it. The zeros by design are not judged."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)
            nn.init.zeros_(self.down.weight)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.up(x))

    result = measure_in(
        Context(),
        lambda: nn.Sequential(Branch(), Branch(), nn.Linear(8, 1)),
        X,
        seeds=8,
        loss=lambda y: y.square().mean(),
        until={"gradient_norm": at_least(1e-30)},
    )
    assert result.gradient_norm["0.up.weight"].mean == 0
    assert len(result.seeds) == 2
    result.check(gradient_norm=at_least(1e-30))


def test_the_runs_are_timed() -> None:
    result = sampled(seeds=1)
    first = result.seconds
    _ = result.forward_log_gain
    assert 0 < first < result.seconds


def test_units_are_per_time_where_steps_span_time() -> None:
    timed, counted = (
        measure(Rollout(lambda x: 0.9 * x, steps=6, dt=dt), X, seeds=1, measures=["memory_horizon"])
        for dt in (0.5, None)
    )
    assert (timed.lyapunov_max.unit, counted.lyapunov_max.unit) == ("nats/time", "nats/step")
    assert (timed.memory_horizon.unit, counted.memory_horizon.unit) == ("time", "steps")
    assert timed.log_gain.unit == counted.log_gain.unit == "nats"


def test_a_second_run_of_a_changed_module_is_refused() -> None:
    model = tower()
    result = measure(model, X, device="cpu")
    with torch.no_grad():
        model[0].weight.add_(1.0)
    with pytest.raises(
        UsageError, match=r"forward_log_gain was not measured in the first run, .*\['forward_log_gain'\]"
    ):
        _ = result.forward_log_gain


def test_only_bounds_that_allow_it_excuse_a_measure_without_value() -> None:
    bounds = {"log_gain": within(3), "attention_entropy": Bound(low=0.5, if_any=True)}
    assert tolerated_by(bounds) == {"attention_entropy": InapplicableError}


def test_an_unknown_companion_is_an_error_that_names_the_measure(
    added: Callable[..., Measure], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a bound of the marker, and by a check afterwards."""
    lonely = replace(added("my_gain", read=lambda run: 1.0), measured_with="exces_loss")
    monkeypatch.setitem(MEASURES, "my_gain", lonely)
    message = "measured_with of the measure 'my_gain': unknown measure 'exces_loss'. Did you mean 'excess_loss'?"
    with pytest.raises(BoundError, match=re.escape(message)):
        sampled(seeds=1, my_gain=within(3))
    with pytest.raises(BoundError, match=re.escape(message)):
        sampled(seeds=1).check(my_gain=within(3))


class Counted:
    """A factory that counts the models it has built and their forward passes."""

    def __init__(self) -> None:
        self.built = self.run = 0

    def __call__(self) -> nn.Module:
        self.built += 1
        model = nn.Sequential(tower(), nn.BatchNorm1d(8))
        model.register_forward_pre_hook(self.count)
        return model

    def count(self, module: nn.Module, args: Any) -> None:
        self.run += 1


@pytest.mark.parametrize("expected", [False, True])
def test_a_baseline_that_is_expected_needs_no_further_builds(expected: bool) -> None:
    """The models are described when they run, also those of the seeds that settled bounds left out."""
    counted = Counted()
    context = Context(expects_baseline=expected)
    result = measure_in(context, counted, X, seeds=4, device="cpu", until={"log_gain": within(1000)})
    drawn = len(result.seeds)
    assert counted.built == drawn < 4
    result.complete()
    found = result._seed_runs.descriptions()
    assert counted.built == (4 if expected else 8)
    again = measure_in(Context(), Counted(), X, seeds=4, device="cpu")._seed_runs.descriptions()
    assert found == again, "bit for bit, and buffers as they were before the forward pass"


@pytest.mark.parametrize("expected", [False, True])
def test_a_baseline_that_is_expected_needs_no_further_forward_passes(expected: bool) -> None:
    counted = Counted()
    result = measure_in(Context(expects_baseline=expected), counted, X, seeds=4, device="cpu")
    before = counted.run
    found = result._seed_runs.operations()
    assert counted.run - before == (0 if expected else 4)
    assert result._seed_runs.operations() is found
    assert [next(iter(seed)) for seed in found] == ["0.0"] * 4


def test_operations_are_read_for_baselines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    whole = common_needs.operations_by_step
    monkeypatch.setattr(common_needs, "operations_by_step", lambda *given: read.append(given) or whole(*given))
    result = measure(tower, X, seeds=2, device="cpu")
    assert not read
    result._seed_runs.operations()
    assert len(read) == 2
