"""What PyTorch itself cannot run on this machine is skipped, with PyTorch's own error as the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pytest_trainability.engine.torch_internals import is_unsupported_here


@contextmanager
def skipped_without_kernel() -> Iterator[None]:
    """Skip the test where an operation of PyTorch inside has no kernel on this processor; other errors are raised.

    Inside stand PyTorch's own operations alone, and nothing of this package, whose errors are failures everywhere.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_unsupported_here(error):
            raise
        pytest.skip(f"PyTorch has no kernel for this operation on this processor: {error}")
