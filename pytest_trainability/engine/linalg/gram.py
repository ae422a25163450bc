"""Inner products of gradients, computed in chunks that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .norms import as_float64, as_real
from .outer_products import OuterProducts, inner_products

__all__ = ["NUMBERS", "Rows", "at_once", "gram_matrix", "pieces"]


NUMBERS = 2**27
"""Largest number of gradient entries in memory at once, 0.5 GiB in float32; exceeded only if two gradients have more."""
PIECE = 2**13
"""Number of columns that are copied to float64 at a time. The rows of 32 samples, 2 MiB, stay in the caches of a processor."""


Rows = Callable[[int, int], Sequence["Tensor | OuterProducts"]]
"""Maps ``(first, last)`` to the rows from ``first`` to ``last - 1``, in parts: a sequence of tensors ``(rows, *shape)``, or of
outer products."""


def at_once(count: int, size: int) -> int:
    """Return how many of ``count`` rows with ``size`` entries to hold: all if they fit, else half of what fits.

    Half, because two chunks are multiplied with each other.
    """
    if count * size <= NUMBERS:
        return count
    return max(1, min(count, NUMBERS // (2 * size)))


def gram_matrix(rows: Rows, count: int, size: int, *, further: Sequence[Tensor] = ()) -> Tensor:
    """Compute the Gram matrix ``K = G Gᵀ`` of the rows of ``G``.

    If the rows do not fit in memory at once, chunks of them are computed again for every pair of chunks: ``n (n + 1) / 2`` times
    instead of n times.

    Args:
        rows: Computes a range of rows.
        count: Number of rows that ``rows`` can compute.
        size: Number of entries of a row.
        further: Additional rows that exist already, in the same parts; they come last in ``K``.

    Returns:
        ``K`` of shape ``(count + number of further rows,) * 2``, in float64 on the CPU.
    """
    step = at_once(count, size)
    whole = count + (len(further[0]) if further else 0)
    K = torch.zeros(whole, whole, dtype=torch.float64, device="cpu")
    for a in range(0, count, step):
        left = rows(a, min(a + step, count))
        for b in range(a, count, step):
            right = left if a == b else rows(b, min(b + step, count))
            # The last rows are multiplied together with the further ones.
            _fill(K, a, b, _products(left, right, further if b + step >= count else ()))
    if further:
        _fill(K, count, count, _products(further, further))
    return K


def _fill(K: Tensor, a: int, b: int, block: Tensor) -> None:
    """Write a block of a symmetric matrix at row a and column b, and its transpose at row b and column a."""
    rows, columns = block.shape
    K[a : a + rows, b : b + columns], K[b : b + columns, a : a + rows] = block, block.T


def _products(
    left: Sequence[Tensor | OuterProducts], right: Sequence[Tensor | OuterProducts], further: Sequence[Tensor] = ()
) -> Tensor:
    """Return ``G [H, F]ᵀ`` for rows ``G``, ``H`` and further rows ``F`` given in parts, in float64 on the CPU."""
    rows, columns, added = (len(side[0]) if side else 0 for side in (left, right, further))
    block = torch.zeros(rows, columns + added, dtype=torch.float64, device="cpu")
    for number, (G, H) in enumerate(zip(left, right)):
        if isinstance(G, OuterProducts):
            beside = further[number : number + 1]
            block += torch.cat([inner_products(G, H), *(inner_products(G, F) for F in beside)], dim=1).cpu()
            continue
        assert isinstance(H, Tensor), "the parts of all rows are of the same kinds"
        sides = [pieces(G), *([] if G is H else [pieces(H)]), *([pieces(further[number])] if further else [])]
        for g, *others in zip(*sides):
            block += (g @ torch.cat([g, *others] if G is H else others).T).cpu()
    return block


def pieces(gradients: Tensor, *, wide: bool = True) -> Iterator[Tensor]:
    """Yield the columns of gradients ``(rows, *shape)``, at most ``PIECE`` at a time; complex ones as two columns.

    Args:
        gradients: Dense gradients.
        wide: Whether to convert to float64. If not, half precision is converted to float32, and other types are kept.
    """
    flat = as_real(gradients.detach()).reshape(len(gradients), -1)
    for first in range(0, flat.shape[1], PIECE):
        piece = flat[:, first : first + PIECE]
        yield as_float64(piece) if wide else piece.to(torch.promote_types(piece.dtype, torch.float32))
