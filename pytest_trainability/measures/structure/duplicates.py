"""Weights that hold the same numbers without being the same: cloned layers, and units that were all set alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ...engine.capture.operators import CONVOLUTIONS, MOVES, operator_name
from ...engine.linalg.norms import as_real
from ...engine.runs.run import Need, Run
from ..measure import declare

__all__ = ["DUPLICATES", "equal_rows"]


# What reads a parameter -------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Use:
    """How a weight multiplies: what lies along its dimensions."""

    units: tuple[int, ...]
    """Dimensions along which its units lie, or the rows of a table."""
    apart: tuple[int, ...] = ()
    """Those along which units read something else: experts, heads. They may be alike entry by entry."""
    groups: int = 1
    """Of a convolution: units of different groups read different channels, too."""
    looked_up: bool = False
    """Whether it is a table, whose rows are told apart by what looks them up."""


_Read = tuple[Node, int]
"""A node, and the place among what it reads."""
_Way = tuple[_Read, ...]
"""How a parameter goes into a product: what moves its numbers, then the product."""


_TABLES = {"Embedding", "EmbeddingBag"}
_KEEPING = {"WeightNormInterface": 0}
"""Scale what they read at a place, entry by entry."""


_Roles = tuple[set[int], set[int]]
"""Dimensions of a factor that are left in the product, and those that it sums over; what remains is a batch of factors."""
_LEFT: _Roles = {-2}, {-1}
_RIGHT: _Roles = {-1}, {-2}
_FACTORS: dict[str, dict[int, _Roles]] = {
    "Mm": {0: _LEFT, 1: _RIGHT},
    "Bmm": {0: _LEFT, 1: _RIGHT},
    "GroupedMm": {0: _LEFT, 1: _RIGHT},
    "Addmm": {1: _LEFT, 2: _RIGHT},
    "Baddbmm": {1: _LEFT, 2: _RIGHT},
    "Addbmm": {1: ({-2}, {-3, -1}), 2: ({-1}, {-3, -2})},
    "Mv": {0: _LEFT},
    "Addmv": {1: _LEFT},
    "Linear": {1: _LEFT},
    "MkldnnLinear": {1: _LEFT},
    "Trilinear": {1: ({-3}, {-2, -1})},
    "Bilinear": {2: ({-3}, {-2, -1})},
}
"""Products, and what each makes of the dimensions of what it reads at some place."""
_RECURRENT = {"MkldnnRnnLayer", "CudnnRnn", "MiopenRnn"}


LABELS = 1023
"""Labels are whole numbers up to this one, which float16 tells apart and float32 sums exactly."""
FEW = 4
"""Products after which the dimensions of a weight are known; one in a loop is read once in every step."""


def _weights(run: Run) -> dict[str, tuple[nn.Parameter, list[Use]]]:
    """Return the trainable parameters by which the model multiplies matrices, convolves or looks up, in its order.

    What scales (normalizations, LayerScale), adds (biases, position tables) or is computed with first (the decay of a
    state space) is not among them, and may well be constant or the same in every layer.
    """
    consumers = run.graph.consumers()
    accumulating: list[Any] = [node for node in run.graph.nodes if type(node).__name__ == "AccumulateGrad"]
    leaves: dict[int, Node] = {id(node.variable): node for node in accumulating}
    found = {}
    for name, parameter in run.capture.model.named_parameters():
        is_dense = parameter.layout is torch.strided and parameter.numel() > 0
        if id(parameter) not in leaves or parameter.dim() < 2 or not is_dense:
            continue
        ways = sorted(_ways(leaves[id(parameter)], consumers), key=lambda way: run.graph.place[way[-1][0]])
        if any(operator_name(way[-1][0]) in _TABLES for way in ways):
            # A table that is a head too is a table.
            found[name] = parameter, [Use((0,), looked_up=True)]
        elif ways:
            uses = [_use(way, parameter.shape) for way in ways[:FEW]]
            found[name] = parameter, list(dict.fromkeys(use for use in uses if use is not None))
    return found


def _ways(leaf: Node, consumers: Mapping[Node, list[_Read]]) -> Iterator[_Way]:
    pending: list[_Way] = [()]
    seen = {leaf}
    while pending:
        way = pending.pop(0)
        for node, place in consumers.get(way[-1][0] if way else leaf, ()):
            operator = operator_name(node)
            if (operator in MOVES or _KEEPING.get(operator) == place) and node not in seen:
                seen.add(node)
                pending.append((*way, (node, place)))
            elif operator in _TABLES or _roles(node, place, 3) is not None:
                yield *way, (node, place)


def _roles(node: Node, place: int, dims: int) -> _Roles | None:
    """Return what becomes of the dimensions of what a node reads at a place; None where it does not multiply by that."""
    operator = operator_name(node)
    if operator in CONVOLUTIONS and place == 1:
        unit = 1 if getattr(node, "_saved_transposed", False) else 0
        return {unit}, set(range(dims)) - {unit}
    roles = _LEFT if operator in _RECURRENT else _FACTORS.get(operator, {}).get(place)
    return roles and ({dim % dims for dim in roles[0]}, {dim % dims for dim in roles[1]})


def _use(way: _Way, sizes: Sequence[int]) -> Use | None:
    """Find out along which dimensions of a parameter of these sizes the units of a product lie; None where that cannot be told.

    Labels of what the product leaves, of what it sums over, and of the factors of a batch are handed back to the parameter, as
    a gradient is: along some of its dimensions they differ.
    """
    node, place = way[-1]
    producer, number = node.next_functions[place]
    entry = producer._input_metadata[number]  # type: ignore[union-attr]
    shape, device = tuple(entry.shape), entry.device
    roles = _roles(node, place, len(shape))
    groups = int(getattr(node, "_saved_groups", 1))
    if roles is None or (groups > 1 and getattr(node, "_saved_transposed", False)):
        # The groups of a transposed convolution are those of its inputs.
        return None
    read = _handed_back(way, torch.ones((), device=device).expand(shape))
    differing = []
    for among in (*roles, set(range(len(shape))).difference(*roles)):
        labels = _handed_back(way, _labels(shape, among, device))
        differing.append({dim for dim in range(len(sizes)) if _differ(labels, read, dim)})
    units, entries, apart = differing
    apart |= {dim for dim in range(len(sizes)) if _is_selected(read, dim)} - units - entries
    is_told = all((dim in units) + (dim in entries) + (dim in apart) == (size > 1) for dim, size in enumerate(sizes))
    return Use(tuple(sorted(units)), tuple(sorted(apart)), groups) if is_told else None


def _labels(shape: tuple[int, ...], among: set[int], device: torch.device) -> Tensor:
    """Return numbers that differ along some dimensions, and repeat themselves along the others: whole, so that sums are exact."""
    sizes = [size if dim in among else 1 for dim, size in enumerate(shape)]
    count, generator = math.prod(sizes), torch.Generator("cpu").manual_seed(0)
    rounds = [1 + torch.randperm(LABELS, generator=generator, device="cpu") for _ in range(-(-count // LABELS))]
    return torch.cat(rounds)[:count].to(device, torch.float32).reshape(sizes).expand(shape)


def _handed_back(way: _Way, cotangent: Tensor) -> Tensor:
    """Return what of a cotangent arrives at the parameter; a dimension along which it repeats itself in memory has one entry."""
    for (node, place), (reader, at) in zip(way[-2::-1], way[:0:-1]):
        if operator_name(node) in _KEEPING:
            continue
        given: list[Tensor | None] = [None] * len(node._input_metadata)
        given[reader.next_functions[at][1]] = cotangent
        returned: Any = node(*given)  # type: ignore[operator]
        cotangent = returned if isinstance(returned, Tensor) else returned[place]
    for dim, stride in enumerate(cotangent.stride()):
        cotangent = cotangent if stride else cotangent.narrow(dim, 0, 1)
    return cotangent.real if cotangent.is_complex() else cotangent


def _differ(labels: Tensor, read: Tensor, dim: int) -> bool:
    """Whether labels differ along a dimension of the parameter, wherever it is read at all: as often as ``read`` says."""
    ratio = torch.where(read != 0, labels / read, torch.nan)
    largest, least = ratio.nan_to_num(-1.0).amax(dim), ratio.nan_to_num(torch.inf).amin(dim)
    return bool((largest > least).any())


def _is_selected(read: Tensor, dim: int) -> bool:
    """Whether some places along a dimension are read and others are not."""
    return bool(((read != 0) != (read.narrow(dim, 0, 1) != 0)).any())


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


def _equal_units(weight: Tensor, uses: Sequence[Use]) -> str:
    """Say how many units are alike; empty where none are, where it may be by accident, or where they are in some uses only."""
    found = [_alike(weight, use) for use in uses]
    return found[0] if found and all(found) else ""


def _alike(weight: Tensor, use: Use) -> str:
    rows, kind = _unit_rows(weight, use)
    equal = different = 0
    for group in rows:
        count, kinds = equal_rows(group)
        by_accident = use.looked_up or group.shape[1] < LONG
        if not by_accident or _all_alike(group, count, kinds):
            equal, different = equal + count, different + kinds
    if equal == 0 and use.apart and rows[0].numel() >= LONG and _is_drawn(weight):
        kind, (equal, different) = "matrices", equal_rows(rows.flatten(1))
    if equal == 0:
        return ""
    return f"{equal} equal {kind}" if different == 1 else f"{equal} {kind} that equal another"


def _all_alike(rows: Tensor, count: int, kinds: int) -> bool:
    """Whether three rows or more, which are all but those of zeros, are one."""
    return kinds == 1 and count > 2 and count == int((rows != 0).any(dim=1).sum())


def _unit_rows(weight: Tensor, use: Use) -> tuple[Tensor, str]:
    """Return the rows of units that read the same, ``(groups, units, entries)``, and what they are called."""
    entries = [dim for dim in range(weight.dim()) if dim not in use.units and dim not in use.apart]
    order = (*use.apart, *use.units, *entries)
    groups = use.groups * math.prod(weight.shape[dim] for dim in use.apart)
    units = math.prod(weight.shape[dim] for dim in use.units)
    rows = weight.permute(order).reshape(groups, units // use.groups, -1)
    is_in_order = order == tuple(range(weight.dim()))
    return rows, "rows" if is_in_order else "columns" if weight.dim() == 2 else "units"


DESIGNED = 16
"""Different numbers that a weight must hold for its equality to be no design: identities and averages hold few."""


def _is_drawn(weight: Tensor) -> bool:
    different: Tensor = torch.unique(weight)
    return different.numel() > min(DESIGNED, weight.numel() // 2)


def _duplicates(run: Run) -> list[str]:
    found = []
    firsts: dict[tuple[object, ...], tuple[str, Tensor]] = {}
    memories: set[tuple[object, ...]] = set()
    for name, (parameter, uses) in _weights(run).items():
        weight = as_real(parameter.detach())
        memory = (weight.untyped_storage().data_ptr(), weight.storage_offset(), weight.shape, weight.stride())
        if memory in memories or weight.element_size() not in _BITS:
            continue
        memories.add(memory)
        units = _equal_units(weight, uses)
        if units:
            found.append(f"{name}: {units}")
        key = (weight.shape, weight.dtype, weight.device, int(_hashes(_hashes(weight.flatten(1))[None])))
        first, values = firsts.setdefault(key, (name, weight))
        if first != name and torch.equal(weight, values) and _is_drawn(weight):
            found.append(f"{name} = {first}")
    return found


DUPLICATES: Need[list[str]] = Need("duplicate parameters", _duplicates)
"""``"NAME = EARLIER NAME"`` and ``"NAME: 64 equal rows"``, in the model's order."""


@declare("names", needs=[DUPLICATES])
def duplicate_parameters(run: Run) -> list[str]:
    """Return weights that equal an earlier one, and weights whose units are equal to each other.

    Units with equal weights compute the same, and layers that were cloned begin as one layer applied again and again:
    the draws that ought to break the symmetry have not been made. Compared are trainable weights that multiply,
    convolve or are looked up in; not what scales or adds, nor rows of zeros, nor weights that share their memory. Units
    lie along what a product leaves; where that cannot be told, nothing is said of them. Rows of tables, and short ones,
    count only if all are equal. A whole weight counts as equal to another only if it holds more than a few different
    numbers. It misleads where a copy is meant (experts that begin as one, a head that is initialized from the embedding).

    Returns:
        ``"layers.1.weight = layers.0.weight"``, ``"fc.weight: 64 equal rows"`` (``columns`` where the weight is the
        right factor of a product, ``units`` where they lie otherwise) and ``"experts.weight: 8 equal matrices"``, in the
        model's order.

    Source: Goodfellow, Bengio & Courville, Deep Learning (2016), section 8.4, on breaking symmetry.
    """
    return run[DUPLICATES]
