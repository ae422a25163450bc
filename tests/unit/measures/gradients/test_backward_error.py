"""When a finite difference confirms a derivative, contradicts it, or decides nothing."""

from __future__ import annotations

import math

import pytest

from pytest_trainability.measures.gradients.backward_error import AGREES, STEPS, compared


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
