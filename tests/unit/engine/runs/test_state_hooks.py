"""Functions that see and replace the states of a model while it runs again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_trainability import InapplicableError, Need, Stage, measure
from pytest_trainability.engine.runs.objective import Objective
from pytest_trainability.engine.runs.run import Run
from pytest_trainability.engine.runs.state_hooks import require_depth, visited_states
from pytest_trainability.measures import MEASURES, Measure

X = torch.ones(2, 3)


class Twice(nn.Module):
    """One module that is called four times; the second and third call are inside checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.layer(x)
        second = checkpoint(self.layer, first, use_reentrant=False)
        third = checkpoint(self.layer, second, use_reentrant=False)
        return self.layer(third), first


def in_run(model, read, monkeypatch, **options):
    """Return what a function returns that reads a run at the last stage."""
    need = Need("reading", read, Stage.RERUN)
    found = []
    monkeypatch.setitem(
        MEASURES,
        "reading",
        Measure("reading", "scalar", "", "linear", frozenset({need}), lambda run: found.append(run[need]) or 0.0),
    )
    measure(model, X, measures=["reading"], **options)
    return found[0]


def test_states_are_those_of_the_chain_in_every_run(monkeypatch) -> None:
    def read(run: Run):
        objective, seen = Objective.of(run), []
        objective.inputs_carry_gradient = True

        def visit(index, position, tensor):
            seen.append((index, position, tuple(tensor.shape)))

        with visited_states(run.capture, run.chain, visit):
            objective.gradients()  # which calls the checkpointed modules again
            before = len(seen)
            objective()
        return seen, before

    seen, before = in_run(Twice, read, monkeypatch, steps=nn.Linear)
    forward = [(index, 0, (2, 3)) for index in range(5)]
    assert seen[:5] == seen[before:] == forward


def test_what_the_function_returns_takes_the_place(monkeypatch) -> None:
    def read(run: Run):
        objective = Objective.of(run)
        objective.inputs_carry_gradient = True
        found = []
        for index in range(5):
            with visited_states(run.capture, run.chain, lambda i, _, t, index=index: 0 * t if i == index else None):
                found.append(objective.outputs()[0][0].detach())
        return found, objective.outputs()[0][0].detach(), run.capture.model

    found, plain, model = in_run(Twice, read, monkeypatch, steps=nn.Linear)
    zero = torch.zeros(2, 3)
    for index, result in enumerate(found):
        expected = zero
        for _ in range(4 - index):
            expected = model.layer(expected)
        torch.testing.assert_close(result, expected)
    assert not torch.equal(plain, found[4])
    assert not model.layer._forward_hooks
    assert not model.layer._forward_pre_hooks


def test_a_chain_along_time_has_no_such_states(monkeypatch) -> None:
    def read(run: Run):
        with pytest.raises(InapplicableError, match=r"^mode_gap needs steps along depth\. This chain runs along time"):
            require_depth(run.chain, "mode_gap")
        seen = []
        with visited_states(run.capture, run.chain, lambda *found: seen.append(found)):
            Objective.of(run)()
        return seen

    assert in_run(lambda: nn.RNN(3, 3), read, monkeypatch, steps="time") == []
