"""Names of floating types in options and arguments. They are checked without importing torch."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError

__all__ = ["as_dtype_name"]

_NAMES = ("float16", "bfloat16", "float32", "float64", "half", "float", "double")


def as_dtype_name(given: Any) -> str:
    """Return the name of a floating type.

    Args:
        given: A floating type of torch, or its name with or without ``torch.``.

    Raises:
        UsageError: This is not the name of a floating type.

    >>> as_dtype_name("torch.float64")
    'float64'
    """
    name = str(given).removeprefix("torch.")
    if name not in _NAMES:
        msg = f"dtype must be a floating type: float32, float64, bfloat16 or float16. Got {given!r}."
        raise UsageError(msg)
    return name
