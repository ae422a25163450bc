"""Numbers that results and gradients are multiplied by: constants of the code, and what is computed from parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ..torch_internals import apply_node, is_custom, leaf_of, output_metadata
from .gradient_hooks import MODULE_HOOK
from .graph import Graph
from .operators import MOVES, PRODUCTS, operator_name
from .products import leaves_read, nearest_products, root_mean_square
from .recorder import Edge

__all__ = ["Amplifier", "Multiplier", "amplifiers", "multipliers"]

_LINEAR = MOVES | PRODUCTS | {"Mul", "Div", "Neg", "Sum", "Mean", "Add", "Sub", "Rsub", MODULE_HOOK}
"""Operators that are linear in each operand that carries the signal, or shift it."""
_SUMS = {"Add", "Sub", "Rsub", "Cat", "Stack"}
"""Those that are not proportional to one operand if several carry the signal."""


@dataclass(frozen=True, slots=True, eq=False)
class Multiplier:
    """A multiplication of a whole tensor by one number, or a division."""

    node: Node
    factor: float
    """What the tensor is multiplied by; the inverse of what it is divided by."""
    divides: bool
    parameter: Tensor | None = None
    """The one parameter that the number is computed from; None for a constant of the code or a buffer."""
    operators: tuple[str, ...] = ()
    """What is computed from the parameter, without operators that only move entries, the first one first."""

    @property
    def value(self) -> float:
        """Value of the parameter's entries; NaN without a parameter, or if they differ."""
        if self.parameter is None:
            return math.nan
        entries = self.parameter.detach().flatten()
        return float(entries[0]) if bool((entries == entries[0]).all()) else math.nan

    def value_for(self, factor: float) -> float:
        """Return the value of the parameter with which the tensor is multiplied by another factor; NaN if it is not known.

        Args:
            factor: The factor, positive.
        """
        number = 1 / factor if self.divides else factor
        return {(): number, ("Exp",): math.log(number)}.get(self.operators, math.nan)


def multipliers(graph: Graph, signal: Set[Node], end: Edge) -> Iterator[Multiplier]:
    """Yield the numbers that a result is proportional to, as far back as the last product with weights, or the last function.

    Behind a normalization nothing but these numbers sets the size of a result.

    Args:
        graph: The graph.
        signal: Nodes that carry the signal.
        end: The result.
    """
    pending, seen = [end[0]], {end[0]}
    while pending:
        node = pending.pop(0)
        name = operator_name(node)
        operands = [edge for edge in graph.reads[node] if edge[0] in signal]
        if name not in _LINEAR or (name in _SUMS and len(operands) > 1):
            continue
        if name in PRODUCTS and any(leaf.dim() >= 2 for leaf in leaves_read(graph, signal, [node])):
            continue
        if name in {"Mul", "Div"}:
            if len(operands) != 1 or (name == "Div" and node.next_functions[0] != operands[0]):
                continue
            found = _multiplier(graph, signal, node, operands[0])
            if found is None:
                continue
            yield found
        for producer, _ in operands:
            if producer not in seen:
                seen.add(producer)
                pending.append(producer)


def _multiplier(graph: Graph, signal: Set[Node], node: Node, operand: Edge) -> Multiplier | None:
    """Return what a multiplication or division multiplies by; None if that differs from entry to entry."""
    entry, before = output_metadata(node)[0], output_metadata(operand[0])[operand[1]]
    if tuple(entry.shape) != tuple(before.shape):
        return None
    factors = None
    # What the node has saved may have been overwritten.
    with suppress(RuntimeError):
        given = apply_node(node, [torch.ones(tuple(entry.shape), dtype=entry.dtype, device=entry.device)])
        factors = given[node.next_functions.index(operand)]
    if factors is None or factors.is_complex() or not factors.numel():
        return None
    first = factors.flatten()[0]
    if not torch.allclose(factors, first.expand_as(factors)):
        return None
    others = [edge for edge in graph.reads[node] if edge[0] not in signal]
    parameter, operators = _origin(graph, others[0]) if len(others) == 1 else (None, ())
    return Multiplier(node, float(first), operator_name(node) == "Div", parameter, operators)


@dataclass(frozen=True, slots=True, eq=False)
class Amplifier:
    """An operation on entries that multiplies the gradient by large numbers."""

    node: Node
    factor: float
    """Root mean square of the numbers."""
    parameter: Tensor | None = None
    """The one parameter that its divisor or other factor is computed from; the bias of the layer that computes it; or None."""
    operators: tuple[str, ...] = ()
    """What is computed from the parameter, without operators that only move entries, the first one first."""


def amplifiers(graph: Graph, signal: Set[Node], roots: Iterable[Edge], *, least: float) -> Iterator[Amplifier]:
    """Yield the operations behind the last products with weights that multiply the gradient of each entry.

    Args:
        graph: The graph.
        signal: Nodes that carry the signal.
        roots: Where the backward pass starts.
        least: Root mean square of the factors from which on an operation is yielded.
    """
    pending = [node for node, _ in roots]
    seen = set(pending)
    while pending:
        node = pending.pop(0)
        name = operator_name(node)
        if name in PRODUCTS and any(leaf.dim() >= 2 for leaf in leaves_read(graph, signal, [node])):
            continue
        operands = [edge for edge in graph.reads[node] if edge[0] in signal]
        sizes = _local_gains(node, operands) if name not in MOVES and not is_custom(node) else []
        for operand, size in zip(operands, sizes):
            if size >= least:
                yield Amplifier(node, size, *_origin_of_factor(graph, signal, node, operand))
            if name == "Div" and operand == node.next_functions[0]:
                # What is divided by a small number: the derivative by the divisor is as large, and of the same origin.
                break
        new = dict.fromkeys(producer for producer, _ in operands if producer not in seen)
        seen |= new.keys()
        pending += new


def _local_gains(node: Node, operands: Sequence[Edge]) -> list[float]:
    """Return for each operand what the gradient of each entry is multiplied by; 0 where entries are summed or copied."""
    entries = output_metadata(node)
    shape = tuple(entries[0].shape)
    alike = [tuple(output_metadata(producer)[number].shape) == shape for producer, number in operands]
    if len(entries) > 1 or not any(alike):
        return [0.0] * len(operands)
    # What the node has saved may have been overwritten.
    with suppress(RuntimeError):
        given = apply_node(node, [torch.ones(shape, dtype=entries[0].dtype, device=entries[0].device)])
        found = [given[node.next_functions.index(operand)] for operand in operands]
        return [
            root_mean_square(g) if is_alike and g is not None and g.numel() else 0.0
            for g, is_alike in zip(found, alike)
        ]
    return [0.0] * len(operands)


def _origin_of_factor(
    graph: Graph, signal: Set[Node], node: Node, operand: Edge
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return the parameter that a divisor or another factor comes from, or the bias of the layer that computes it."""
    is_divided = operator_name(node) == "Div"
    others = [e for e in graph.reads[node] if (e in node.next_functions[1:] if is_divided else e != operand)]
    if len(others) != 1:
        return None, ()
    ((producer, _),) = others
    if producer not in signal:
        return _origin(graph, others[0])
    layer = next(nearest_products(graph, signal, producer), None)
    return (None, ()) if layer is None else (layer.bias, ("the layer", *sorted(layer.behind - MOVES)))


def _origin(graph: Graph, edge: Edge) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return the one leaf that a number is computed from, and the operators on the way; None if there are more leaves."""
    operators: list[str] = []
    node = edge[0]
    while (leaf := leaf_of(node)) is None:
        reads = graph.reads[node]
        if len(reads) != 1:
            return None, ()
        if operator_name(node) not in MOVES:
            operators.insert(0, operator_name(node))
        node = reads[0][0]
    return leaf, tuple(operators)
