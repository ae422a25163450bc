"""How many exponents are finite: the rank of a product of Jacobians, counted exactly in whole numbers modulo a prime."""

from __future__ import annotations

import math
from fractions import Fraction

import models
import pytest
import torch
from torch import Tensor, nn
from towers import F64, normal

from pytest_trainability.engine.jacobian.qr_sweep import qr_sweep
from pytest_trainability.engine.jacobian.sample_independence import find_trajectories
from pytest_trainability.engine.jacobian.vjp import random_cotangents
from pytest_trainability.measures.jacobian.singular_values import singular_values

PRIME = 2**61 - 1
BATCH = 8


def tower(width: int, depth: int, seed: int) -> nn.Sequential:
    """Linear layers with ReLU between them: the chain ends behind the last of the former."""
    torch.manual_seed(seed)
    net = nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(width, width, bias=False), nn.ReLU())][:-1])
    for layer in net[::2]:
        nn.init.normal_(layer.get_parameter("weight"), std=math.sqrt(2 / width))
    return net.double()


def exact_ranks(net: nn.Sequential, x: Tensor) -> list[int]:
    """Return the rank of the Jacobian of each sample.

    The weights are whole numbers of some power of two. Modulo a prime near 2^61 their product has the rank that it has, but for a
    chance of some 1e-15.
    """
    rows = [[[int(i == j) for j in range(x.shape[1])] for i in range(x.shape[1])] for _ in x]
    for layer in net:
        x = layer(x)
        for sample, product in enumerate(rows):
            if isinstance(layer, nn.ReLU):
                rows[sample] = [row if lives else [0] * len(row) for row, lives in zip(product, x[sample] > 0)]
            else:
                columns = list(zip(*product))
                rows[sample] = [[dot(row, column) for column in columns] for row in whole(layer)]
    return [rank_of(product) for product in rows]


def whole(layer: nn.Module) -> list[list[int]]:
    scale = 2**100
    return [[int(Fraction(w) * scale) % PRIME for w in row] for row in layer.get_parameter("weight").tolist()]


def dot(row: list[int], column: tuple[int, ...]) -> int:
    return sum(a * b for a, b in zip(row, column)) % PRIME


def rank_of(matrix: list[list[int]]) -> int:
    """Eliminate in the field of numbers modulo the prime."""
    rank = 0
    for column in range(len(matrix)):
        pivot = next((i for i in range(rank, len(matrix)) if matrix[i][column]), None)
        if pivot is None:
            continue
        matrix[rank], matrix[pivot] = matrix[pivot], matrix[rank]
        inverse = pow(matrix[rank][column], -1, PRIME)
        for i in range(rank + 1, len(matrix)):
            factor = matrix[i][column] * inverse % PRIME
            matrix[i] = [(a - factor * b) % PRIME for a, b in zip(matrix[i], matrix[rank])]
        rank += 1
    return rank


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize(
    ("width", "depth", "seed"),
    # Three of these have a column of 1e-3 in front of one that vanishes, which is 1e3 times above round-off then.
    [(6, 6, 0), (12, 10, 0), (12, 10, 3), (16, 12, 0), (16, 12, 7), (24, 10, 0), (10, 40, 0)],
)
def test_as_many_exponents_are_finite_as_the_product_has_dimensions(width, depth, seed, dtype):
    net, x = tower(width, depth, seed), normal(BATCH, width)(torch.Generator().manual_seed(seed))
    expected = exact_ranks(net, x)
    chain = models.cut(net.to(dtype), x.to(dtype)).chain
    trajectories, _ = find_trajectories(chain, BATCH, 0)
    assert trajectories.count == BATCH
    found = qr_sweep(trajectories, random_cotangents(chain, width, seed)).sums()
    assert found.isfinite().sum(dim=1).tolist() == expected
    assert singular_values(trajectories, seed).rank.tolist() == expected
