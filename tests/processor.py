"""What depends on the processor: kernels that are missing, and the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

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


@contextmanager
def other_number_of_threads() -> Iterator[None]:
    """Let PyTorch compute in two threads, or in one if it uses several: sums are added in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
