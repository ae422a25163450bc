"""Floating types by name, as options and arguments have them; torch is not needed to tell them."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError

__all__ = ["as_dtype_name"]

_NAMES = ("float16", "bfloat16", "float32", "float64", "half", "float", "double")


def as_dtype_name(given: Any) -> str:
    """Return the name of a floating type in torch, given the type or its name.

    >>> as_dtype_name("torch.float64")
    'float64'

    Raises:
        UsageError: It is none.
    """
    name = str(given).removeprefix("torch.")
    if name not in _NAMES:
        msg = f"dtype must be a floating type: float32, float64, bfloat16 or float16. Got {given!r}."
        raise UsageError(msg)
    return name
