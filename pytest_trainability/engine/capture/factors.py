"""Factors of a step: the graph between two states, cut at every tensor that all paths of the signal pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import pairwise

from torch.autograd.graph import Node

from .chain import Chain
from .gradient_hooks import edges_with_hooks_apart, hooked_edges
from .graph import Cut, Graph, segment_between
from .recorder import Edge

__all__ = ["Factor", "Factorization", "factorized", "factors_between"]

# Note [Factors of a step]
# ~~~~~~~~~~~~~~~~~~~~~~~~
# The Jacobian of a step is a product of factors wherever all paths of the signal pass through one tensor: between a linear layer
# and its activation, or between the two branches of a transformer's block. The logarithms of the gains of the factors add up to
# that of the step. Between two such tensors lies either one operation, or operations on parallel paths, such as a skip connection
# and its branch, which only have a gain together.
#
# The operations of a segment are taken in program order. After each of them, the edges that were made and are still to be read
# are live. Where a single edge is live, every path from the earlier state to the later one passes through it. Edges that pass by
# the whole segment are set aside.


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """A part of the graph through whose ends every path of the signal passes."""

    inputs: tuple[Edge, ...]
    """Earlier end: a single edge, unless the factor begins at a state of several tensors."""
    roots: tuple[Edge, ...]
    """Later end: a single edge, unless the factor ends at a state of several tensors."""
    nodes: tuple[Node, ...]
    """Operations of the factor that carry the signal, in program order."""


@dataclass(frozen=True, slots=True, eq=False)
class Factorization:
    """A chain that is cut into factors instead of steps."""

    chain: Chain
    """The same signal, with a state at each end of each factor."""
    factors: tuple[Factor, ...]
    """One for each segment of this chain, in program order."""
    steps: tuple[int, ...]
    """Index, from 0 on, of the step that each factor belongs to."""


def factorized(chain: Chain, graph: Graph) -> Factorization:
    """Cut every step of a chain into factors. See Note [Factors of a step].

    Args:
        chain: The chain.
        graph: Its graph.

    Returns:
        The factorization. The product over the factors of a step is the Jacobian of this step.

    Raises:
        ModelError: A new state is the result of a module with a backward hook, and has a gradient hook as well.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    states: list[tuple[Edge, ...]] = [chain.cut.states[0]]
    factors: list[Factor] = []
    steps: list[int] = []
    for index, segment in enumerate(chain.cut.segments):
        earlier, later = chain.cut.states[index], chain.cut.states[index + 1]
        passing = {later[i] for i, _ in segment.passing}
        found = factors_between(graph, [earlier[i] for i in segment.inputs], [later[i] for i in segment.roots], order)
        for number, factor in enumerate(found):
            is_last = number == len(found) - 1
            state = later if is_last else tuple(sorted({*factor.roots, *passing}, key=lambda e: (order[e[0]], e[1])))
            states.append(state)
        factors += found
        steps += [index] * len(found)
    segments = tuple(
        segment_between(earlier, later, set(f.inputs)) for earlier, later, f in zip(states, states[1:], factors)
    )
    cut = Cut(tuple(states), segments, chain.cut.bypasses)
    refined = replace(
        chain,
        cut=cut,
        steps=tuple(chain.steps[i] for i in steps),
        names=tuple(chain.names[i] for i in steps),
        hooked=hooked_edges(edges_with_hooks_apart(cut)),
        inner_eps=tuple(chain.inner_eps[i] for i in steps) if chain.inner_eps else (),
        durations=(),
        active=(),
        roles=(),
    )
    return Factorization(refined, tuple(factors), tuple(steps))


def factors_between(
    graph: Graph, inputs: Sequence[Edge], roots: Sequence[Edge], order: dict[Node, int] | None = None
) -> list[Factor]:
    """Return the factors between two sets of edges, in program order; a single one if no inner edge is passed by all paths.

    Args:
        graph: The graph.
        inputs: The earlier end.
        roots: The later end.
        order: Place of each node in an order with producers before consumers; by default that of the graph.
    """
    order = {node: number for number, node in enumerate(graph.nodes)} if order is None else order
    sources = set(inputs)
    nodes = _between(graph, sources, roots, order)
    ends = [tuple(inputs), *_bottlenecks(graph, sources, roots, nodes), tuple(roots)]
    found: list[Factor] = []
    start = 0
    for earlier, later in pairwise(ends):
        # All nodes before a bottleneck are ancestors of it, and all after it are its descendants.
        stop = len(nodes) if later is ends[-1] else 1 + max(nodes.index(node) for node, _ in later)
        found.append(Factor(earlier, later, tuple(nodes[start:stop])))
        start = stop
    return found


def _between(graph: Graph, sources: Set[Edge], roots: Sequence[Edge], order: dict[Node, int]) -> list[Node]:
    """Return the nodes on paths from the sources to the roots, in program order."""
    pending = [edge[0] for edge in roots if edge not in sources]
    behind: set[Node] = set()
    while pending:
        node = pending.pop()
        if node not in behind:
            behind.add(node)
            pending += [edge[0] for edge in graph.reads[node] if edge not in sources]
    reached: dict[Node, None] = {}
    for node in sorted(behind, key=order.__getitem__):
        if any(edge in sources or edge[0] in reached for edge in graph.reads[node]):
            reached[node] = None
    return sorted(reached, key=lambda node: (graph.place[node], order[node]))


def _bottlenecks(
    graph: Graph, sources: Set[Edge], roots: Sequence[Edge], nodes: Sequence[Node]
) -> Iterator[tuple[Edge]]:
    """Yield the inner edges that all paths pass, in program order."""
    inside = set(nodes)
    last_reading: dict[Edge, int] = {}
    made: dict[Node, list[Edge]] = {}
    for number, node in enumerate(nodes):
        for edge in graph.reads[node]:
            if edge in sources or edge[0] in inside:
                last_reading[edge] = number
    last_reading.update(dict.fromkeys(roots, len(nodes)))
    for edge in last_reading:
        if edge not in sources:
            made.setdefault(edge[0], []).append(edge)
    live = {edge for edge in last_reading if edge in sources}
    previous: Edge | None = next(iter(sources)) if len(sources) == 1 else None
    for number, node in enumerate(nodes):
        live.update(made.get(node, ()))
        live = {edge for edge in live if last_reading[edge] > number}
        if len(live) == 1:
            (edge,) = live
            if edge != previous and (edge,) != tuple(roots):
                yield (edge,)
            previous = edge
