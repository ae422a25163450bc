"""Scales of 8-bit formats, and counts of results."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_trainability.engine.linalg.formats import E4M3, E5M2, Format
from pytest_trainability.measures.gradients.fp8 import ResultCounts, scale_exponent


@pytest.mark.parametrize("form", [E4M3, E5M2], ids=lambda form: form.name)
@pytest.mark.parametrize("largest", [1e-30, 0.75, 1.0, 1.75, 1.8, 1.8125, 1.82, 1.875, 1.99, 448.0, 464.0, 465.0, 1e30])
def test_the_scale_is_the_largest_power_of_two_without_overflow(form: Format, largest: float) -> None:
    exponent = scale_exponent(largest, form)
    assert math.ldexp(largest, exponent) < form.overflow <= math.ldexp(largest, exponent + 1)


def test_zeros_masks_and_infinities_have_their_own_counts() -> None:
    counts = ResultCounts()
    counts.add(torch.tensor([0.0, -math.inf, 2.0**-10, 1.0]))
    counts.add(torch.tensor([math.inf, -math.inf, 1e-9]))
    assert (counts.number, counts.nonzero, counts.beyond, counts.flushed, counts.undefined) == (7, 3, 2, 2, 0)
    counts.add(torch.tensor([math.nan, 1.0]))
    assert (counts.number, counts.nonzero, counts.undefined) == (9, 4, 1)
