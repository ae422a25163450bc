"""Seeded matrices in float64 for tests of numerical linear algebra."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

__all__ = ["gaussian", "rotation"]


@cache
def rotation(size: int, seed: int) -> Tensor:
    """Return a random orthogonal matrix."""
    drawn = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q


def gaussian(rows: int, columns: int, seed: int = 5) -> Tensor:
    """Return a matrix of independent Gaussian entries with variance ``1 / columns``."""
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / math.sqrt(columns)
