"""The autograd graph of a run, and its cuts: the states at given moments and the segments between them."""

from __future__ import annotations

import traceback
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ...errors import CutError
from ..torch_internals import is_leaf_node, output_metadata, sequence_number
from .recorder import Edge

__all__ = ["Cut", "Graph", "Segment", "freed_in_order", "segment_between", "zeros_at"]

# Note [Program order]
# ~~~~~~~~~~~~~~~~~~~~
# Autograd numbers its nodes as the forward pass creates them. A moment of the forward pass, such as the return of a module, is
# therefore a number: every node below it was created before, every other node afterwards. The state at a moment is the set of
# edges that a later node reads and an earlier node made, as far as they carry the signal. This needs no knowledge of modules:
# it holds for skips, several tensors, shared modules and operations in place.
#
# A cut at a moment is a cut of the graph only if no node reads from a later one. `Graph.place` guarantees that: it is the
# sequence number, corrected where necessary (see Note [In-place rebasing]). Leaves report the largest number there is, but
# exist before the forward pass begins: their place is -1.
#
# Note [In-place rebasing]
# ~~~~~~~~~~~~~~~~~~~~~~~~
# When a tensor is changed in place, the nodes of its views are outdated. PyTorch renews the node of a view when the view is
# next read:
#
#     view = base[:, 2:]
#     base.mul_(1.5)
#     doubled = view * view   # creates MulBackward0, then the new node of `view`
#
# The new node has a higher sequence number than the node that reads it. A node is therefore placed no earlier than any node
# that it reads from. Everywhere else, its place is its sequence number.
#
# Note [Passing edges]
# ~~~~~~~~~~~~~~~~~~~~
# An edge may lie in the states at both ends of a segment, as a skip connection does that passes by the step. The segment does
# not differentiate it: its cotangent is handed on unchanged, and the contributions of the segment's own nodes are added to it.
# `Segment` lists such edges in `passing`, never in `roots`. They are in `inputs` as well where a node of the segment reads
# them.
#
# Note [By-passes]
# ~~~~~~~~~~~~~~~~
# The first state is where the chain begins, so its tensors are independent variables, even if one was computed from another.
# Every node that depends on them carries the signal, whenever it was created. A node that was created before the first moment,
# such as that of a scaled copy of the input, belongs to the first segment.
#
# Along depth, a tensor that exists before the first step may be read after the last one. In `x - body(x)`, the input returns at
# the end; in a loss computed by the model, the input returns as the target. This path passes by all steps. Its gain would hide
# theirs: a body whose gradient is 1e-14 would have a log gain near 0. Such a reading is therefore no part of the chain: the last
# state does not contain the tensor, and a tensor that steps read as well is live only until the last of them has read it. With
# independent variables x_0, the product over all segments is the Jacobian of the remaining x_L. A skip that passes by some of
# the steps stays: it carries the signal from one step to another.
#
# Note [Freeing deep graphs]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~
# PyTorch frees a graph without recursion, except for nodes that Python has seen: their Python objects free their producers one
# inside the other. A chain of a hundred thousand such nodes overflows the stack and kills the process (as of PyTorch 2.13).
# `freed_in_order` releases the nodes one by one, consumers before producers, so that no release triggers another one. This
# works only if nothing else holds on to the nodes by then.


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of the graph between two neighbouring states, as indices into the edges of these states."""

    roots: tuple[int, ...]
    """Edges of the later state that this segment made."""
    inputs: tuple[int, ...]
    """Edges of the earlier state that this segment reads."""
    passing: tuple[tuple[int, int], ...]
    """Edges in both states, as (index in the later, index in the earlier). See Note [Passing edges]."""


@dataclass(frozen=True, slots=True)
class Cut:
    """States ``x_0 … x_L`` at L + 1 moments, and the L segments between them."""

    states: tuple[tuple[Edge, ...], ...]
    segments: tuple[Segment, ...]
    bypasses: tuple[Edge, ...] = ()
    """Edges from before the first moment that are read after the last one and are no part of it. See Note [By-passes]."""


@contextmanager
def freed_in_order() -> Iterator[list[Node]]:
    """Yield a list to collect the nodes of a graph in, producers before consumers, and release them in reverse order at the end.

    Nothing else may hold the nodes when the context ends. See Note [Freeing deep graphs].
    """
    nodes: list[Node] = []
    try:
        yield nodes
    except BaseException as error:
        if nodes:
            traceback.clear_frames(error.__traceback__)
        raise
    finally:
        while nodes:
            nodes.pop()


def zeros_at(edge: Edge) -> Tensor:
    """Return zeros with the shape, dtype and device of the tensor that an edge stands for."""
    node, number = edge
    entry = output_metadata(node)[number]
    return torch.zeros(tuple(entry.shape), dtype=entry.dtype, device=entry.device)


class Graph:
    """All nodes between the given roots and the leaves, each with its place in program order. See Note [Program order]."""

    def __init__(self, roots: Iterable[Edge]) -> None:
        self.reads: dict[Node, tuple[Edge, ...]] = {}
        """The edges that each node reads."""
        self.place: dict[Node, int] = {}
        """The place of each node in program order; producers come before consumers, also in this dictionary."""
        self._downstream: dict[tuple[frozenset[Edge], int], frozenset[Node]] = {}
        reads, place = self.reads, self.place
        pending = [node for node, _ in roots]
        while pending:
            node = pending[-1]
            if node in place:
                pending.pop()
                continue
            if node not in reads:
                reads[node] = tuple([edge for edge in node.next_functions if edge[0] is not None])  # type: ignore[misc]
                missing = [producer for producer, _ in reads[node] if producer not in place]
                if missing:
                    pending.extend(missing)
                    continue
            pending.pop()
            latest = -1 if is_leaf_node(node) else sequence_number(node)
            for producer, _ in reads[node]:
                # See Note [In-place rebasing].
                latest = max(latest, place[producer])
            place[node] = latest

    @property
    def nodes(self) -> Iterable[Node]:
        """All nodes, producers before consumers."""
        return self.place.keys()

    def downstream(self, edges: Iterable[Edge], *, since: int = -2) -> frozenset[Node]:
        """Return the nodes that depend on the given edges through nodes not placed before ``since``."""
        sources = frozenset(edges)
        found = self._downstream.get((sources, since))
        if found is None:
            reached: set[Node] = set()
            for node, place in self.place.items():
                if place < since:
                    continue
                for edge in self.reads[node]:
                    if edge[0] in reached or edge in sources:
                        reached.add(node)
                        break
            found = self._downstream[sources, since] = frozenset(reached)
        return found

    def consumers(self) -> dict[Node, list[tuple[Node, int]]]:
        """Return for each node the nodes that read from it, each with the position of that operand."""
        found: dict[Node, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for position, (producer, _) in enumerate(node.next_functions):
                if producer is not None:
                    found.setdefault(producer, []).append((node, position))
        return found

    def cut(self, x0: Sequence[Edge], moments: Sequence[int], last: Sequence[Edge], *, bypasses: bool = True) -> Cut:
        """Cut the graph at moments in program order.

        The state at a moment is the set of edges that a node after it reads from a node before it and that carry the signal.
        An edge carries the signal if it is in ``x0`` or depends on ``x0``.

        Args:
            x0: Edges whose influence is the signal, as independent variables. They may have been made at any time.
            moments: L + 1 places in program order, ascending.
            last: Edges that count as read after the last moment although no node reads them: results of the model.
            bypasses: Whether an edge from before the first moment belongs to the last state if it is read after the last
                moment. See Note [By-passes].

        Returns:
            The states, each with its edges in the order in which they were made, the segments, and the by-passes that were
            excluded.

        Raises:
            CutError: The first or the last state is empty.
        """
        first = set(x0)
        # What leads to x_0 alone is of no influence: x_0 is independent of it.
        signal = self.downstream(first) & self._leading_on(first, last)
        states: list[dict[Edge, None]] = [{} for _ in moments]
        read: list[set[Edge]] = [set() for _ in moments]
        excluded: dict[Edge, None] = {}
        for edge, segment in self._readings(first, moments, last, signal):
            # What depends on x_0 and was made before the first moment belongs to segment 1.
            made_in = 0 if edge in first else max(1, bisect_right(moments, self.place[edge[0]]))
            is_early = made_in == 0 or self.place[edge[0]] < moments[0]
            if is_early and segment == len(moments) and not bypasses:
                excluded[edge] = None
                continue
            for index in range(made_in, segment):
                states[index][edge] = None
            if made_in < segment:
                read[segment - 1].add(edge)
        if not states[0] or not states[-1]:
            raise CutError(_empty(excluded))
        ordered = [tuple(sorted(state, key=self._order)) for state in states]
        segments = tuple(segment_between(*pair) for pair in zip(ordered, ordered[1:], read))
        return Cut(tuple(ordered), segments, tuple(sorted(excluded, key=self._order)))

    def _leading_on(self, x0: Set[Edge], last: Sequence[Edge]) -> set[Node]:
        """Return the nodes that a root of the graph, or an edge of ``last``, depends on through edges outside of ``x0``."""
        read = {edge[0] for edges in self.reads.values() for edge in edges}
        found = {edge[0] for edge in last if edge not in x0} | {node for node in self.nodes if node not in read}
        for node in reversed(self.place):
            if node in found:
                found.update(edge[0] for edge in self.reads[node] if edge not in x0)
        return found

    def _order(self, edge: Edge) -> tuple[int, int]:
        return self.place[edge[0]], edge[1]

    def _readings(
        self, x0: Set[Edge], moments: Sequence[int], last: Sequence[Edge], signal: Set[Node]
    ) -> Iterator[tuple[Edge, int]]:
        """Yield each edge that carries the signal, once for each of its readers, with the number of the segment that reads it.

        Segment l lies between the moments l - 1 and l. After the last moment lies number L + 1, which also reads the results.
        """
        for consumer in self.nodes:
            if consumer in signal:
                segment = max(1, bisect_right(moments, self.place[consumer]))
                for edge in self.reads[consumer]:
                    if edge in x0 or edge[0] in signal:
                        yield edge, segment
        for edge in last:
            if edge in x0 or edge[0] in signal:
                yield edge, len(moments)


def _empty(bypasses: Collection[Edge]) -> str:
    if bypasses:
        return (
            "nothing after the last step depends on the first state, except for what passes by all steps: the path through the "
            "steps is cut."
        )
    return "nothing after the last step depends on the first state: the path between them is cut."


def segment_between(earlier: tuple[Edge, ...], later: tuple[Edge, ...], read: set[Edge]) -> Segment:
    """Return the segment between two states, given the edges of the earlier one that nodes between them read."""
    where = {edge: index for index, edge in enumerate(earlier)}
    return Segment(
        roots=tuple(index for index, edge in enumerate(later) if edge not in where),
        inputs=tuple(where[edge] for edge in earlier if edge in read),
        passing=tuple((index, where[edge]) for index, edge in enumerate(later) if edge in where),
    )
