"""Paths around the steps: the gain is that of the steps, and a path that joins a step counts wherever it leaves the first state.

Each network is linear, so that its Jacobian is made of its matrices. See Note [By-passes] in engine/capture/graph.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.errors import CutError

WIDTH = 5
STEPS = ["one", "two", "three"]
Wiring = Callable[["Net", Tensor], Tensor]


class Step(nn.Module):
    """A linear map of the sum of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.float64) / math.sqrt(WIDTH))

    def forward(self, *terms: Tensor) -> Tensor:
        return sum(terms[1:], terms[0]) @ self.weight


class Net(nn.Module):
    """Three steps, wired by a function."""

    def __init__(self, wiring: Wiring) -> None:
        super().__init__()
        self.one, self.two, self.three = Step(), Step(), Step()
        self.wiring = wiring

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(self, x)


def returns_at_the_end(net: Net, x: Tensor) -> Tensor:
    return x - net.three(net.two(net.one(x)))


def returns_as_a_target(net: Net, x: Tensor) -> Tensor:
    return (net.three(net.two(net.one(x))) - x).square().mean()


def returns_as_a_second_result(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    return net.three(net.two(net.one(x))), x


def a_copy_returns_at_the_end(net: Net, x: Tensor) -> Tensor:
    copy = 3 * x
    return copy + net.three(net.two(net.one(x)))


def returns_to_the_last_step(net: Net, x: Tensor) -> Tensor:
    return net.three(net.two(net.one(x)), x)


def returns_to_the_last_step_and_the_end(net: Net, x: Tensor) -> Tensor:
    return net.three(net.two(net.one(x)), x) + x


def a_copy_leaves_early(net: Net, x: Tensor) -> Tensor:
    copy = 3 * x
    return net.three(net.two(net.one(x)), copy)


def a_copy_leaves_early_and_the_input_is_read(net: Net, x: Tensor) -> Tensor:
    copy = 3 * x
    return net.three(net.two(net.one(x), copy), x)


def a_copy_leaves_late(net: Net, x: Tensor) -> Tensor:
    h = net.one(x)
    copy = 3 * x
    return net.three(net.two(h, x), copy)


def of_all_steps(one: Tensor, two: Tensor, three: Tensor) -> Tensor:
    return one @ two @ three


CASES: list[tuple[Wiring, Callable[[Tensor, Tensor, Tensor], Tensor]]] = [
    (returns_at_the_end, of_all_steps),
    (returns_as_a_target, of_all_steps),
    (returns_as_a_second_result, of_all_steps),
    (a_copy_returns_at_the_end, of_all_steps),
    (returns_to_the_last_step, lambda one, two, three: (one @ two + torch.eye(WIDTH)) @ three),
    (returns_to_the_last_step_and_the_end, lambda one, two, three: (one @ two + torch.eye(WIDTH)) @ three),
    (a_copy_leaves_early, lambda one, two, three: (one @ two + 3 * torch.eye(WIDTH)) @ three),
    (
        a_copy_leaves_early_and_the_input_is_read,
        lambda one, two, three: ((one + 3 * torch.eye(WIDTH)) @ two + torch.eye(WIDTH)) @ three,
    ),
    (
        a_copy_leaves_late,
        lambda one, two, three: ((one + torch.eye(WIDTH)) @ two + 3 * torch.eye(WIDTH)) @ three,
    ),
]


@pytest.mark.parametrize(("wiring", "jacobian"), CASES, ids=[wiring.__name__ for wiring, _ in CASES])
def test_the_singular_values_are_those_of_the_paths_through_the_steps(
    wiring: Wiring, jacobian: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    net = Net(wiring)
    result = measure(
        net, torch.randn(1, WIDTH, dtype=torch.float64), steps=STEPS, measures=["jacobian_singular_values"]
    )
    weights = [step.weight.detach() for step in (net.one, net.two, net.three)]
    expected = torch.linalg.svdvals(jacobian(*weights))
    assert [float(s) for s in result.jacobian_singular_values] == pytest.approx(expected.tolist(), rel=1e-10)
    returning = {
        returns_at_the_end,
        returns_as_a_target,
        a_copy_returns_at_the_end,
        returns_to_the_last_step_and_the_end,
    }
    is_noted = wiring in returning
    assert any("passes by all 3 steps" in note for note in result.notes) == is_noted


def test_a_body_without_gradient_is_not_hidden_by_the_skip_around_it() -> None:
    """Its log gain is the same with and without the skip, and is that of its weights."""

    class Body(nn.Module):
        def __init__(self, *, skip: bool) -> None:
            super().__init__()
            self.layers = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(6)])
            self.skip = skip
            for layer in self.layers:
                nn.init.orthogonal_(layer.weight, gain=1e-3)

        def forward(self, x: Tensor) -> Tensor:
            return x - self.layers(x) if self.skip else self.layers(x)

    x = torch.ones(2, WIDTH)
    for skip in (False, True):
        # An orthogonal matrix with gain g multiplies every norm by g.
        assert measure(lambda skip=skip: Body(skip=skip), x, seeds=2).log_gain == pytest.approx(
            6 * math.log(1e-3), abs=1e-5
        )


def test_a_model_whose_steps_are_cut_off_has_no_chain() -> None:
    class CutOff(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layers(x).detach()

    with pytest.raises(CutError, match="The signal must pass through a step"):
        measure(CutOff, torch.randn(2, WIDTH))
