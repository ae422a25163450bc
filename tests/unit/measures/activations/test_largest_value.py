"""The largest value of one tensor, with and without masked entries."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_trainability.measures.activations.largest_value import largest_unmasked


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mask", [-math.inf, "smallest"])
def test_masked_entries_do_not_count(dtype: torch.dtype, mask: float | str) -> None:
    value = torch.finfo(dtype).min if mask == "smallest" else float(mask)
    assert largest_unmasked(torch.tensor([value, -3.0, 2.0], dtype=dtype)) == 3.0
    assert largest_unmasked(torch.tensor([value, value], dtype=dtype)) == 0.0


def test_large_entries_of_both_signs_are_no_masks() -> None:
    assert largest_unmasked(torch.tensor([-1e9, 1e9])) == 1e9
    assert largest_unmasked(torch.tensor([-math.inf, math.inf])) == math.inf
    assert largest_unmasked(torch.tensor([-60000.0, 1.0], dtype=torch.float16)) == 60000.0
    assert largest_unmasked(torch.tensor([-9e7, 1.0])) == 9e7


@pytest.mark.parametrize("other", [0.0, math.inf, -math.inf])
def test_nan_stays(other: float) -> None:
    assert math.isnan(largest_unmasked(torch.tensor([math.nan, other])))
