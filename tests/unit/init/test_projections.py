"""Projections of tensors: they tell places of entries, and are the same for every type, layout and machine."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.init.projections import (
    AT_ONCE,
    BASE,
    NUMBER,
    has_entries,
    projections_of,
    projections_of_model,
)


def values(tensor: Tensor) -> list[float]:
    return list(projections_of(tensor).values)


def test_the_weights_are_those_of_every_machine() -> None:
    """Python's generator is the same everywhere: numbers that are stored in files stay comparable."""
    assert values(torch.tensor([1.0])) == pytest.approx(
        [1.6781672995, 0.0618505189, -0.3604748802, -0.1850309343], abs=1e-9
    )


def test_projections_agree_with_a_sum_over_all_positions() -> None:
    """Over the ends of rows and of parts: each weight is read off with a tensor of a single 1."""
    size = BASE * AT_ONCE + BASE + 7
    x = torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.zeros(NUMBER, dtype=torch.float64)
    places = [0, 1, BASE - 1, BASE, BASE * AT_ONCE - 1, BASE * AT_ONCE, size - 1]
    sparse = torch.zeros(size, dtype=torch.float64)
    for place in places:
        one = torch.zeros(size)
        one[place] = 1.0
        expected += x[place] * torch.tensor(values(one), dtype=torch.float64)
        sparse[place] = x[place]
    assert values(sparse) == pytest.approx((expected / sparse.norm()).tolist(), abs=1e-12)


@pytest.mark.parametrize("size", [10, BASE + 3, 3 * BASE])
def test_other_entries_have_projections_that_differ_by_as_much(size: int) -> None:
    """Mean squares of differences over many pairs are δ²: a mean of 400 squares has a relative error of 7 %."""
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(100):
        x = torch.randn(size, generator=generator, dtype=torch.float64)
        d = torch.randn(size, generator=generator, dtype=torch.float64)
        d *= 0.01 * x.norm() / d.norm()
        squares += [(a - b) ** 2 for a, b in zip(values(x), values(x + d))]
    assert math.sqrt(sum(squares) / len(squares)) == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("move", ["flip", "roll", "swap", "negate"])
def test_the_same_entries_at_other_places_are_told(move: str) -> None:
    x = (torch.arange(64).reshape(8, 8) % 3).triu()
    moved = {"flip": x.flip(0), "roll": x.roll(1, 1), "swap": x[[1, 0, *range(2, 8)]], "negate": -x}[move]
    assert projections_of(moved).rms == projections_of(x).rms
    assert not projections_of(moved).is_near(projections_of(x), 1e-3)


def test_a_single_flipped_entry_of_a_million_is_told() -> None:
    mask = torch.ones(1024, 1024, dtype=torch.bool).tril()
    other = mask.clone()
    other[0, 1] = True
    assert not projections_of(mask).is_near(projections_of(other), 1e-6)
    index = torch.arange(2**20)
    swapped = index.clone()
    swapped[:2] = torch.tensor([1, 0])
    assert projections_of(index).digest != projections_of(swapped).digest


def test_type_layout_and_sign_of_zero_do_not_matter() -> None:
    x = torch.arange(12).reshape(3, 4)
    expected = projections_of(x)
    for other in (x.float(), x.to(torch.bfloat16), x.t().contiguous().t(), x.double() * 1.0, x.to(torch.uint8)):
        assert projections_of(other) == expected
    assert len(expected.digest) == 8
    assert not projections_of(x / 7).digest
    assert projections_of(torch.zeros(3)).values == projections_of(-torch.zeros(3)).values == (0.0,) * NUMBER


def test_float8_is_read() -> None:
    x = torch.arange(8.0)
    assert projections_of(x.to(torch.float8_e4m3fn)) == projections_of(x)


def test_what_is_not_finite_has_a_place_too() -> None:
    mask = torch.full((4, 4), -math.inf).triu(1)
    found = [projections_of(t) for t in (mask, mask.T, torch.full((4, 4), -math.inf), mask.double() * 2)]
    assert len({p.values for p in found}) == 3
    assert all(math.isfinite(v) for p in found for v in p.values)
    largest = torch.tensor([torch.finfo(torch.float64).max, 0.0], dtype=torch.float64)
    assert all(map(math.isfinite, values(largest)))


def test_a_scaled_tensor_has_another_size_only() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, two = projections_of(x), projections_of(2 * x)
    assert one.values == pytest.approx(two.values, abs=1e-14)
    assert two.rms == pytest.approx(2 * one.rms)


def test_complex_entries_count_as_two() -> None:
    z = torch.tensor([1 + 2j, 3 + 4j])
    assert values(z) == values(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert projections_of(z).shape == (2,)


def test_parameters_and_buffers_of_all_types_are_read() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, device="meta"), nn.LazyLinear(2))
    model.register_buffer("mask", torch.tensor([True, False]))
    model.register_buffer("nothing", torch.empty(0))
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert sorted(projections_of_model(model)) == sorted([*names, "mask", "1.num_batches_tracked"])
    assert not has_entries(torch.eye(2).to_sparse())


def test_a_tensor_of_two_names_has_its_entries_under_both() -> None:
    model = nn.ModuleList([nn.Linear(2, 2)] * 2)
    found = projections_of_model(model)
    assert found["0.weight"] is found["1.weight"]
