"""Names of floating types, with and without torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pytest_trainability import UsageError
from pytest_trainability.checks.dtypes import as_dtype_name


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64", "half", "float", "double"])
def test_a_floating_type_is_given_by_name_or_itself(name: str) -> None:
    assert as_dtype_name(name) == as_dtype_name(f"torch.{name}") == name
    assert getattr(torch, as_dtype_name(getattr(torch, name))) is getattr(torch, name)


@pytest.mark.parametrize("given", ["int8", torch.int64, torch.complex64, "single", "", None, 32, "numpy.float32"])
def test_other_types_are_refused(given: Any) -> None:
    with pytest.raises(
        UsageError, match=r"^dtype must be a floating type: float32, float64, bfloat16 or float16\. Got "
    ):
        as_dtype_name(given)
