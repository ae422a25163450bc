"""How many seeds are drawn: as many as settle the bounds, never more than asked for, and always the same numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from pytest_trainability import Estimate, Measurement, UsageError, at_least, at_most, measure, within
from pytest_trainability.measurement import Context, measure_in

X = torch.linspace(-1, 1, 32).reshape(4, 8)


def tower() -> nn.Module:
    return nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.Tanh())])


def sampled(model: Any = tower, seeds: Any = 8, **until: Any) -> Measurement:
    return measure_in(
        Context(),
        model,
        X,
        target=None,
        loss=None,
        seeds=seeds,
        steps="auto",
        exponents=1,
        device="cpu",
        dtype=None,
        train=True,
        name=None,
        until=until,
    )


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


def test_the_seeds_are_those_that_were_asked_for_in_their_order() -> None:
    assert sampled(seeds=(7, 3, 5, 1), log_gain=within(1000)).seeds[:2] == (7, 3)


def test_what_is_read_later_is_measured_on_the_same_seeds() -> None:
    result = sampled(log_gain=within(1000))
    assert isinstance(result.forward_log_gain, Estimate)
    assert len(result.forward_log_gain.values) == len(result.seeds) < 8


def test_the_rest_can_be_drawn_and_gives_the_numbers_of_one_go() -> None:
    """A baseline wants all seeds, whatever settled the bounds."""
    result, whole = sampled(log_gain=within(1000)), measure(tower, X, seeds=8, device="cpu")
    result.complete()
    assert result.seeds == whole.seeds
    assert result.log_gain.values == whole.log_gain.values
    assert {n: e.values for n, e in result.gradient_norm.items()} == {
        n: e.values for n, e in whole.gradient_norm.items()
    }
    result.complete()
    assert result.seeds == whole.seeds


def test_the_rest_is_judged_too() -> None:
    result = sampled(log_gain=within(1000))
    result.check(log_gain=within(1000))
    (early,) = result._verdicts.values()
    result.complete()
    (whole,) = result._verdicts.values()
    assert whole.value == result.log_gain.mean != early.value


def test_the_rest_is_not_drawn_on_other_inputs() -> None:
    inputs = X.clone()
    result = sampled(log_gain=within(1000))
    result._seed_runs.recipe.inputs.add_(1.0)
    with pytest.raises(UsageError, match="have changed since"):
        result.complete()
    X.copy_(inputs)


def test_an_interval_of_a_fixed_number_of_seeds_is_narrower() -> None:
    """Whoever looks after each seed pays for it, whoever does not need not."""
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
