"""The autograd graph behind a run, and where moments in program order cut it."""

from __future__ import annotations

import traceback
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ...errors import CutError
from .recorder import Edge

__all__ = ["Cut", "Graph", "Segment", "freed_in_order", "zeros_at"]


@dataclass(frozen=True, slots=True)
class Segment:
    """What lies between two neighbouring states, as indices into their edges."""

    roots: tuple[int, ...]
    """Edges of the later state that were made in this segment."""
    inputs: tuple[int, ...]
    """Edges of the earlier state that this segment reads."""
    passing: tuple[tuple[int, int], ...]
    """Edges that lie in both states, as (index in the later, index in the earlier): skips passing by."""


@dataclass(frozen=True, slots=True)
class Cut:
    """States ``x_0 … x_L`` at the given moments, and the segments between them."""

    states: tuple[tuple[Edge, ...], ...]
    segments: tuple[Segment, ...]


@contextmanager
def freed_in_order() -> Iterator[list[Node]]:
    """Yield a list for the nodes of a graph, producers before consumers; at the end they are let go, the last consumer first.

    A node that Python has seen is freed by Python, and its producers with it, one inside the other: hundred thousand time steps
    one after the other overflow the stack and kill the process (pytorch 2.13). Whoever else holds nodes must have let go before.
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
    """Return zeros like the tensor that an edge stands for."""
    node, number = edge
    entry = node._input_metadata[number]
    return torch.zeros(tuple(entry.shape), dtype=entry.dtype, device=entry.device)


class Graph:
    """Nodes that lead from the roots back to leaves, each with its place in program order.

    The place of a node is its autograd sequence number, raised where necessary to that of the nodes that it reads from:
    a consumer never comes before its producer, and a cut between two moments is a cut of the graph even where an
    operator creates its nodes out of order (in-place updates of views do).
    """

    def __init__(self, roots: Iterable[Edge]) -> None:
        self.reads: dict[Node, tuple[Edge, ...]] = {}
        self.place: dict[Node, int] = {}
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
            # Leaves report the largest number there is; they are there before anything else.
            latest = -1 if type(node).__name__ == "AccumulateGrad" else node._sequence_nr()
            for producer, _ in reads[node]:
                latest = max(latest, place[producer])
            place[node] = latest

    @property
    def nodes(self) -> Iterable[Node]:
        """All nodes, producers before consumers."""
        return self.place.keys()

    def downstream(self, edges: Iterable[Edge], *, since: int = -2) -> set[Node]:
        """Return the nodes, not before ``since``, that the given edges influence."""
        sources = set(edges)
        reached: set[Node] = set()
        for node in self.nodes:
            if self.place[node] >= since and any(e in sources or e[0] in reached for e in self.reads[node]):
                reached.add(node)
        return reached

    def consumers(self) -> dict[Node, list[tuple[Node, int]]]:
        """Return for each node those that read from it, each with the place where it does."""
        found: dict[Node, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for position, (producer, _) in enumerate(node.next_functions):
                if producer is not None:
                    found.setdefault(producer, []).append((node, position))
        return found

    def cut(self, x0: Sequence[Edge], moments: Sequence[int], last: Sequence[Edge]) -> Cut:
        """Cut the graph at moments in program order.

        A state is the set of edges that cross a moment, from a node after it to a node before it, and carry the signal:
        those from which ``x0`` can be reached by nodes not before the first moment.

        Args:
            x0: Edges whose influence is the signal, whenever they were made.
            moments: L + 1 places in program order, ascending.
            last: Edges that count as read after the last moment although no node does: results.

        Raises:
            CutError: No edge of ``x0`` can be reached from what comes after the last moment.
        """
        signal = self.downstream(x0, since=moments[0])
        known = set(x0)
        states: list[dict[Edge, None]] = [{} for _ in moments]
        touched: list[set[Edge]] = [set() for _ in moments]
        for consumer in signal:
            latest = bisect_right(moments, self.place[consumer]) - 1
            for edge in self.reads[consumer]:
                if edge not in known and edge[0] not in signal:
                    continue
                earliest = 0 if edge in known else bisect_right(moments, self.place[edge[0]])
                for index in range(earliest, latest + 1):
                    states[index][edge] = None
                if earliest <= latest:
                    touched[latest].add(edge)
        for edge in last:
            if edge in known or edge[0] in signal:
                for index in range(bisect_right(moments, self.place[edge[0]]), len(moments)):
                    states[index][edge] = None
        if not states[0] or not states[-1]:
            msg = "the first state must influence what comes after the last step. It does not: the path is cut."
            raise CutError(msg)
        ordered = [tuple(sorted(state, key=lambda e: (self.place[e[0]], e[1]))) for state in states]
        return Cut(tuple(ordered), tuple(_segment(*pair) for pair in zip(ordered, ordered[1:], touched)))


def _segment(earlier: tuple[Edge, ...], later: tuple[Edge, ...], touched: set[Edge]) -> Segment:
    where = {edge: index for index, edge in enumerate(earlier)}
    return Segment(
        roots=tuple(index for index, edge in enumerate(later) if edge not in where),
        inputs=tuple(where[edge] for edge in earlier if edge in touched),
        passing=tuple((index, where[edge]) for index, edge in enumerate(later) if edge in where),
    )
