"""Numbers that a result is proportional to: each with its factor, the parameter that it is computed from, and its functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.engine.capture.graph import Graph
from pytest_trainability.engine.capture.multipliers import Multiplier, multipliers
from pytest_trainability.engine.capture.recorder import edge_of

P = nn.Parameter(torch.tensor(0.5))
VECTOR = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
W = nn.Parameter(torch.ones(3, 3))


def found(function: Callable[[Tensor], Tensor]) -> list[Multiplier]:
    x = torch.ones(4, 3, requires_grad=True)
    result = function(x * 1.0 + 0.0)
    graph = Graph([edge_of(result)])
    leaf = torch.autograd.graph.get_gradient_edge(x)
    signal = graph.downstream([(leaf.node, leaf.output_nr)])
    return list(multipliers(graph, signal, edge_of(result)))


@pytest.mark.parametrize(
    ("function", "factor", "operators", "divides"),
    [
        (lambda x: P * x.tanh(), 0.5, (), False),
        (lambda x: x.tanh() / P, 2.0, (), True),
        (lambda x: P.exp() * x.tanh(), math.exp(0.5), ("Exp",), False),
        (lambda x: (P.exp() * x.tanh()) @ x.T, math.exp(0.5), ("Exp",), False),
        (lambda x: P.exp().clamp(max=1.2) * x.tanh(), 1.2, ("Exp", "Clamp"), False),
        (lambda x: P * x.tanh() + 3, 0.5, (), False),
    ],
    ids=["times", "divided", "exponential", "product of two", "two functions", "shifted"],
)
def test_a_number_that_is_computed_from_a_parameter(
    function: Callable[[Tensor], Tensor], factor: float, operators: tuple[str, ...], divides: bool
) -> None:
    (number,) = found(function)
    assert number.factor == pytest.approx(factor)
    assert number.parameter is P
    assert number.value == 0.5
    assert (number.operators, number.divides) == (operators, divides)
    if len(operators) < 2:
        # The parameter's own value gives the factor that it has.
        assert number.value_for(number.factor) == pytest.approx(0.5)
    else:
        assert math.isnan(number.value_for(1.0))


def test_a_constant_of_the_code_has_no_parameter() -> None:
    (number,) = found(lambda x: 7 * x.tanh())
    assert (number.factor, number.parameter) == (7, None)
    assert math.isnan(number.value)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (P * x).tanh(),
        lambda x: (P * x) @ W,
        lambda x: VECTOR * x.tanh(),
        lambda x: P * x.tanh() + x,
        lambda x: x * x,
        lambda x: P / x,
    ],
    ids=["before a function", "before weights", "a vector", "one of two terms", "the signal itself", "a divisor"],
)
def test_no_number_that_the_whole_result_is_proportional_to(function: Callable[[Tensor], Tensor]) -> None:
    assert not found(function)
