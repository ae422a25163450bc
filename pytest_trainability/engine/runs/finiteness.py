"""Entries of a run's output and loss that are not finite, and the remarks that describe them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from ..capture.recorder import Capture
from ..linalg.norms import as_real, stored_values
from ..torch_internals import without_torch_functions
from ..trees import is_float, named_tensors

__all__ = ["NotFinite", "entries_not_finite", "faults", "remarks"]

LOSS = "the loss"


@dataclass(frozen=True, slots=True)
class NotFinite:
    """The entries of one tensor of a run that are not finite."""

    name: str
    """``the loss``, ``the output``, or a part of the output such as ``output['logits']``."""
    count: int
    size: int
    kinds: tuple[str, ...]
    """Kinds that occur, of ``nan``, ``inf`` and ``-inf``."""

    @property
    def is_loss(self) -> bool:
        """Whether the tensor is the loss."""
        return self.name == LOSS

    @property
    def is_mask(self) -> bool:
        """Whether some entries are -inf and no others are not finite, as in scores that are masked before a softmax."""
        return self.kinds == ("-inf",) and self.count < self.size


def entries_not_finite(capture: Capture) -> tuple[NotFinite, ...]:
    """Return the parts of the output, then the loss, that hold entries that are not finite.

    A tensor whose sum is finite has none, so that finite outputs are read once and nothing is stored.
    """
    loss = capture.loss
    found = []
    with without_torch_functions():
        for path, tensor in named_tensors(capture.output):
            if loss is not None and tensor.numel() == 1 and tensor.data_ptr() == loss.data_ptr():
                continue
            found.append(_not_finite(f"output{path}" if path else "the output", tensor))
        if loss is not None:
            found.append(_not_finite(LOSS, loss))
    return tuple(part for part in found if part is not None)


def _not_finite(name: str, tensor: Tensor) -> NotFinite | None:
    """Return the entries of a tensor that are not finite; None if there are none, or if PyTorch cannot tell."""
    if tensor.is_meta or not is_float(tensor):
        return None
    # An output may be of any layout and class. A remark on it must not end the measurement.
    with suppress(RuntimeError, TypeError):
        values = as_real(stored_values(tensor))
        values = values.float() if values.dtype.itemsize == 1 else values
        if math.isfinite(float(values.sum(dtype=torch.float32 if values.dtype.itemsize == 2 else None))):
            return None
        kinds = {"nan": values.isnan(), "inf": values.isposinf(), "-inf": values.isneginf()}
        count = sum(int(where.sum()) for where in kinds.values())
        if count:
            return NotFinite(name, count, values.numel(), tuple(kind for kind, where in kinds.items() if where.any()))
    return None


def remarks(seeds: Sequence[Sequence[NotFinite]]) -> tuple[str, ...]:
    """Return a remark on each part of the output, and on the loss, that is not finite on some seed.

    Args:
        seeds: The result of :func:`entries_not_finite` for each seed.
    """
    return tuple(_remark(found, len(seeds)) for found in _by_name(seeds))


def faults(seeds: Sequence[Sequence[NotFinite]]) -> tuple[str, ...]:
    """Return the remarks that may be the cause of a failure: all of them, except those on masks where the loss is finite."""
    groups = list(_by_name(seeds))
    loss_is_finite = all(found[0].name != LOSS for found in groups)
    at_fault = (found for found in groups if not (loss_is_finite and all(part.is_mask for part in found)))
    return tuple(_remark(found, len(seeds)) for found in at_fault)


def _by_name(seeds: Sequence[Sequence[NotFinite]]) -> Iterator[list[NotFinite]]:
    """Yield the entries of each tensor on the seeds where some are not finite; the loss is last."""
    names = dict.fromkeys(part.name for parts in seeds for part in parts)
    for name in sorted(names, key=lambda name: name == LOSS):
        yield [part for parts in seeds for part in parts if part.name == name]


def _remark(found: Sequence[NotFinite], seeds: int) -> str:
    kinds = ", ".join(dict.fromkeys(kind for part in found for kind in part.kinds))
    where = f" on {len(found)} of {seeds} seeds" if seeds > 1 else ""
    name, most = found[0].name, max(found, key=lambda part: part.count)
    if name == LOSS:
        return f"{name} is not finite ({kinds}){where}"
    at_most = "" if len({part.count for part in found}) == 1 else "up to "
    return f"{name} is not finite: {at_most}{most.count} of {most.size} entries ({kinds}){where}"
