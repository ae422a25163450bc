"""Counting entries that half precision would lose, and the loss scale that saves them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pytest_trainability import Measurement, measure
from pytest_trainability.measures.gradients import half_precision
from pytest_trainability.measures.gradients.half_precision import (
    BFLOAT16,
    FLOAT16,
    Entries,
    StateEntries,
    _known_entries,
    entries,
    loss_scale,
)


@pytest.mark.parametrize(("form", "dtype"), [(FLOAT16, torch.float16), (BFLOAT16, torch.bfloat16)])
def test_limits_are_those_of_a_cast(form, dtype) -> None:
    below, limit = torch.tensor(form.overflow, dtype=torch.float64).mul(1 - 2**-20), torch.tensor(form.overflow)
    assert torch.isfinite(below.to(dtype))
    assert torch.isinf(limit.to(dtype))
    lost = torch.tensor(2.0, dtype=torch.float64) ** form.underflow
    assert lost.to(dtype) == 0
    assert (lost * (1 + 2**-10)).to(dtype) > 0


def test_entries_are_counted_by_size() -> None:
    """A power of two belongs to its own exponent, the next larger number to the next one."""
    counted = entries(torch.tensor([1.0, 1.5, -2.0, 0.0, 3.0, math.nan, math.inf]))
    assert (counted.number, counted.nonzero, counted.undefined) == (7, 4, 1)
    assert [counted.flushed(exponent) for exponent in (-1, 0, 1, 2)] == [0, 1, 3, 4]
    assert counted.largest == math.inf
    assert counted.overflowing == (1, 1)


def test_a_scale_does_not_change_the_counts() -> None:
    gradient = torch.tensor([1e-3, -1e-5, 0.0, 70000.0], dtype=torch.float64)
    plain, scaled = entries(gradient), entries(gradient * 2.0**20, exponent=20)
    assert torch.equal(plain.counts, scaled.counts)
    assert (plain.largest, plain.overflowing) == (scaled.largest, scaled.overflowing) == (70000.0, (1, 0))


def test_round_off_is_nonzero_and_is_not_flushed() -> None:
    gradient = torch.tensor([1e-9, 1.0])
    known = torch.tensor([False, True])
    counted = entries(gradient, known=known)
    assert counted.nonzero == 2
    assert counted.flushed(FLOAT16.underflow) == 0


def test_a_complex_entry_counts_as_two_and_a_sparse_one_by_its_shape() -> None:
    assert entries(torch.tensor([1 + 0j, 2 + 3j])).number == 4
    sparse = torch.sparse_coo_tensor([[1]], [5.0], (4,), check_invariants=True)
    assert (entries(sparse).number, entries(sparse).nonzero) == (4, 1)


def test_sums_add_counts() -> None:
    one, other = entries(torch.tensor([1.0, 0.0])), entries(torch.tensor([1e9, math.nan]))
    both, joined = one + other, entries(torch.tensor([1.0, 0.0, 1e9, math.nan]))
    assert torch.equal(both.counts, joined.counts)
    assert (both.nonzero, both.number, both.largest) == (joined.nonzero, joined.number, joined.largest)
    assert (both.overflowing, both.undefined) == (joined.overflowing, joined.undefined)


@pytest.mark.parametrize(("share", "exponent"), [(0.0, -11), (0.01, -1), (0.5, math.inf)])
def test_the_exponent_that_flushes_a_share(share: float, exponent: float) -> None:
    """One entry of 2^-10 and 99 ones: flushing up to 2^-11 loses none, up to 2^-1 one percent."""
    gradient = torch.cat([torch.tensor([2.0**-10]), torch.ones(99 if share < 0.5 else 1)])
    counted = entries(gradient)
    if share == 0.5:
        assert counted.flush_exponent(share) == -1
        assert entries(torch.zeros(3)).flush_exponent(share) == exponent
    else:
        assert counted.flush_exponent(share) == exponent


def scale(*values: float) -> float:
    return loss_scale([entries(torch.tensor(values, dtype=torch.float64))])


def test_the_loss_scale_is_the_smallest_power_of_two_that_saves_all_but_a_hundredth() -> None:
    assert scale(1.0, 2.0**-24) == 1.0
    assert scale(1.0, 2.0**-25) == 2.0
    assert scale(2.0**-30) == 2.0**6
    assert scale(*[1.0] * 99, 1e-12) == 1.0


def test_overflow_limits_the_loss_scale() -> None:
    assert scale(65519.0) == 1.0
    assert scale(65520.0) == 0.5
    assert scale(2.0**-30, 65504.0) == math.inf
    assert scale(1.0, math.inf) != scale(1.0, math.inf)
    assert math.isnan(scale(1.0, math.nan))
    assert loss_scale([]) == 1.0


def test_states_count_the_entries_of_all_their_tensors() -> None:
    observed = StateEntries()
    edges: list = ["first", "second", "not observed"]
    observed.count(edges[0], torch.tensor([70000.0, 1.0]))
    observed.count(edges[1], torch.tensor([1e39, 2.0, -3.0], dtype=torch.float64))
    assert observed.fractions(edges) == {"float16": 2 / 5, "bfloat16": 1 / 5}
    assert observed.fractions(edges[2:]) == {}
    observed.count(edges[2], torch.tensor([math.nan]))
    assert all(math.isnan(share) for share in observed.fractions(edges).values())


def test_entries_of_zeros_have_no_largest_value() -> None:
    counted = entries(torch.zeros(0))
    assert isinstance(counted, Entries)
    assert (counted.number, counted.nonzero, counted.largest) == (0, 0, 0.0)


class OneStep:
    """The precision of a chain of one step in float32."""

    def __len__(self) -> int:
        return 1

    def epsilon(self, index: int) -> float:
        return torch.finfo(torch.float32).eps


def test_entries_that_change_with_the_roundings_are_unknown_unless_they_are_nearly_subnormal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those below 2^8 times the smallest normal number have few digits, so that a change says nothing."""
    limit = 2.0**8 * torch.finfo(torch.float32).tiny
    plain = torch.tensor([1.0, 1.0, 1.0, limit, limit / 2])
    change = torch.tensor([1.0, 1.009, 1.011, 1.5, 1.5])

    def backward(run: Any, factor: float) -> dict[str, torch.Tensor]:
        return {"w": plain * change * factor}

    monkeypatch.setattr(half_precision, "_backward", backward)
    run: Any = SimpleNamespace(chain=OneStep())
    found = _known_entries(run, {"w": plain}, 1.0)
    assert found["w"].tolist() == [True, True, False, False, True]


PREFIX = "float16 gradient of "


def test_an_unused_parameter_has_no_entries() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    found = measure(model, torch.randn(4, 3), loss=torch.var, measures=["underflow_fraction"]).underflow_fraction
    assert {f"{PREFIX}{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")} <= {*found}
    assert f"{PREFIX}unused" not in found


def chain_of_scalars(factors: list[float], dtype: torch.dtype) -> Measurement:
    layers = [nn.Linear(1, 1, bias=False).to(dtype) for _ in factors]
    for layer, factor in zip(layers, factors):
        nn.init.constant_(layer.weight, factor)
    names = ["underflow_fraction", "smallest_loss_scale"]
    return measure(nn.Sequential(*layers), torch.ones(1, 1, dtype=dtype), loss=torch.sum, measures=names)


@pytest.mark.parametrize(("dtype", "exponent"), [(torch.float32, -160), (torch.float64, -1200)])
def test_a_gradient_below_the_smallest_number_is_computed_from_a_larger_loss(dtype: torch.dtype, exponent: int) -> None:
    """The gradient ``2^exponent`` is zero in the type of the model. It is no dead path: float16 would lose it."""
    result = chain_of_scalars([1.0, *[2.0 ** (exponent / 8)] * 8], dtype)
    assert result.underflow_fraction[f"{PREFIX}0.weight"].mean == 1.0


def test_a_gradient_that_is_zero_in_truth_has_no_fraction() -> None:
    result = chain_of_scalars([1.0, 0.0, 1.0], torch.float64)
    assert f"{PREFIX}1.weight" in result.underflow_fraction
    assert f"{PREFIX}0.weight" not in result.underflow_fraction
    assert result.smallest_loss_scale == 1.0
