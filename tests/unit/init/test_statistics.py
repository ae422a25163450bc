"""Statistics of one tensor, against direct computations in higher precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.init import statistics
from pytest_trainability.init.statistics import is_readable, statistics_of


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.T,
    "sliced": lambda t: t[:, 3:-5],
    "strided": lambda t: t[::2, ::3],
    "expanded": lambda t: t[:, :1].expand(-1, 7),
    "channels last": lambda t: t.view(2, -1, 10, 10).to(memory_format=torch.channels_last),
    "half": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "float64": lambda t: t.double(),
    "complex": lambda t: torch.complex(t, t + 1),
    "conjugate": lambda t: torch.complex(t, t + 1).conj(),
}


@pytest.mark.parametrize("chunk", [7, 2**16])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_statistics_are_those_of_all_entries(
    layout: Callable[[Tensor], Tensor], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of n float64 numbers have a relative error below n·2⁻⁵³, which powers about zero may enlarge a hundred times."""
    monkeypatch.setattr(statistics, "CHUNK_ON_CPU", chunk)
    tensor = layout(draw(40, 50) * 0.02 + 0.01)
    found = statistics_of(tensor)
    entries = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    entries = entries.double().flatten()
    centered = entries - entries.mean()
    exact = pytest.approx
    assert found.count == found.finite == entries.numel()
    assert found.mean == exact(entries.mean().item(), abs=1e-14)
    assert found.variance == exact(centered.square().mean().item(), rel=1e-11)
    assert found.fourth == exact((centered**4).mean().item(), rel=1e-11)
    assert found.rms == exact(entries.square().mean().sqrt().item(), rel=1e-11)
    assert found.std == exact(entries.std(correction=0).item(), rel=1e-11)
    assert (found.low, found.high) == (entries.min().item(), entries.max().item())
    assert found.largest == entries.abs().max().item()
    assert found.zeros == (entries == 0).sum().item()


def test_a_mean_that_is_large_costs_no_digits() -> None:
    """A normalization's weight is drawn from N(1, 1e-4): exact rational arithmetic on the same numbers is the judge."""
    tensor = 1 + 1e-4 * draw(300).double()
    found = statistics_of(tensor)
    entries = [Fraction(x) for x in tensor.tolist()]
    mean = sum(entries) / len(entries)
    powers = [sum((x - mean) ** power for x in entries) / len(entries) for power in (2, 4)]
    assert found.mean == pytest.approx(float(mean), rel=1e-15)
    assert found.variance == pytest.approx(float(powers[0]), rel=1e-11)
    assert found.fourth == pytest.approx(float(powers[1]), rel=1e-11)
    assert found.kurtosis == pytest.approx(float(powers[1] / powers[0] ** 2), rel=1e-10)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1e-30])
def test_a_constant_has_no_spread(value: float) -> None:
    found = statistics_of(torch.full((3, 5), value))
    assert found.is_constant
    assert found.variance == pytest.approx(0, abs=1e-30 * value**2)
    assert found.rms == pytest.approx(abs(torch.tensor(value).item()), rel=1e-15)
    assert math.isnan(found.kurtosis) or value != 0


def test_almost_constant_is_not_constant() -> None:
    assert not statistics_of(torch.tensor([1.0, 1.0 + 2**-23])).is_constant


def test_entries_that_are_not_finite_are_counted_and_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CHUNK_ON_CPU", 2)
    found = statistics_of(torch.tensor([1.0, math.inf, -3.0, -math.inf, math.nan, math.nan, 0.0]))
    assert (found.count, found.not_finite, found.finite, found.zeros) == (7, 4, 3, 1)
    assert (found.low, found.high) == (-3.0, 1.0)
    assert found.mean == pytest.approx(-2 / 3, rel=1e-15)
    assert not found.is_constant
    all_nan = statistics_of(torch.full((3,), math.nan))
    assert (all_nan.not_finite, math.isnan(all_nan.mean), math.isnan(all_nan.rms)) == (3, True, True)
    assert not all_nan.is_constant


def test_float16_does_not_overflow() -> None:
    found = statistics_of(torch.full((100,), 60000.0, dtype=torch.float16))
    assert (found.mean, found.not_finite) == (60000.0, 0)


def test_an_empty_tensor_has_no_moments() -> None:
    found = statistics_of(torch.empty(0, 3))
    assert (found.count, found.zeros) == (0, 0)
    assert math.isnan(found.mean) and math.isnan(found.largest)


def test_the_tensor_is_left_alone() -> None:
    tensor = nn.Parameter(draw(10, 10))
    before, version = tensor.detach().clone(), tensor._version
    statistics_of(tensor)
    assert torch.equal(tensor, before) and tensor._version == version and tensor.grad is None


def test_no_tensor_of_the_same_size_is_made() -> None:
    """The largest allocation is two chunks in float64, whatever the size of the tensor and the order of its dimensions."""
    tensor = draw(1200, 2000).T
    with torch.profiler.profile(profile_memory=True) as profiler:
        statistics_of(tensor)
    largest = max(event.self_cpu_memory_usage for event in profiler.events())
    assert 0 < largest <= 2 * 8 * statistics.CHUNK_ON_CPU


def test_tensors_without_real_numbers_are_not_readable() -> None:
    lazy = nn.LazyLinear(3).weight
    assert is_readable(nn.Parameter(draw(2, 2))) and is_readable(torch.zeros(2, dtype=torch.complex64))
    unreadable = (torch.arange(3), torch.zeros(3, device="meta"), draw(2, 2).to_sparse(), lazy, torch.ones(2).bool())
    assert not any(map(is_readable, unreadable))


EIGHT_BITS = [getattr(torch, name) for name in dir(torch) if name.startswith("float8_")]


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_numbers_of_eight_bits_have_statistics(dtype: torch.dtype) -> None:
    """Of powers of two, which all of these types hold exactly."""
    tensor = torch.tensor([0.5, 1.0, 2.0, 4.0])
    found = statistics_of(tensor.to(dtype))
    assert found == statistics_of(tensor)
    assert is_readable(tensor.to(dtype))


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this PyTorch has no numbers of four bits")
def test_packed_numbers_are_not_readable() -> None:
    assert not is_readable(torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))
