"""The nearest product with weights behind a result, with its bias and its number of inputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.engine.capture.chain import dependent_nodes, graph_of
from pytest_trainability.engine.capture.products import Product, is_constant, nearest_products, root_mean_square
from pytest_trainability.engine.capture.recorder import capture, edge_of


def products_of(model: nn.Module, x: Tensor) -> list[Product]:
    captured = capture(model, (x,), {})
    graph = graph_of(captured)
    return list(nearest_products(graph, dependent_nodes(captured, graph), edge_of(captured.output)[0]))


def test_products_come_from_the_nearest_on() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2), nn.ReLU())
    found = products_of(model, torch.randn(4, 3))
    assert [product.weight is layer.weight for product, layer in zip(found, (model[2], model[0]))] == [True, True]
    assert [product.fan_in for product in found] == [5, 3]
    assert found[0].bias is model[2].bias
    assert "Relu" in found[0].behind and "Tanh" not in found[0].behind


def test_a_kernel_counts_its_inputs() -> None:
    (product,) = products_of(nn.Conv2d(3, 4, 5), torch.randn(2, 3, 8, 8))
    assert product.fan_in == 75


@pytest.mark.parametrize(
    ("weight", "constant"), [(torch.ones(3, 2), True), (torch.zeros(2), False), (torch.eye(2), False)]
)
def test_constant_weights(weight: Tensor, constant: bool) -> None:
    assert is_constant(weight) == constant


def test_the_root_mean_square_of_a_complex_weight() -> None:
    assert root_mean_square(torch.tensor([3 + 4j, 0])) == pytest.approx(5 / math.sqrt(2))
