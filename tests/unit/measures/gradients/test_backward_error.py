"""When a finite difference confirms a derivative, contradicts it, or decides nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import models
import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.engine.runs.ensemble import ensemble
from pytest_trainability.engine.runs.perturbed_runs import PerturbedRuns
from pytest_trainability.engine.runs.run import Run
from pytest_trainability.measures.gradients.backward_error import (
    AGREES,
    BACKWARD_ERRORS,
    DIRECTIONS,
    STEPS,
    _Examination,
    compared,
)

Result = TypeVar("Result")


def comparison(function, derivative, *, round_off=1e-16, steps=None):
    low, high = ([function(sign * step) - function(0.0) for step in STEPS[:steps]] for sign in (-1, 1))
    return compared(derivative, low, high, round_off)


def test_a_smooth_function() -> None:
    right = comparison(math.sin, 1.0)
    assert right.agrees
    assert right.error <= AGREES
    wrong = comparison(math.sin, 5.0, steps=2)
    assert wrong.decided
    assert not wrong.agrees
    assert wrong.error == pytest.approx(0.8, abs=1e-8)


def test_a_function_that_varies_fast_needs_a_small_step() -> None:
    assert not comparison(lambda x: math.sin(1e5 * x), 1e5, steps=2).agrees
    assert comparison(lambda x: math.sin(1e5 * x), 1e5).agrees
    wrong = comparison(lambda x: math.sin(1e5 * x), 2e5)
    assert wrong.decided
    assert wrong.error == pytest.approx(0.5, abs=1e-3)


def test_one_step_size_decides_nothing() -> None:
    assert not comparison(math.sin, 5.0, steps=1).decided


def test_a_kink_decides_nothing() -> None:
    assert not comparison(lambda x: max(x, 0.0), 0.0).decided
    assert not comparison(lambda x: max(x, 0.0) + x, 1.0).decided
    # One of its subgradients is the mean of both slopes.
    assert comparison(abs, 0.0).error == 0


def test_a_jump_decides_nothing() -> None:
    assert not comparison(lambda x: float(x > 0), 1.0).decided


def test_round_off_decides_nothing() -> None:
    assert not comparison(lambda x: 1e-12 * x, 5e-12).decided
    assert comparison(lambda x: 1e-12 * x, 5e-12, round_off=1e-28).decided


def test_a_constant_contradicts_a_gradient() -> None:
    found = comparison(lambda x: 0.0, 1.0)
    assert found.decided
    assert found.error == 1.0
    assert comparison(lambda x: 0.0, 0.0).error == 0.0


@pytest.mark.parametrize(("resolved", "decided"), [(1.01, True), (0.99, False)])
def test_a_change_counts_if_it_is_known_to_the_share_that_decides(resolved: float, decided: bool) -> None:
    """Over the largest step, the function changes by ``2 · 1e-3``. Round-off may be the share ``AGREES`` of it."""
    round_off = 2 * max(STEPS) * AGREES / resolved
    assert comparison(lambda x: x, 1.0, round_off=round_off).agrees is decided


# Number of runs -----------------------------------------------------------------------------------------------------
class Wrong(torch.autograd.Function):
    """The identity, with a gradient twice as large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class Layer(nn.Module):
    def __init__(self, *, right: bool) -> None:
        super().__init__()
        self.linear, self.right = nn.Linear(4, 4), right

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x).tanh()
        return y if self.right else Wrong.apply(y)


def examined(read: Callable[[_Examination], Result], *right: bool) -> tuple[Result, int]:
    """Examine a chain of layers, and return the result and the number of runs that it took."""
    recipe = models.recipe(
        lambda: nn.Sequential(*(Layer(right=r) for r in right)),
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        loss=lambda output: output.square().mean(),
        steps=Layer,
        dtype=torch.float64,
    )

    def in_run(run: Run) -> dict[str, tuple[Result, int]]:
        runs, count = PerturbedRuns(run, "backward_error"), 0
        plain = runs.changed

        def counted(*args):
            nonlocal count
            count += 1
            return plain(*args)

        runs.changed = counted  # type: ignore[method-assign]
        with runs.entered():
            return {"": (read(_Examination(run, runs)), count)}

    return ensemble(recipe, (0,), [BACKWARD_ERRORS], in_run).readings[0][""]


def test_right_gradients_take_two_runs_however_many_places_there_are() -> None:
    found, runs = examined(_Examination.errors, *[True] * 6)
    # States 0 to 6 and the parameters of six layers, along all of which one central difference is taken.
    assert len(found) == 13 and max(found.values()) <= AGREES
    assert runs == 2


def test_one_place_takes_two_runs_if_the_first_step_agrees() -> None:
    first, runs = examined(lambda e: e._examine(1), True, True, True)
    assert first.loss <= AGREES and first.step <= AGREES and first.reaches == 2
    assert runs == 2


def test_a_contradiction_takes_two_steps_in_each_direction() -> None:
    """One step could be too large. Two differences that agree with each other, and not with the gradient, contradict it."""
    first, runs = examined(lambda e: e._examine(1), True, False, True)
    assert first.loss == pytest.approx(0.5, abs=1e-6)
    assert runs == 2 * 2 * DIRECTIONS


def test_an_error_that_every_step_shows_is_no_kink() -> None:
    """The search along all places stops after two steps."""
    (error, shares), runs = examined(lambda e: e._joint_error([0, 1, 2]), True, False, True)
    assert runs == 4
    assert error > AGREES * sum(shares.values())
