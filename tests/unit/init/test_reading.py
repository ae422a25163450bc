"""What is read from one model under a contract."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import init
from pytest_trainability.init.assignment import assign
from pytest_trainability.init.laws import normal_law
from pytest_trainability.init.places import tensors_of
from pytest_trainability.init.reading import Reading, distance_from_orthogonal, look_of, read_model, without_ends
from pytest_trainability.init.statistics import statistics_of


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def read(rule: Any, weight: Tensor) -> Reading:
    model = nn.ParameterDict({"w": nn.Parameter(weight), "other": nn.Parameter(torch.ones(2, 2))})
    contract = {"w": rule, "other": init.anything("not tested")}
    tensors = tensors_of(model)
    (found,) = read_model(contract, assign(contract, tensors).patterns, tensors)
    return found


@pytest.mark.parametrize(
    ("rule", "weight", "broken"),
    [
        (init.zeros(), torch.zeros(3), ""),
        (init.zeros(), torch.ones(3), "all entries are 1"),
        (init.constant(0.1), torch.full((3,), 0.1, dtype=torch.bfloat16), ""),
        (init.ones(), torch.ones(3).double() + 1e-9, "all entries are 1"),
        (init.ones(), torch.tensor([1.0, math.nan]), "1 of 2 entries are NaN or infinite"),
        (init.identity(), torch.eye(3, 4), ""),
        (init.identity(), torch.eye(3).flip(0), "mean 0.333, std 0.471"),
        (init.copied("other"), torch.ones(2, 2), ""),
        (init.copied("other"), torch.zeros(2, 2), "other entries than other"),
        (init.tied("other"), torch.ones(2, 2), "another parameter than other, with equal entries"),
        (init.tied(), torch.ones(2, 2), "a parameter without an earlier name"),
        (init.normal(), torch.zeros(9), "all entries are 0"),
        (init.uniform(-1.0, 1.0), torch.tensor([0.5, 1.5]), "entries from 0.5 to 1.5, rule -1 to 1"),
        (init.orthogonal(2.0), 2 * nn.init.orthogonal_(torch.empty(8, 5)), ""),
        (init.orthogonal(), 2 * nn.init.orthogonal_(torch.empty(8, 5)), "not orthogonal, gain rms·√8 2, rule 1"),
        (init.orthogonal(), nn.init.orthogonal_(torch.empty(64, 48)).bfloat16(), ""),
        (init.orthogonal(), 1.05 * nn.init.orthogonal_(torch.empty(64, 48)).bfloat16(), "not orthogonal"),
        (init.orthogonal(), torch.ones(3), "which is not that of a matrix"),
        (init.zeros(), torch.eye(2).to_sparse(), "entries that cannot be read"),
    ],
)
def test_what_is_broken_beyond_chance(rule: Any, weight: Tensor, broken: str) -> None:
    found = read(rule, weight).broken
    assert broken in found if broken else not found


def test_a_shared_parameter_must_be_declared() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, layer)
    contract = {"1.bias": init.tied("0.bias"), "**": init.anything("not tested"), "1.weight": init.normal()}
    contract = {"1.bias": init.tied("0.bias"), "1.weight": init.normal(), "**": init.anything("not tested")}
    tensors = tensors_of(model)
    found = {r.name: r.broken for r in read_model(contract, assign(contract, tensors).patterns, tensors)}
    assert found["1.bias"] == ""
    assert "the same parameter as 0.weight" in found["1.weight"]


def test_looks() -> None:
    entries = draw(20_000)
    assert look_of(statistics_of(entries)).endswith("like a normal distribution")
    assert look_of(statistics_of(torch.linspace(-2, 2, 5000))).endswith("uniform within ±2")
    assert look_of(statistics_of(entries[entries.abs() < 2])).endswith("cut off at 2.28 standard deviations")
    assert look_of(statistics_of(entries * (entries > 0))).endswith("% zeros")
    # A few zeros are not said to be a pattern.
    for zeros, look in ((0.04, ", like a normal distribution"), (0.06, ", 6 % zeros")):
        part = entries.clone()
        part[: int(zeros * 20_000)] = 0
        assert look_of(statistics_of(part)).endswith(look)
    assert "kurtosis" in look_of(statistics_of(entries**3))
    assert look_of(statistics_of(torch.ones(3))) == "all entries are 1"
    assert look_of(statistics_of(torch.tensor([1.0, math.nan, math.inf]))) == "2 of 3 entries are NaN or infinite"


@pytest.mark.parametrize(
    ("end", "count", "mean", "kept"),
    [
        (-2.0, 1, 0.0, False),
        (2.0, 2, 0.0, False),
        (-1.5, 1, 0.0, True),
        (-2.0, 50, 0.0, True),
        # The end is five standard deviations from the mean, where entries are rare but possible.
        (2.0, 1, 1.9, True),
        (-2.0, 1, 1.9, False),
    ],
)
def test_entries_at_the_ends_of_a_truncation(end: float, count: int, mean: float, kept: bool) -> None:
    """``trunc_normal_`` of some libraries yields a few of them. More, or others, count."""
    entries = mean + 0.02 * draw(10_000)
    entries[:count] = end
    found = without_ends(entries, statistics_of(entries), normal_law(mean, 0.02))
    assert (end in {found.low, found.high}) is kept


def test_distance_from_orthogonal() -> None:
    """In float32 the error of the product of 64 terms is below 64 · 2⁻²⁴."""
    matrix = nn.init.orthogonal_(torch.empty(64, 32), gain=3.0)
    assert distance_from_orthogonal(matrix, 3.0) < 1e-5
    assert distance_from_orthogonal(matrix.T, 3.0) < 1e-5
    assert distance_from_orthogonal(draw(64, 64) / 8, 1.0) > 0.3
