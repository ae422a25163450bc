"""Factors of a step: the graph between two states is cut where all paths of the signal pass through one tensor."""

from __future__ import annotations

import models
import pytest
import torch
from models import ARCHITECTURES
from products import some_cotangents
from torch import Tensor, nn

from pytest_trainability.engine.capture.factors import factorized, factors_between
from pytest_trainability.engine.capture.operators import operator_name
from pytest_trainability.engine.jacobian.vjp import pull_back


def operations(model: nn.Module, x: Tensor, steps: str = "layers") -> list[list[list[str]]]:
    """Return the operators of each factor of each step."""
    cutting = models.cut(model, x, steps=steps)
    found = factorized(cutting.chain, cutting.graph)
    by_step: list[list[list[str]]] = [[] for _ in cutting.chain.steps]
    for step, factor in zip(found.steps, found.factors):
        by_step[step].append([operator_name(node) for node in factor.nodes])
    return by_step


def test_a_plain_chain_is_cut_at_every_operation() -> None:
    tower = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    assert operations(tower, torch.randn(2, 4)) == [[["Addmm"]], [["Tanh"], ["Addmm"]]]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + torch.tanh(self.layer(x)))


def test_a_branch_and_its_skip_connection_are_one_factor() -> None:
    model = nn.Sequential(Residual(), Residual())
    assert operations(model, torch.randn(2, 4), "blocks") == [[["Addmm", "Tanh", "Add"], ["Relu"]]] * 2


def test_a_function_of_several_operations_is_one_factor() -> None:
    class Swish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.sigmoid()

    model = nn.Sequential(nn.Linear(4, 4), Swish(), nn.Linear(4, 4))
    assert operations(model, torch.randn(2, 4))[1] == [["Sigmoid", "Mul"], ["Addmm"]]


@pytest.mark.parametrize("case", ARCHITECTURES, ids=lambda case: case.id)
def test_the_product_over_factors_is_the_product_over_steps(case: models.Architecture) -> None:
    cutting = models.cut_case(case, dtype=torch.float64)
    chain = cutting.chain
    found = factorized(chain, cutting.graph)
    assert list(found.steps) == sorted(found.steps) and set(found.steps) == set(range(len(chain)))
    whole = taken = some_cotangents(chain, 1)
    for index in range(len(chain), 0, -1):
        whole = pull_back(chain, index, whole)
        for number in [n for n, step in enumerate(found.steps, 1) if step == index - 1][::-1]:
            taken = pull_back(found.chain, number, taken)
        for expected, product in zip(whole, taken):
            assert (expected is None) == (product is None)
            if expected is not None and product is not None:
                # The same operations in the same order; only sums at the ends of the factors may be grouped differently.
                torch.testing.assert_close(product, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))


def test_factors_between_the_same_edge_are_empty() -> None:
    cutting = models.cut(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 4), steps="layers")
    edge = cutting.chain.cut.states[1][0]
    (factor,) = factors_between(cutting.graph, [edge], [edge])
    assert factor.nodes == ()
