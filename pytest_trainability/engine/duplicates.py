"""Weights that hold the same numbers without being the same: cloned layers, and units that were all set alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from .operators import CONVOLUTIONS, MOVES, TRANSPOSES, operator_name
from .run import Need, Run
from .trees import as_real

__all__ = ["DUPLICATES", "equal_rows"]


# What reads a parameter -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Use:
    """How a weight multiplies."""

    units: int | None
    """Dimension along which its units lie; None for tables, whose rows are told apart by what looks them up."""
    groups: int = 1
    """Of a convolution: units of different groups read different channels, and may be alike."""


_TABLES = {"Embedding", "EmbeddingBag"}
_RIGHT_FACTORS = {"Addmm": 2, "Mm": 1}
"""Products of matrices, and where their right factor stands among what they read: its units are columns."""
_PRODUCTS = {
    *("Addmm", "Mm", "Bmm", "Baddbmm", "Addbmm", "Linear", "Mv", "Addmv", "Trilinear", "Bilinear", "MkldnnLinear"),
    *("MkldnnRnnLayer", "CudnnRnn", "MiopenRnn", "WeightNormInterface", "ScaledMm", "GroupedMm"),
}


def _weights(run: Run) -> dict[str, tuple[nn.Parameter, Use]]:
    """Return the trainable parameters by which the model multiplies matrices, convolves or looks up, in its order.

    What scales (normalizations, LayerScale), adds (biases, position tables) or is computed with first (the decay of a
    state space) is not among them, and may well be constant or the same in every layer.
    """
    consumers = run.graph.consumers()
    accumulating: list[Any] = [node for node in run.graph.nodes if type(node).__name__ == "AccumulateGrad"]
    leaves: dict[int, Node] = {id(node.variable): node for node in accumulating}
    found = {}
    for name, parameter in run.record.model.named_parameters():
        if id(parameter) not in leaves or parameter.dim() < 2 or parameter.layout is not torch.strided:
            continue
        uses = list(_uses(leaves[id(parameter)], consumers, parameter.dim()))
        if uses:
            # A table that is a head too is a table.
            found[name] = parameter, next((use for use in uses if use.units is None), uses[0])
    return found


def _uses(leaf: Node, consumers: Mapping[Node, list[tuple[Node, int]]], dim: int) -> Iterator[Use]:
    pending, seen = [(leaf, False)], {leaf}
    while pending:
        producer, transposed = pending.pop()
        for node, position in consumers.get(producer, ()):
            operator = operator_name(node)
            if operator in MOVES and node not in seen:
                seen.add(node)
                pending.append((node, transposed or operator in TRANSPOSES))
            elif operator in _TABLES:
                yield Use(None)
            elif operator in CONVOLUTIONS:
                turned = bool(getattr(node, "_saved_transposed", False))
                yield Use(1 if turned else 0, int(getattr(node, "_saved_groups", 1)))
            elif operator in _PRODUCTS:
                columns = dim == 2 and not transposed and _RIGHT_FACTORS.get(operator) == position
                yield Use(1 if columns else 0)


# Equal numbers ----------------------------------------------------------------------------------------------------

_ENTRIES_AT_ONCE = 2**22
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _hashes(rows: Tensor) -> Tensor:
    """Return a 64-bit hash of the bits of each row ``(n, d)``: equal rows, and no others, have equal ones.

    A sum of mixed bits times random odd numbers modulo 2^64, which does not depend on the order of summation.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    bounds = torch.iinfo(torch.int64)
    keys = (
        torch.randint(bounds.min, bounds.max, (rows.shape[1],), generator=generator, device="cpu").to(rows.device) | 1
    )
    step = max(1, _ENTRIES_AT_ONCE // max(1, rows.shape[1]))
    found = []
    for part in rows.split(step):  # type: ignore[no-untyped-call]
        # Adding zero makes one zero of both.
        numbers = part.contiguous() if part.dtype not in _FLOATS else (part + 0.0).contiguous()
        bits = numbers.view(_BITS[numbers.element_size()]).long() * -7046029254386353131
        found.append(((bits ^ (bits >> 32)) * keys).sum(dim=1))
    return torch.cat(found)


_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def equal_rows(rows: Tensor) -> tuple[int, int]:
    """Return how many rows ``(n, d)`` equal another one, rows of zeros aside, and how many different ones they are."""
    rows = rows[(rows != 0).any(dim=1)]
    if len(rows) < 2:
        return 0, 0
    counts: Tensor = torch.unique(_hashes(rows), return_counts=True)[1]
    return int(counts[counts > 1].sum()), int((counts > 1).sum())


LONG = 8
"""Entries from which on two rows do not agree by accident, in half precision either."""


def _unit_rows(weight: Tensor, use: Use) -> Iterator[Tensor]:
    """Yield the rows of units that read the same: one tensor ``(units, entries)`` for each group."""
    if use.units == 1:
        if use.groups == 1:
            yield weight.movedim(1, 0).flatten(1)
    else:
        yield from weight.flatten(1).chunk(use.groups)


def _equal_units(weight: Tensor, use: Use) -> str:
    """Say how many units are alike; empty where none are, or where it may be by accident."""
    equal = different = 0
    for rows in _unit_rows(weight, use):
        count, kinds = equal_rows(rows)
        all_alike = count == len(rows) > 2
        if (use.units is not None and rows.shape[1] >= LONG) or all_alike:
            equal, different = equal + count, different + kinds
    kind = "columns" if use.units == 1 and weight.dim() == 2 else "units" if use.units == 1 else "rows"
    if equal == 0:
        return ""
    return f"{equal} equal {kind}" if different == 1 else f"{equal} {kind} that equal another"


DESIGNED = 16
"""Different numbers that a weight must hold for its equality to be no design: identities and averages hold few."""


def _is_drawn(weight: Tensor) -> bool:
    different: Tensor = torch.unique(weight)
    return different.numel() > min(DESIGNED, weight.numel() // 2)


def _duplicates(run: Run) -> list[str]:
    found = []
    firsts: dict[tuple[object, ...], tuple[str, Tensor]] = {}
    memories: set[tuple[object, ...]] = set()
    for name, (parameter, use) in _weights(run).items():
        weight = as_real(parameter.detach())
        memory = (weight.untyped_storage().data_ptr(), weight.storage_offset(), weight.shape, weight.stride())
        if memory in memories or weight.numel() == 0 or weight.element_size() not in _BITS:
            continue
        memories.add(memory)
        units = _equal_units(weight, use)
        if units:
            found.append(f"{name}: {units}")
        key = (weight.shape, weight.dtype, weight.device, int(_hashes(_hashes(weight.flatten(1))[None])))
        first, values = firsts.setdefault(key, (name, weight))
        if first != name and torch.equal(weight, values) and _is_drawn(weight):
            found.append(f"{name} = {first}")
    return found


DUPLICATES: Need[list[str]] = Need("duplicate parameters", _duplicates)
"""``"NAME = EARLIER NAME"`` and ``"NAME: 64 equal rows"``, in the model's order."""
