"""Limits of narrow formats are those of PyTorch's casts."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_trainability.engine.linalg.formats import BFLOAT16, E4M3, E5M2, FLOAT16, Format

FORMATS = {
    FLOAT16: (torch.float16, 65504.0),
    BFLOAT16: (torch.bfloat16, float(torch.finfo(torch.bfloat16).max)),
    E4M3: (torch.float8_e4m3fn, 448.0),
    E5M2: (torch.float8_e5m2, 57344.0),
}


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_the_limits_are_those_of_a_cast(form: Format) -> None:
    dtype, largest = FORMATS[form]
    info = torch.finfo(dtype)
    assert (info.max, info.smallest_normal * info.eps) == (largest, 2.0**form.lowest)
    limit = torch.tensor([form.overflow], dtype=torch.float32)
    below = torch.nextafter(limit, torch.zeros(1))
    assert float(below.to(dtype).float()) == largest
    assert limit.item() == form.overflow, "a float32 number"
    # float8_e4m3fn has no infinity: depending on the version of PyTorch, what is beyond is NaN or the largest number.
    beyond = float(limit.to(dtype).float())
    assert math.isinf(beyond) or (form is E4M3 and (math.isnan(beyond) or beyond == largest))
    lost = torch.tensor([2.0**form.underflow], dtype=torch.float64)
    assert float(lost.to(dtype).double()) == 0 < float((lost * (1 + 2**-10)).to(dtype).double())


def test_the_tie_above_448_rounds_down() -> None:
    """The next number would be 480, whose code is NaN; its last bit is 1."""
    assert 464 < E4M3.overflow < 464.0001
    assert E5M2.overflow == 61440
