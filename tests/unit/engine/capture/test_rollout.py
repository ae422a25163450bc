"""Rollouts: iterated maps whose iterations are the steps of the chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import BATCH, FEATURES, LENGTH, WIDTH, assert_is_reference, calls_of, cell, cut, gru, inputs
from torch import Tensor, nn

from pytest_trainability import Rollout, measure
from pytest_trainability.engine.capture.rollout import kind_of
from pytest_trainability.errors import ModelError, UsageError


def test_a_rollout_equals_a_loop() -> None:
    """The chain from the first state to the last one is that of the loop written by hand."""
    torch.manual_seed(0)
    x = inputs(LENGTH, BATCH, FEATURES)

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell()

        def forward(self, state: Tensor, entry: Tensor) -> Tensor:
            return self.cell(entry, state)

    model = Rollout(Step()).double()
    chain = cut(model, inputs(BATCH, WIDTH), x)
    assert chain.names == calls_of("step")
    maps = [lambda h, t=t: (gru(model.step.cell, x[t, :1], h),) for t in range(LENGTH)]
    others = [lambda h, t=t: (gru(model.step.cell, x[t, 1:], h),) for t in range(LENGTH)]
    h0 = inputs(BATCH, WIDTH)
    assert_is_reference(chain, [((h0[:1],), maps), ((h0[1:],), others)])


@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
def test_states_may_be_trees(kind: str) -> None:
    """The state is position and momentum of a pendulum. The map preserves areas, so that the two exponents add up to zero."""

    def kick(q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        p = p - 0.3 * torch.sin(q)
        return q + 0.3 * p, p

    steps: dict[str, Callable[[Any], Any]] = {
        "tuple": lambda s: kick(*s),
        "list": lambda s: list(kick(*s)),
        "dict": lambda s: dict(zip("qp", kick(s["q"], s["p"]))),
    }
    q, p = inputs(BATCH, 1), inputs(BATCH, 1).flip(0)
    state: Any = {"tuple": (q, p), "list": [q, p], "dict": {"q": q, "p": p}}[kind]
    result = measure(Rollout(steps[kind], steps=20, dt=0.3), (state,), exponents=2)
    # At most the round-off of forty logarithms, divided by a time of six.
    assert sum(float(e) for e in result.lyapunov_spectrum) == pytest.approx(0, abs=1e-12)
    assert result.frame == "per sample" and len(result.steps) == 20


@pytest.mark.parametrize("kind", ["identity", "swap"])
def test_a_map_without_arithmetic_has_steps(kind: str) -> None:
    """The identity and a swap have exponents of zero, and one step per iteration."""
    one, other = inputs(BATCH, 2), inputs(BATCH, 2).flip(0)
    if kind == "identity":
        model, state = Rollout(lambda s: s, steps=6), (one,)
    else:
        model, state = Rollout(lambda s: (s[1], s[0]), steps=6), ((one, other),)
    result = measure(model, state)
    assert float(result.lyapunov_max) == pytest.approx(0, abs=1e-14)
    assert not any("does not flow" in note for note in result.notes)
    assert len(result.steps) == 6


@pytest.mark.parametrize("kept", [lambda a: a, lambda a: 1 * a], ids=["untouched", "copied"])
def test_a_constant_of_motion_is_part_of_the_state(kept: Callable[[Tensor], Tensor]) -> None:
    """A mass or a parameter in the state has exponent zero, which is the largest one if everything else shrinks."""
    rate = torch.full((BATCH, 1), 0.5, dtype=torch.float64)
    model = Rollout(lambda s: (kept(s[0]), s[0] * s[1]), steps=60)
    result = measure(model, ((rate, torch.ones_like(rate)),), exponents=2, alignment=20)
    # ∂(a, ab)/∂(a, b) = [[1, 0], [b, a]] with b = 2^-t: triangular, and coupled by a sum of all b, of order one over forty steps.
    assert [float(e) for e in result.lyapunov_spectrum] == pytest.approx([0, math.log(0.5)], abs=2 / 40)


def test_the_number_of_steps_is_that_of_the_inputs() -> None:
    """Entries of a tree of inputs are passed one after the other."""
    model = Rollout(lambda state, entry: state * entry["a"] + entry["b"])
    entries = {"a": torch.tensor([2.0, 3.0, 4.0]), "b": torch.tensor([0.0, 1.0, 0.0])}
    assert float(model(torch.tensor(1.0), entries)) == (1 * 2 * 3 + 1) * 4
    assert float(Rollout(lambda state, entry: state * entry["a"], steps=3)(torch.tensor(1.0), entries)) == 24


def test_a_module_is_part_of_the_model() -> None:
    step = nn.Linear(2, 2)
    model = Rollout(step, steps=2, dt=0.5)
    assert model.step is step and len(list(model.parameters())) == 2
    assert torch.equal(model(torch.ones(1, 2)), step(step(torch.ones(1, 2))))


class Stepper:
    """An object that can be called."""

    def __call__(self, state: Tensor) -> Tensor:
        return 2 * state


def double(state: Tensor) -> Tensor:
    return 2 * state


@pytest.mark.parametrize(
    ("step", "name"), [(double, "double"), (lambda s: s, "step"), (Stepper(), "Stepper"), (nn.Tanh(), "Tanh")]
)
def test_steps_are_named_after_the_function_or_class(step: Callable[..., Any], name: str) -> None:
    assert kind_of(Rollout(step, steps=1).step) == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 3}, r"step must be a function or a module, step\(state\) or step\(state, input\)\. Got int\."),
        ({"step": nn.Tanh}, r"Got the class Tanh\. Pass an instance, Tanh\(\.\.\.\)"),
        ({"step": nn.GRUCell(2, 2)}, r"Got a cell of torch\.nn, which is called with \(input, state\)\. Wrap it"),
        ({"steps": 0}, r"steps must be a whole number of at least 1.*Got 0\."),
        ({"steps": True}, r"Got True\."),
        ({"steps": 2.0}, r"Got 2\.0\."),
        ({"dt": 0.0}, r"dt must be a positive number: the time of one step\. Got 0\.0\."),
        ({"dt": math.inf}, r"Got inf\."),
        ({"dt": math.nan}, r"Got nan\."),
    ],
)
def test_invalid_rollouts_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Rollout(**{"step": double, "steps": 1, **arguments})


@pytest.mark.parametrize(
    ("steps", "inputs", "message"),
    [
        (None, None, r"needs steps=, or inputs.*Got steps=None and inputs of length none\."),
        (None, [torch.ones(2)], r"Got a list of 1: stack it\."),
        (3, torch.ones(2), r"they must agree\. Got steps=3 and inputs of length 2\."),
        (None, {"a": torch.ones(2), "b": torch.ones(3)}, r"inputs of length 2, 3\."),
        (None, torch.tensor(1.0), r"inputs of length 0\."),
    ],
    ids=["none", "list", "other-number", "unequal", "scalar"],
)
def test_inputs_must_count_the_steps(steps: int | None, inputs: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Rollout(lambda state, entry=None: state, steps)(torch.ones(1), inputs)


@pytest.mark.parametrize(
    "step",
    [
        lambda s: s[:1],
        lambda s: (s, s),
        lambda s: s.float(),
        lambda s: None,
    ],
    ids=["shape", "structure", "dtype", "nothing"],
)
def test_a_step_must_return_a_state_like_its_argument(step: Callable[[Tensor], Any]) -> None:
    with pytest.raises(
        ModelError, match=r"step must return a state like its argument.*It received .*float64.*returned"
    ):
        Rollout(step, steps=2)(torch.ones(2, dtype=torch.float64))
