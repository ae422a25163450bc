"""Projections of a tensor: a few numbers that change if its entries change places, whatever their sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from zlib import crc32

import torch
from torch import Tensor, nn

from ..engine.torch_internals import is_lazy, is_packed
from ..records.tensors import Projections

__all__ = ["has_entries", "projections_of", "projections_of_model"]

NUMBER = 4
"""Number of projections. Other entries have the same ones by chance where all of these agree."""
BASE = 4096
"""Base of the numerals of positions. A position has a weight for each of its digits."""
DIGITS = 3
"""Number of digits: enough for 2³⁶ entries."""
AT_ONCE = 32
"""Rows of ``BASE`` entries that are read at once: a megabyte in float64."""
LARGEST = 1e100
"""Largest magnitude that is projected. The square of a larger one overflows."""


def projections_of_model(model: nn.Module) -> dict[str, Projections]:
    """Return the projections of the parameters and buffers whose entries can be read, by name, under all names of each.

    Buffers of whole numbers and booleans, such as masks and positions, are among them.
    """
    named = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    readable = {name: tensor for name, tensor in named if has_entries(tensor)}
    found = {id(tensor): projections_of(tensor) for tensor in {id(t): t for t in readable.values()}.values()}
    return {name: found[id(tensor)] for name, tensor in readable.items()}


def has_entries(tensor: Tensor) -> bool:
    """Whether the entries of a tensor are numbers or booleans that can be read one by one.

    Returns:
        False for sparse, nested and quantized tensors, numbers of four bits, tensors on the meta device, those of lazy modules,
        and empty ones.
    """
    return (
        isinstance(tensor, Tensor)
        and not is_lazy(tensor)
        and tensor.layout is torch.strided
        and not is_packed(tensor)
        and not (tensor.is_meta or tensor.is_nested or tensor.is_quantized)
        and tensor.numel() > 0
    )


def projections_of(tensor: Tensor) -> Projections:
    """Return projections of the entries ``x`` of a tensor onto fixed pseudo-random directions ``w_k``.

    ``Σ_i w_k(i) x(i) / ‖x‖``, in float64. Weights are independent, with mean 0 and mean square 1, so that entries that differ by
    ``δ`` in the Euclidean norm, relative to ``‖x‖``, have projections that differ by about ``δ``. A weight is the product of one
    number for each digit of the position. They are drawn by Python, which repeats them on every machine. Infinite entries count
    as ±2, and NaN as 3.

    >>> up, down = (projections_of(torch.tensor(x)) for x in ([0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]))
    >>> up.rms == down.rms, up.is_near(down), up.is_near(projections_of(torch.tensor([False, True] * 2)))
    (True, False, True)

    Args:
        tensor: The tensor, of any shape, stride, type and device. See :func:`has_entries`.

    Source: Johnson & Lindenstrauss, Contemporary Mathematics 26, 189 (1984), for random projections; our weights.
    """
    with torch.no_grad():
        entries = tensor.detach()
        entries = torch.view_as_real(entries.resolve_conj()) if entries.is_complex() else entries
        flat = entries.reshape(-1)
        tables = [table.to(flat.device) for table in _weights()]
        values = torch.zeros(NUMBER, dtype=torch.float64, device=flat.device)
        square, digest = 0.0, 0
        are_whole = True
        for start in range(0, len(flat), BASE * AT_ONCE):
            part = flat[start : start + BASE * AT_ONCE].to(torch.float64)
            square_of_part = float(torch.dot(part, part))
            if not math.isfinite(square_of_part):
                part = torch.nan_to_num(part, 3.0, 2.0, -2.0).clamp_(-LARGEST, LARGEST)
                square_of_part = float(torch.dot(part, part))
            square += square_of_part
            are_whole = are_whole and bool((part == part.round()).all())
            if are_whole:
                # Adding zero turns -0 into 0.
                digest = crc32((part + 0.0).cpu().numpy().astype("<f8").tobytes(), digest)
            values += _sums(part, tables, start // BASE)
        norm = math.sqrt(square)
    found = tuple((values / (norm or 1.0)).tolist())
    return Projections(tuple(tensor.shape), norm / math.sqrt(len(flat)), found, f"{digest:08x}" if are_whole else "")


def _sums(part: Tensor, tables: Sequence[Tensor], first: int) -> Tensor:
    """Return the weighted sums of entries that begin at the position ``first * BASE``."""
    whole = len(part) // BASE
    low, middle, high = tables
    positions = torch.arange(whole + 1, device=part.device) + first
    weights = middle[positions % BASE] * high[positions // BASE]
    sums = (part[: whole * BASE].view(-1, BASE) @ low * weights[:whole]).sum(0)
    rest = part[whole * BASE :]
    return sums + rest @ low[: len(rest)] * weights[whole]


@lru_cache(maxsize=1)
def _weights() -> tuple[Tensor, ...]:
    """Return the weights of each digit, ``(BASE, NUMBER)``, uniform with mean 0 and mean square 1."""
    drawn = Random(0)
    width = math.sqrt(12)
    return tuple(
        torch.tensor(
            [[width * (drawn.random() - 0.5) for _ in range(NUMBER)] for _ in range(BASE)],
            dtype=torch.float64,
            device="cpu",
        )
        for _ in range(DIGITS)
    )
