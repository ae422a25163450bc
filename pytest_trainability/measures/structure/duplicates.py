"""Duplicate weights: layers that are copies of another layer, and units of a layer with equal weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ...engine.capture.graph import Graph
from ...engine.capture.operators import CONVOLUTIONS, MOVES, operator_name
from ...engine.capture.products import is_constant, root_mean_square
from ...engine.capture.recorder import Call
from ...engine.linalg.norms import as_real
from ...engine.modules import named_modules_of
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import apply_node, child_table, leaf_of, output_metadata, saved
from ...records.causes import CauseRecord
from ...records.names import and_more
from ..measure import declare

__all__ = ["DUPLICATES", "DUPLICATE_CAUSES", "equal_rows"]


# Operators that read a parameter ----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Use:
    """The meaning of a weight's dimensions in a product: units, inputs, or a batch of matrices."""

    units: tuple[int, ...]
    """Dimensions that count units, or the rows of a table."""
    batch: tuple[int, ...] = ()
    """Dimensions that count matrices with separate inputs: experts, heads. Units of different matrices may have equal weights."""
    groups: int = 1
    """Number of groups of a convolution. Units of different groups read different channels, and may have equal weights."""
    is_table: bool = False
    """Whether the weight is a table that an index looks up. Equal rows are distinguished by their indices."""


_Operand = tuple[Node, int]
"""A node and the position of one of its operands."""
_Path = tuple[_Operand, ...]
"""How a parameter enters a product: the operators that move its entries, and finally the product."""


_TABLES = {"Embedding", "EmbeddingBag"}
_SCALINGS = {"WeightNormInterface": 0}
"""Operators that scale an operand without moving its entries, and the position of that operand."""


_Roles = tuple[set[int], set[int]]
"""Dimensions of a factor that the product keeps, and dimensions that it sums over. All others count a batch of matrices."""
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
"""Products, and the roles of the dimensions of each operand, by its position."""
_RECURRENT = {"MkldnnRnnLayer", "CudnnRnn", "MiopenRnn"}


LABELS = 1023
"""Labels are whole numbers up to this one. All are distinct in float16, and their sums are exact in float32."""
MAX_USES = 4
"""Number of products of one weight that are examined. A weight in a loop has one product per step."""


def _weights(run: Run) -> dict[str, tuple[nn.Parameter, list[Use]]]:
    """Return the trainable parameters of matrix products, convolutions and tables, with their uses, in the model's order.

    Parameters that scale (normalizations, LayerScale), that are added (biases, position tables) or that are transformed first
    (the decay of a state space model) are not among them. They may be constant, or equal in every layer, by design.
    """
    consumers = run.graph.consumers()
    leaves = {id(leaf): node for node in run.graph.nodes if (leaf := leaf_of(node)) is not None}
    found = {}
    for name, parameter in run.capture.model.named_parameters():
        is_dense = parameter.layout is torch.strided and parameter.numel() > 0
        if id(parameter) not in leaves or parameter.dim() < 2 or not is_dense:
            continue
        paths = sorted(_paths(leaves[id(parameter)], consumers), key=lambda path: run.graph.place[path[-1][0]])
        if any(operator_name(path[-1][0]) in _TABLES for path in paths):
            # A table that is also the weight of the head counts as a table.
            found[name] = parameter, [Use((0,), is_table=True)]
        elif paths:
            uses = [_use(path, parameter.shape) for path in paths[:MAX_USES]]
            found[name] = parameter, list(dict.fromkeys(use for use in uses if use is not None))
    return found


def _paths(leaf: Node, consumers: Mapping[Node, list[_Operand]]) -> Iterator[_Path]:
    """Yield the paths of a parameter into products and tables."""
    pending: list[_Path] = [()]
    seen = {leaf}
    while pending:
        path = pending.pop(0)
        for node, place in consumers.get(path[-1][0] if path else leaf, ()):
            operator = operator_name(node)
            if (operator in MOVES or _SCALINGS.get(operator) == place) and node not in seen:
                seen.add(node)
                pending.append((*path, (node, place)))
            elif operator in _TABLES or _roles(node, place, 3) is not None:
                yield *path, (node, place)


def _roles(node: Node, place: int, dims: int) -> _Roles | None:
    """Return the roles of an operand's dimensions in a product; None if the node is not a product with that operand."""
    operator = operator_name(node)
    if operator in CONVOLUTIONS and place == 1:
        unit = 1 if saved(node, "transposed", default=False) else 0
        return {unit}, set(range(dims)) - {unit}
    roles = _LEFT if operator in _RECURRENT else _FACTORS.get(operator, {}).get(place)
    return roles and ({dim % dims for dim in roles[0]}, {dim % dims for dim in roles[1]})


def _use(path: _Path, sizes: Sequence[int]) -> Use | None:
    """Return the meaning of the dimensions of a parameter of these sizes in a product; None if it is ambiguous.

    The operand of the product gets labels that differ along the kept dimensions, then along the summed ones, then along those
    of a batch. Like a gradient, the labels are pulled back to the parameter. A dimension of the parameter along which labels
    differ has the same role.
    """
    node, place = path[-1]
    producer, number = node.next_functions[place]
    entry = output_metadata(producer)[number]  # type: ignore[arg-type]
    shape, device = tuple(entry.shape), entry.device
    roles = _roles(node, place, len(shape))
    groups = int(saved(node, "groups", default=1))
    if roles is None or (groups > 1 and saved(node, "transposed", default=False)):
        # The first dimension of a transposed convolution's weight counts inputs, and so do its groups.
        return None
    reads = _pull_back(path, torch.ones((), device=device).expand(shape))
    differing = []
    for dims in (*roles, set(range(len(shape))).difference(*roles)):
        labels = _pull_back(path, _labels(shape, dims, device))
        differing.append({dim for dim in range(len(sizes)) if _differ(labels, reads, dim)})
    units, entries, batch = differing
    batch |= {dim for dim in range(len(sizes)) if _is_selected(reads, dim)} - units - entries
    is_unique = all((dim in units) + (dim in entries) + (dim in batch) == (size > 1) for dim, size in enumerate(sizes))
    return Use(tuple(sorted(units)), tuple(sorted(batch)), groups) if is_unique else None


def _labels(shape: tuple[int, ...], dims: set[int], device: torch.device) -> Tensor:
    """Return numbers that differ along some dimensions and repeat along all others. They are whole, so that sums are exact."""
    sizes = [size if dim in dims else 1 for dim, size in enumerate(shape)]
    count, generator = math.prod(sizes), torch.Generator("cpu").manual_seed(0)
    rounds = [1 + torch.randperm(LABELS, generator=generator, device="cpu") for _ in range(-(-count // LABELS))]
    return torch.cat(rounds)[:count].to(device, torch.float32).reshape(sizes).expand(shape)


def _pull_back(path: _Path, cotangent: Tensor) -> Tensor:
    """Return the parameter's cotangent, given that of the product's operand. Dimensions with stride zero have one entry."""
    for (node, place), (reader, at) in zip(path[-2::-1], path[:0:-1]):
        if operator_name(node) in _SCALINGS:
            continue
        given: list[Tensor | None] = [None] * len(output_metadata(node))
        given[reader.next_functions[at][1]] = cotangent
        cotangent = apply_node(node, given)[place]
    for dim, stride in enumerate(cotangent.stride()):
        cotangent = cotangent if stride else cotangent.narrow(dim, 0, 1)
    return cotangent.real if cotangent.is_complex() else cotangent


def _differ(labels: Tensor, reads: Tensor, dim: int) -> bool:
    """Whether labels differ along a dimension of the parameter.

    Args:
        labels: The parameter's cotangent: a sum of labels for each entry.
        reads: How often each entry is read.
        dim: The dimension.

    Returns:
        True if two entries along the dimension were read by different units.
    """
    ratio = torch.where(reads != 0, labels / reads, torch.nan)
    largest, least = ratio.nan_to_num(-1.0).amax(dim), ratio.nan_to_num(torch.inf).amin(dim)
    return bool((largest > least).any())


def _is_selected(reads: Tensor, dim: int) -> bool:
    """Whether some positions along a dimension are read and others are not."""
    return bool(((reads != 0) != (reads.narrow(dim, 0, 1) != 0)).any())


# Equal rows -------------------------------------------------------------------------------------------------------
_ENTRIES_AT_ONCE = 2**22
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _hashes(rows: Tensor) -> Tensor:
    """Return a 64-bit hash of each row ``(n, d)``, ``(n,)``. Equal rows have equal hashes, and different rows different ones.

    The hash is the sum of the entries' mixed bits times random odd numbers, modulo 2^64. It does not depend on the order of
    summation. Different rows have the same hash with a probability of about 2^-64.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    bounds = torch.iinfo(torch.int64)
    keys = (
        torch.randint(bounds.min, bounds.max, (rows.shape[1],), generator=generator, device="cpu").to(rows.device) | 1
    )
    step = max(1, _ENTRIES_AT_ONCE // max(1, rows.shape[1]))
    found = []
    for part in rows.split(step):  # type: ignore[no-untyped-call]
        # Adding zero turns -0.0 into 0.0.
        numbers = part.contiguous() if part.dtype not in _FLOATS else (part + 0.0).contiguous()
        bits = numbers.view(_BITS[numbers.element_size()]).long() * -7046029254386353131
        found.append(((bits ^ (bits >> 32)) * keys).sum(dim=1))
    return torch.cat(found)


_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


PREFIX = 8
"""Number of first entries that are compared before all entries. They differ, unless a weight has few values or equal rows."""


def equal_rows(rows: Tensor) -> tuple[int, int]:
    """Count the rows ``(n, d)`` that equal another row, and the distinct rows among them. Rows of zeros do not count."""
    _, kinds, sizes = torch.unique(_hashes(rows[:, :PREFIX]), return_inverse=True, return_counts=True)
    rows = rows[sizes[kinds] > 1]
    rows = rows[(rows != 0).any(dim=1)]
    if len(rows) < 2:
        return 0, 0
    counts: Tensor = torch.unique(_hashes(rows), return_counts=True)[1]
    return int(counts[counts > 1].sum()), int((counts > 1).sum())


MIN_ENTRIES = 8
"""Smallest number of entries of rows that are not equal by coincidence, even in half precision."""


def _equal_units(weight: Tensor, uses: Sequence[Use]) -> str:
    """Describe the equal units of a weight; empty if there are none in one of its uses, or if they may be a coincidence."""
    found = [_equal_units_in(weight, use) for use in uses]
    return found[0] if found and all(found) else ""


def _equal_units_in(weight: Tensor, use: Use) -> str:
    rows, noun = _unit_rows(weight, use)
    equal = distinct = 0
    # A unit that is alone in its group, as in a depthwise convolution, equals none.
    for group in rows if rows.shape[1] > 1 else ():
        equal_here, distinct_here = equal_rows(group)
        may_be_coincidence = use.is_table or group.shape[1] < MIN_ENTRIES
        if not may_be_coincidence or _are_all_equal(group, equal_here, distinct_here):
            equal, distinct = equal + equal_here, distinct + distinct_here
    if equal == 0 and use.batch and rows[0].numel() >= MIN_ENTRIES:
        noun, (equal, distinct) = "matrices", equal_rows(rows.flatten(1))
        equal = equal if equal and _has_many_values(weight) else 0
    if equal == 0:
        return ""
    return f"{equal} equal {noun}" if distinct == 1 else f"{equal} {noun} that equal another"


def _are_all_equal(rows: Tensor, equal: int, distinct: int) -> bool:
    """Whether all rows, except rows of zeros, are equal, and at least three of them."""
    return distinct == 1 and equal > 2 and equal == int((rows != 0).any(dim=1).sum())


def _unit_rows(weight: Tensor, use: Use) -> tuple[Tensor, str]:
    """Return the units' weights by groups with equal inputs, ``(groups, units, entries)``, and the noun for one unit's."""
    entries = [dim for dim in range(weight.dim()) if dim not in use.units and dim not in use.batch]
    order = (*use.batch, *use.units, *entries)
    groups = use.groups * math.prod(weight.shape[dim] for dim in use.batch)
    units = math.prod(weight.shape[dim] for dim in use.units)
    rows = weight.permute(order).reshape(groups, units // use.groups, -1)
    is_in_order = order == tuple(range(weight.dim()))
    return rows, "rows" if is_in_order else "columns" if weight.dim() == 2 else "units"


FEW_VALUES = 16
"""A weight with at most this many distinct values may equal another by design: identities and averages have few."""


def _has_many_values(weight: Tensor) -> bool:
    """Whether a weight has so many distinct values that another weight does not equal it by design."""
    values: Tensor = torch.unique(weight)
    return values.numel() > min(FEW_VALUES, weight.numel() // 2)


def _some_entries(weight: Tensor) -> list[float]:
    """Return a few entries of a weight, which differ between weights unless these are copies or constant."""
    places = torch.linspace(0, weight.numel() - 1, PREFIX, dtype=torch.float64, device="cpu").long()
    indices = torch.unravel_index(places.to(weight.device), weight.shape)
    found: list[float] = weight[indices].tolist()
    return found


def _duplicates(run: Run) -> list[str]:
    found = []
    alike: dict[tuple[object, ...], list[tuple[str, Tensor]]] = {}
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
        earlier = alike.setdefault((weight.shape, weight.dtype, weight.device, *_some_entries(weight)), [])
        first = next((other for other, values in earlier if torch.equal(weight, values)), None)
        if first is None:
            earlier.append((name, weight))
        elif _has_many_values(weight):
            found.append(f"{name} = {first}")
    return found


DUPLICATES: Need[list[str]] = Need("duplicate parameters", _duplicates)
"""``"NAME = EARLIER NAME"`` and ``"NAME: 64 equal rows"``, in the model's order."""


def _duplicate_causes(run: Run) -> tuple[CauseRecord, ...]:
    """Return which weights are copies and which ones break no symmetry."""
    parameters = dict(run.capture.model.named_parameters(remove_duplicate=False))
    found = run[DUPLICATES]
    copies = dict(name.split(" = ") for name in found if " = " in name)
    equal = {name.partition(": ")[0]: name.partition(": ")[2] for name in found if ": " in name}
    causes = []
    if copies:
        later, first = next(iter(copies.items()))
        text = (
            f"{len(copies)} weights have the values of an earlier one, {later} those of {first}: the module was copied after it "
            "was drawn, or drawn from the same seed"
        )
        sizes = tuple(root_mean_square(parameters[name]) for name in copies)
        causes.append(CauseRecord(text, drawn=(*copies,), deviations=sizes))
    if equal:
        constant = [name for name in equal if is_constant(parameters[name])]
        name = next(iter(constant or equal))
        kind = "constant weights" if constant else "equal units"
        text = f"{kind}: {name} has {equal[name]}, which get equal gradients and stay equal"
        sizes = tuple(math.sqrt(2 / max(1, math.prod(parameters[name].shape[1:]))) for name in equal)
        causes.append(CauseRecord(text, drawn=(*equal,), deviations=sizes))
    return tuple(causes)


DUPLICATE_CAUSES: Need[tuple[CauseRecord, ...]] = Need(
    "causes of duplicates", _duplicate_causes, requires=(DUPLICATES,)
)
"""Whether weights were copied, or are constant."""


# One module in several places --------------------------------------------------------------------------------------
FEWEST_PLACES = 3
"""Number of places in one container from which a module counts as repeated."""


def _repeated(run: Run) -> list[str]:
    """Return the modules that one container holds several times, and that read their own results, each with its places."""
    found = []
    for path, parent in named_modules_of(run.capture.model):
        # By identity: modules may define what is equal.
        places: dict[int, list[str]] = {}
        children = {name: child for name, child in child_table(parent).items() if child is not None}
        for name, child in children.items():
            places.setdefault(id(child), []).append(f"{path}.{name}" if path else name)
        for module in {id(child): child for child in children.values()}.values():
            names = places[id(module)]
            # A learned slope or normalization may be shared; a layer with matrices is a layer.
            if len(names) >= FEWEST_PLACES and any(p.requires_grad and p.dim() > 1 for p in module.parameters()):
                calls = [call for call in run.capture.calls if call.module is module and not call.inner]
                if len(calls) >= len(names) and _is_in_series(run.graph, calls):
                    later = f"{names[1]}{and_more(names[1:])}"
                    found.append(f"{later}: the same module as {names[0]}, in series")
    return found


def _is_in_series(graph: Graph, calls: Sequence[Call]) -> bool:
    """Return whether the second call of a module reads what the first one has returned, as layers do, and not heads."""
    behind = graph.downstream(calls[0].outputs) | {node for node, _ in calls[0].outputs}
    return any(node in behind for node, _ in calls[1].inputs)


REPEATED: Need[list[str]] = Need(
    "repeated modules", lambda run: run.of_first_seed(REPEATED.name, lambda: _repeated(run))
)
"""``"LATER NAMES: the same module as NAME, in series"``. The first seed answers for all."""


@declare("names", needs=[DUPLICATES, REPEATED], explained_by=DUPLICATE_CAUSES)
def duplicate_parameters(run: Run) -> list[str]:
    """Return the weights that equal an earlier weight, and the weights whose units have equal rows.

    Units with equal weights compute the same function, and copied layers start as one layer that is applied repeatedly: no random
    draw breaks the symmetry. The measure compares trainable weights of matrix products, convolutions and tables. It ignores
    parameters that scale or are added, rows of zeros, and weights that share memory. The dimensions that count units are those
    that the product keeps. Weights for which they are ambiguous are not examined for equal units. Rows of tables and rows with
    fewer than 8 entries count only if all are equal. A whole weight counts as a copy only if it has more than 16 distinct values.
    A module that one container holds in three places or more, as in ``[layer] * 6``, is listed if it reads its own results.

    It misleads where a copy is intended (experts that start equal, a head that is initialized from the embedding), and where one
    layer is meant to be applied repeatedly and is written as ``[layer] * 6`` (ALBERT, a universal transformer).

    Returns:
        ``"layers.1.weight = layers.0.weight"``, ``"fc.weight: 64 equal rows"`` (``columns`` if the weight is the right factor
        of a product, ``units`` in other layouts) and ``"experts.weight: 8 equal matrices"``, in the model's order; then
        ``"layers.1 and 4 more layers.*: the same module as layers.0, in series"``.

    Source: Goodfellow, Bengio & Courville, Deep Learning (2016), section 8.4, on breaking symmetry.
    """
    return [*run[DUPLICATES], *run[REPEATED]]
