"""Products of the signal with weights: the nearest one behind a result, and the parameters that operations read."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node

from ..torch_internals import leaf_of, output_metadata
from .graph import Graph
from .operators import PRODUCTS, operator_name
from .recorder import Edge

__all__ = ["Product", "fan_in", "is_constant", "leaves_read", "nearest_products", "root_mean_square"]


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A product of the signal with a weight."""

    node: Node
    weight: Tensor
    fan_in: int
    """Number of inputs of one unit."""
    bias: Tensor | None
    """What is added to the product; None if there is none."""
    behind: frozenset[str] = frozenset()
    """Operators between the product and the result."""


def leaves_read(graph: Graph, signal: Set[Node], nodes: Iterable[Node]) -> Iterator[Tensor]:
    """Yield the leaves that operations read from outside of the signal, such as a weight behind a transposition.

    Args:
        graph: The graph.
        signal: Nodes that carry the signal.
        nodes: The operations.
    """
    pending = [edge[0] for node in nodes for edge in graph.reads[node] if edge[0] not in signal]
    seen: set[Node] = set()
    while pending:
        node = pending.pop(0)
        if node in seen:
            continue
        seen.add(node)
        leaf = leaf_of(node)
        if leaf is not None:
            yield leaf
        pending += [edge[0] for edge in graph.reads[node] if edge[0] not in signal]


def nearest_products(graph: Graph, signal: Set[Node], node: Node) -> Iterator[Product]:
    """Yield the products with weights that a result depends on, those with the fewest operations in between first.

    Args:
        graph: The graph.
        signal: Nodes that carry the signal.
        node: The node of the result.
    """
    pending: deque[tuple[Node, Tensor | None, frozenset[str]]] = deque([(node, None, frozenset())])
    seen = {node}
    while pending:
        node, added, behind = pending.popleft()
        name = operator_name(node)
        leaves = list(leaves_read(graph, signal, [node])) if name in PRODUCTS or name == "Add" else []
        bias = next((leaf for leaf in leaves if leaf.dim() == 1), added)
        weight = next((leaf for leaf in leaves if leaf.dim() >= 2), None)
        if name in PRODUCTS and weight is not None:
            inputs = [edge for edge in graph.reads[node] if edge[0] in signal]
            yield Product(node, weight, fan_in(weight, inputs), bias, behind)
        for producer, _ in graph.reads[node]:
            if producer in signal and producer not in seen:
                seen.add(producer)
                pending.append((producer, bias if name == "Add" else added, behind | {name}))


def fan_in(weight: Tensor, inputs: Sequence[Edge]) -> int:
    """Return the number of inputs of one unit. A matrix may be stored the other way round, as in the GPT-2 of transformers.

    Args:
        weight: The weight.
        inputs: Edges of what it is multiplied with.
    """
    first, *rest = weight.shape
    widths = {tuple(output_metadata(node)[number].shape)[-1:] for node, number in inputs}
    if len(rest) == 1 and widths == {(first,)}:
        return int(first)
    return math.prod(rest)


def root_mean_square(weight: Tensor) -> float:
    """Return the root mean square of the entries of a weight."""
    values = weight.detach()
    return math.sqrt(float((values.abs() if values.is_complex() else values).double().square().mean()))


def is_constant(weight: Tensor) -> bool:
    """Return whether all entries of a weight have the same value, other than zero."""
    values = weight.detach()
    return values.numel() > 1 and bool((values == values.flatten()[0]).all()) and bool(values.flatten()[0] != 0)
