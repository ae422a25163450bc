"""Tangent dynamics, against dense Jacobians."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pytest_trainability.dynamics import tangent
from pytest_trainability.dynamics.tangent import random_frame, tangent_sweep
from pytest_trainability.errors import ModelError

F64 = torch.float64
WEIGHT = torch.randn(5, 5, dtype=F64, generator=torch.Generator().manual_seed(0))


def step(x: Tensor, number: int) -> Tensor:
    """A nonlinear map that depends on the number of the step."""
    return torch.tanh(x @ WEIGHT.T + 0.1 * number)


def start(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("count", [1, 3, 5], ids=["by columns", "by rows", "all"])
def test_one_trajectory_is_the_qr_of_dense_jacobians(count: int) -> None:
    """``J_t Q_{t-1} = Q_t R_t``, with diagonals up to sign; three steps in float64."""
    state = start(5)
    frame = random_frame(state, count, 0, batched=False)
    Q, x = frame[0].clone(), state
    for number, (after, logs) in zip((4, 5, 6), tangent_sweep(step, state, frame, range(4, 7), batched=False)):
        jacobian = torch.autograd.functional.jacobian(lambda s, n=number: step(s, n), x)
        Q, R = torch.linalg.qr(jacobian @ Q)
        x = step(x, number)
        torch.testing.assert_close(after, x, rtol=0, atol=0)
        torch.testing.assert_close(logs[0], R.diagonal().abs().log(), rtol=0, atol=1e-12)
    # The frame that was passed in holds the last one.
    torch.testing.assert_close((frame[0].T @ Q).abs(), torch.eye(count, dtype=F64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [2, 7])
def test_trajectories_of_a_batch_are_those_alone(count: int) -> None:
    states = start(3, 5)
    together = random_frame(states, count, 0, batched=True)
    found = torch.stack([logs for _, logs in tangent_sweep(step, states, together, range(4), batched=True)], dim=1)
    for state, logs in zip(states, found):
        alone = random_frame(state, count, 0, batched=False)
        expected = torch.cat([own for _, own in tangent_sweep(step, state, alone, range(4), batched=False)])
        torch.testing.assert_close(logs, expected, rtol=0, atol=1e-12)


def coupled(state: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """A map of two tensors, one of which does not depend on the state."""
    joined = torch.cat([state["h"], state["c"].flatten(1)], dim=1)
    return {"h": torch.sin(joined[:, :3] * 2), "c": (joined[:, 1:5] ** 2).reshape(-1, 2, 2) + number}


def half_constant(state: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    return coupled(state, number) | {"h": torch.ones_like(state["h"])}


def half_unread(state: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """A map that does not read one of its two tensors."""
    return {"h": torch.sin(state["h"] * 2), "c": state["h"][:, :2, None].expand(2, 2, 2) ** 2}


@pytest.mark.parametrize("function", [coupled, half_constant, half_unread])
def test_rows_and_columns_of_a_jacobian_give_the_same_products(function: Any) -> None:
    """Two routes to ``J Q``: the whole Jacobian by rows, and column by column."""
    state = {"h": start(2, 3), "c": start(2, 2, 2)}
    before = [t.requires_grad_() for t in state.values()]
    after = list(function(state, 1).values())
    frame = random_frame(state, 4, 0, batched=True)
    rows, columns = (push(before, after, frame, batched=True) for push in (tangent._by_rows, tangent._by_columns))
    assert rows.shape == (2, 7, 4)
    torch.testing.assert_close(rows, columns, rtol=0, atol=1e-13)
    if function is half_constant:
        assert not rows[:, :3].any() and rows[:, 3:].any()


@pytest.mark.parametrize("batched", [True, False])
def test_splitting_and_joining_a_frame_are_inverse(batched: bool) -> None:
    state = {"scale": start(2), "x": start(2, 3, 2)}
    frame = random_frame(state, 3, 0, batched=batched)
    columns = tangent._split(frame, state, batched=batched)
    assert [tuple(c.shape) for c in columns] == [(3, 2), (3, 2, 3, 2)]
    assert torch.equal(tangent._join(columns, batched=batched), frame)


def test_a_random_frame_is_orthonormal_and_equal_for_every_trajectory() -> None:
    frame = random_frame(start(4, 3).float(), 9, 7, batched=True)
    assert frame.shape == (4, 3, 3) and frame.dtype == torch.float32
    assert torch.allclose(frame.mT @ frame, torch.eye(3), atol=1e-6)
    assert torch.equal(frame[0], frame[3])
    frame[0] = 0
    assert frame[1].any(), "trajectories do not share memory"
    assert random_frame(start(4, 3), 2, 7, batched=False).shape == (1, 12, 2)
    assert not torch.equal(random_frame(start(3), 3, 1, batched=False), random_frame(start(3), 3, 2, batched=False))


def test_a_direction_that_vanishes_has_minus_infinity() -> None:
    factors = torch.tensor([2.0, 0.0], dtype=F64)
    frame = torch.eye(2, dtype=F64)[None].clone()
    ((after, logs),) = tangent_sweep(lambda x, number: factors * x, start(2), frame, range(1), batched=False)
    assert logs.tolist() == [[pytest.approx(math.log(2)), -math.inf]]
    assert not after.requires_grad


def test_a_step_that_leaves_autograd_is_an_error() -> None:
    sweep = tangent_sweep(lambda x, number: x.detach() * 2, start(2), torch.eye(2)[None], range(3), batched=False)
    with pytest.raises(ModelError, match=r"must depend on the state in the autograd graph.*Look for \.detach"):
        next(sweep)


def test_gradients_are_enabled_for_the_step() -> None:
    with torch.no_grad():
        ((_, logs),) = tangent_sweep(
            step, start(5), random_frame(start(5), 2, 0, batched=False), range(1), batched=False
        )
    assert logs.isfinite().all()
