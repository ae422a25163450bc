"""Parameters and buffers that equal an earlier one entry by entry, as those of a teacher that is copied from a student do."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..records.tensors import TensorStatistics

__all__ = ["copies_among"]

FEW_VALUES = 16
"""A tensor with at most this many different entries may equal another one by design: zeros, ones, and flags do."""


def copies_among(tensors: Mapping[str, Tensor], values: Mapping[str, TensorStatistics]) -> dict[str, str]:
    """Return the names of tensors that equal an earlier one of the same shape and type, each with the first such name.

    Only tensors with the same extremes and as many zeros are compared entry by entry, so that drawn tensors cost nothing.

    >>> w = torch.arange(20.0)
    >>> named = {"student": w, "teacher": w.clone(), "head": w + 1}
    >>> from pytest_trainability.init.statistics import statistics_of
    >>> copies_among(named, {name: statistics_of(tensor) for name, tensor in named.items()})
    {'teacher': 'student'}

    Args:
        tensors: Tensors by name. A tensor of several names is listed once.
        values: Their statistics.
    """
    found: dict[str, str] = {}
    alike: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in tensors.items():
        of_tensor = values[name]
        if of_tensor.count <= FEW_VALUES or of_tensor.not_finite or of_tensor.is_constant:
            continue
        key = (tensor.shape, tensor.dtype, tensor.device, of_tensor.zeros, of_tensor.low, of_tensor.high)
        earlier = alike.setdefault(key, [])
        first = next((other for other in earlier if torch.equal(tensors[other], tensor)), None)
        if first is None:
            earlier.append(name)
        elif len(torch.unique(tensor.detach())) > FEW_VALUES:
            found[name] = first
    return found
