"""Names of devices in options and arguments. They are checked without importing torch."""

from __future__ import annotations

import re
from typing import Any

from ..errors import UsageError

__all__ = ["as_device_name"]


def as_device_name(given: Any) -> str:
    """Return the name of a device. Whether this machine has the device is known when a model is measured.

    Args:
        given: A device of torch, or its name.

    Raises:
        UsageError: The name has another form.

    >>> as_device_name("cuda:1")
    'cuda:1'
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(given)):
        msg = f"the device must be auto, cpu, cuda, cuda:N or mps. Got {given!r}."
        raise UsageError(msg)
    return str(given)
