"""Statistics of one tensor: its moments and extremes, accumulated in float64 in one pass over memory, without a copy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine.torch_internals import is_lazy, is_packed
from ..engine.trees import is_float
from ..records.tensors import TensorStatistics

__all__ = ["TensorStatistics", "is_readable", "statistics_of"]

CHUNK_ON_CPU = 2**17
"""Entries that are read at once on the CPU: a megabyte in float64, which a second-level cache holds."""
CHUNK_ELSEWHERE = 2**24
"""Entries that are read at once on another device, where each operation has a fixed cost."""
MAX_OFFSET = 10.0
"""Largest mean, in standard deviations, for which powers about zero lose no more than four digits of sixteen."""


def is_readable(tensor: Tensor) -> bool:
    """Whether the entries of a tensor are floating-point or complex numbers that can be read.

    Returns:
        False for integers and booleans, numbers of four bits, sparse and nested tensors, those on the meta device and those of
        lazy modules.
    """
    return (
        isinstance(tensor, Tensor)
        and not is_lazy(tensor)
        and is_float(tensor)
        and not is_packed(tensor)
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and not tensor.is_nested
    )


def statistics_of(tensor: Tensor) -> TensorStatistics:
    """Return the statistics of a tensor of floating type, real or complex.

    The entries are read in chunks, which are converted to float64. Powers are summed about zero, and once more about the mean if
    the mean is so large compared with the standard deviation that digits would be lost.

    Args:
        tensor: The tensor, of any shape, stride and device. See :func:`is_readable`.

    Returns:
        Its statistics. An empty tensor has none: its count is 0, and its moments are NaN.

    Source: Chan, Golub & LeVeque, The American Statistician 37, 242 (1983), for the loss of digits and the second pass.
    """
    tensor = tensor.detach()
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    about_zero = _sums(tensor, 0.0)
    if not about_zero.finite:
        nan = math.nan
        return TensorStatistics(tensor.numel(), tensor.numel(), 0, nan, nan, nan, nan, nan)
    mean = about_zero.first / about_zero.finite
    is_offset = mean**2 > MAX_OFFSET**2 * (about_zero.second / about_zero.finite - mean**2)
    sums = _sums(tensor, mean) if is_offset else about_zero
    shift = sums.first / sums.finite
    second, third, fourth = (power / sums.finite for power in (sums.second, sums.third, sums.fourth))
    return TensorStatistics(
        count=tensor.numel(),
        not_finite=tensor.numel() - int(about_zero.finite),
        zeros=int(about_zero.zeros),
        mean=mean + shift if is_offset else mean,
        variance=max(second - shift**2, 0.0),
        fourth=max(fourth - 4 * shift * third + 6 * shift**2 * second - 3 * shift**4, 0.0),
        low=about_zero.low,
        high=about_zero.high,
    )


class _Sums(NamedTuple):
    """Sums of the powers of the finite entries about some number, and the extremes of the entries."""

    finite: float
    zeros: float
    first: float
    second: float
    third: float
    fourth: float
    low: float
    high: float


def _sums(tensor: Tensor, center: float) -> _Sums:
    """Return the sums of all chunks of a tensor, with powers about ``center``."""
    size = CHUNK_ON_CPU if tensor.device.type == "cpu" else CHUNK_ELSEWHERE
    with torch.no_grad():
        # One piece of memory for all chunks: new memory would take longer than the sums.
        room = torch.empty(2, min(size, tensor.numel()), dtype=torch.float64, device=tensor.device)
        rows = [_sums_of_chunk(chunk.flatten(), center, room) for chunk in _chunks(tensor, size)]
    if not rows:
        return _NOTHING
    finite, zeros, first, second, third, fourth, lows, highs = zip(*rows)
    sums = map(math.fsum, (finite, zeros, first, second, third, fourth))
    return _Sums(*sums, min(lows), max(highs))  # type: ignore[call-arg]


_NOTHING = _Sums(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, math.inf, -math.inf)


def _sums_of_chunk(chunk: Tensor, center: float, room: Tensor) -> _Sums:
    """Return the sums of a chunk of one dimension, which are computed in two rows of memory."""
    if chunk.dtype.itemsize == 1:
        # PyTorch compares no numbers of eight bits.
        chunk = chunk.float()
    low, high = map(float, chunk.aminmax())
    if not math.isfinite(low + high):
        chunk = chunk[chunk.isfinite()]
        if not chunk.numel():
            return _NOTHING
        low, high = map(float, chunk.aminmax())
    entries, squares = room[0, : chunk.numel()].copy_(chunk), room[1, : chunk.numel()]
    if center:
        entries -= center
    torch.mul(entries, entries, out=squares)
    return _Sums(
        finite=chunk.numel(),
        zeros=chunk.numel() - int(chunk.count_nonzero()),
        first=float(entries.sum()),
        second=float(squares.sum()),
        third=float(torch.dot(squares, entries)),
        fourth=float(torch.dot(squares, squares)),
        low=low,
        high=high,
    )


def _chunks(tensor: Tensor, size: int) -> Iterator[Tensor]:
    """Yield views of all entries of a tensor, with at most ``size`` entries each."""
    tensor = _by_stride(tensor)
    if tensor.is_contiguous():
        flat = tensor.view(-1)
        yield from (flat[start : start + size] for start in range(0, len(flat), size))
    elif tensor.numel() <= size:
        yield tensor
    else:
        for part in tensor.unbind(0):
            yield from _chunks(part, size)


def _by_stride(tensor: Tensor) -> Tensor:
    """Return a view whose dimensions are in the order of memory: the entries of a transposed matrix are read row by row."""
    strides = tensor.stride()
    return tensor.permute(sorted(range(tensor.dim()), key=lambda dim: -strides[dim]))
