"""Norms of many numbers and of very small and large ones, and views of stored, complex and other numbers."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_trainability.engine.linalg.norms import (
    are_finite,
    as_complex,
    as_float64,
    as_real,
    is_zero,
    norm,
    stored_values,
)


@pytest.mark.parametrize("size", [1, 1000, 1024, 1025, 100_000, 20_000_000])
def test_the_norm_of_many_numbers_is_that_of_float64(size: int) -> None:
    """A plain sum of squares in float32 would be a thousandth too small for twenty million numbers."""
    numbers = torch.randn(size, generator=torch.Generator().manual_seed(0))
    expected = float(numbers.double().norm())
    # Blocks are summed in float32 with up to 1024 roundings, usually their square root; errors of blocks are independent.
    assert float(norm(numbers)) == pytest.approx(expected, rel=4 * 2**-24, abs=0)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-20, 1e18, 1e30])
def test_squares_outside_of_the_range_of_float32(scale: float) -> None:
    numbers = torch.linspace(-1, 1, 3000) * scale
    assert float(norm(numbers)) == pytest.approx(float(numbers.double().norm()), rel=2**-24, abs=0)


def test_infinity_and_nan_are_kept() -> None:
    numbers = torch.ones(5000)
    numbers[3] = torch.inf
    assert float(norm(numbers)) == torch.inf
    numbers[4] = torch.nan
    assert norm(numbers).isnan()


def test_the_norm_along_a_dimension() -> None:
    """In float64 on the CPU, also for complex numbers and half precision."""
    numbers = torch.randn(3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    found = norm(numbers, dim=1)
    assert found.dtype == torch.float64 and found.shape == (3,)
    # Squares of float32 numbers are exact in float64: four roundings of a sum.
    assert found.tolist() == pytest.approx(numbers.abs().double().square().sum(1).sqrt().tolist(), rel=2**-23)
    assert norm(torch.full((2, 2), 300.0, dtype=torch.float16), dim=0).tolist() == pytest.approx(
        [300 * math.sqrt(2)] * 2
    )


def test_the_norm_of_a_scalar_and_of_nothing() -> None:
    assert float(norm(torch.tensor(-3.0))) == 3.0
    assert float(norm(torch.zeros(0))) == 0.0


def test_only_what_a_device_cannot_compute_is_moved() -> None:
    """Every device but MPS has float64. The meta device refuses to be copied."""
    numbers = torch.ones(3, device="meta")
    assert norm(numbers).is_meta and norm(numbers).dtype == torch.float64
    assert as_float64(numbers).is_meta and as_float64(numbers).dtype == torch.float64


def test_stored_values_of_a_sparse_tensor() -> None:
    """Values at the same place are summed; the norm is that of the dense tensor."""
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[1, 1, 3]]), torch.tensor([2.0, 1.0, 4.0]), (5,), check_invariants=True
    )
    assert stored_values(sparse).tolist() == [3.0, 4.0]
    assert float(norm(sparse)) == 5.0


def test_stored_values_carry_no_gradient() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    assert not stored_values(weight).requires_grad
    assert stored_values(weight).data_ptr() == weight.data_ptr()


def test_complex_numbers_are_pairs_of_real_ones() -> None:
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    assert as_real(numbers).tolist() == [[1, 2], [3, -4]]
    assert as_real(numbers.conj()).tolist() == [[1, -2], [3, 4]]
    real = torch.ones(2)
    assert as_real(real) is real


def test_real_numbers_in_float64() -> None:
    found = as_float64(torch.tensor([1.5], dtype=torch.bfloat16))
    assert found.dtype == torch.float64 and found.tolist() == [1.5]


def test_pairs_at_an_odd_place_of_a_storage_become_complex() -> None:
    """A slice behind three real numbers: PyTorch's own view would need an even place."""
    numbers = torch.arange(7.0)
    assert as_complex(numbers[3:].reshape(2, 2)).tolist() == [3 + 4j, 5 + 6j]
    z = torch.randn(4, 2, dtype=torch.complex64)
    assert torch.equal(as_complex(as_real(z)), z)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["sparse_csr", "sparse_csc", "nested", "jagged", "mkldnn", "quantized"])
def test_the_stored_values_of_every_layout_have_the_norm_of_the_tensor(layout: str) -> None:
    numbers = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    rows = [torch.tensor([3.0]), torch.tensor([0.0, 4.0])]
    made = {
        "nested": lambda: torch.nested.nested_tensor(rows),
        "jagged": lambda: torch.nested.nested_tensor(rows, layout=torch.jagged),
        "mkldnn": numbers.to_mkldnn,
        "quantized": lambda: torch.quantize_per_tensor(numbers, 0.5, 0, torch.qint8),
    }
    tensor = made[layout]() if layout in made else numbers.to_sparse(layout=getattr(torch, layout))
    assert float(norm(tensor)) == pytest.approx(5.0)


def test_numbers_of_all_types_are_finite_or_not() -> None:
    for name in (name for name in dir(torch) if name.startswith(("float8_", "float16", "bfloat16", "float32"))):
        dtype = getattr(torch, name)
        assert are_finite(torch.tensor([1.0, 2.0]).to(dtype))
        assert not are_finite(torch.tensor([1.0, float("nan")]).to(dtype))
    assert are_finite(torch.ones(2, 2).to_sparse())
    largest = torch.finfo(torch.float32).max
    assert are_finite(torch.tensor([largest, largest, -largest])) and are_finite(torch.tensor([largest, largest]))
    assert not are_finite(torch.tensor([math.inf, -math.inf])) and not are_finite(torch.tensor([1.0, math.inf]))
    if hasattr(torch, "float4_e2m1fn_x2"):
        assert are_finite(torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))


def test_zero_is_exactly_zero() -> None:
    assert is_zero(None) and is_zero(torch.zeros(2)) and not is_zero(torch.tensor([0.0, 1e-45]))
    assert not is_zero(torch.tensor([torch.nan]))
