"""Inner products of gradients that need not fit in memory all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .norms import as_float64, as_real

__all__ = ["NUMBERS", "Rows", "at_once", "gram_matrix", "pieces"]


NUMBERS = 2**27
"""So many entries of gradients at most live at once, 0.5 GiB in float32; more where two gradients alone have more."""
PIECE = 2**18
"""Of so many columns a copy in float64 is made at a time."""


Rows = Callable[[int, int], Sequence[Tensor]]
"""Takes the numbers of a first and a last row (which is left out), and returns these rows, in parts: ``(rows, *shape)`` each."""


def at_once(count: int, size: int) -> int:
    """Return how many of ``count`` rows of ``size`` entries to hold: all, or half of what fits, for pairs are multiplied."""
    if count * size <= NUMBERS:
        return count
    return max(1, min(count, NUMBERS // (2 * size)))


def gram_matrix(rows: Rows, count: int, size: int, *, further: Sequence[Tensor] = ()) -> Tensor:
    """Return ``K = G Gᵀ`` of ``count`` rows with ``size`` entries each.

    Rows that do not fit at once are computed again for every pair of chunks, ``n (n + 1) / 2`` chunks in place of n.

    Args:
        rows: Computes some of them.
        count: How many there are.
        size: Entries of each.
        further: Rows that are there already and come after these, in the same parts.

    Returns:
        ``(count + further, count + further)`` in float64 on the CPU.
    """
    step = at_once(count, size)
    whole = count + (len(further[0]) if further else 0)
    K = torch.zeros(whole, whole, dtype=torch.float64, device="cpu")
    for a in range(0, count, step):
        left = rows(a, min(a + step, count))
        for b in range(a, count, step):
            right = left if a == b else rows(b, min(b + step, count))
            _fill(K, a, b, _products(left, right))
        if further:
            _fill(K, a, count, _products(left, further))
    if further:
        _fill(K, count, count, _products(further, further))
    return K


def _fill(K: Tensor, a: int, b: int, block: Tensor) -> None:
    """Write a block of a symmetric matrix, whose first entry is at row a and column b, and its mirror image."""
    rows, columns = block.shape
    K[a : a + rows, b : b + columns], K[b : b + columns, a : a + rows] = block, block.T


def _products(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return ``G Hᵀ`` of rows in parts, in float64 on the CPU."""
    rows, columns = (len(side[0]) if side else 0 for side in (left, right))
    block = torch.zeros(rows, columns, dtype=torch.float64, device="cpu")
    for G, H in zip(left, right):
        for g, h in zip(pieces(G), pieces(H)):
            block += (g @ h.T).cpu()
    return block


def pieces(gradients: Tensor) -> Iterator[Tensor]:
    """Yield the columns of gradients ``(rows, *shape)`` in float64, some at a time; a complex number is two columns."""
    flat = as_real(gradients.detach()).reshape(len(gradients), -1)
    for first in range(0, flat.shape[1], PIECE):
        yield as_float64(flat[:, first : first + PIECE])
