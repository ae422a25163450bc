"""Reference products: the whole backward pass by one call of autograd, and node by node in Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from pytest_trainability.engine.capture.chain import Chain
from pytest_trainability.engine.capture.graph import Graph
from pytest_trainability.engine.capture.recorder import Edge
from pytest_trainability.engine.jacobian.vjp import Cotangents, pull_back, random_cotangents

__all__ = [
    "FORKS",
    "assert_same",
    "interpreted",
    "is_nested",
    "one_backward",
    "one_of",
    "product",
    "some_cotangents",
]

# Autograd sums the gradients that arrive at a fork in the order in which branches finish. A segment that ends at a fork adds the
# cotangent of the skip last, and the whole backward pass may add it first: x + (y + z) instead of (x + y) + z.
FORKS = 16
"""Units in the last place, of the largest entry, by which reordered sums may differ."""


def product(chain: Chain, columns: Cotangents) -> Cotangents:
    """Pull cotangents of the last state back to the first one, segment by segment."""
    for index in range(len(chain), 0, -1):
        columns = pull_back(chain, index, columns)
    return columns


def one_backward(chain: Chain, columns: Cotangents) -> Cotangents:
    """Pull one cotangent of the last state back to the first one in a single call of autograd."""
    first, last = chain.cut.states[0], chain.cut.states[-1]
    roots = [(edge, column[0]) for edge, column in zip(last, columns) if column is not None]
    found = torch.autograd.grad(
        [GradientEdge(*edge) for edge, _ in roots],
        [GradientEdge(*edge) for edge in first],
        [column for _, column in roots],
        retain_graph=True,
        allow_unused=True,
    )
    return [None if g is None else g.unsqueeze(0) for g in found]


@torch.no_grad()
def interpreted(graph: Graph, chain: Chain, columns: Cotangents) -> Cotangents:
    """Run the backward pass node by node in Python, without autograd's engine, and stop at every edge of the first state.

    One call of the engine cannot be the reference if one edge of the first state lies upstream of another one: the engine
    continues through the inputs, and counts the paths between them twice.
    """
    first, last = set(chain.cut.states[0]), chain.cut.states[-1]
    signal = graph.downstream(first)
    arrived: dict[Edge, Tensor] = {edge: c[0] for edge, c in zip(last, columns) if c is not None}
    for node in reversed(list(graph.nodes)):
        if node not in signal or not any(edge[0] is node and edge not in first for edge in arrived):
            continue
        metadata = node._input_metadata
        given = [arrived.get((node, i)) if (node, i) not in first else None for i in range(len(metadata))]
        sent = _call(
            node, [torch.zeros(tuple(m.shape), dtype=m.dtype) if g is None else g for g, m in zip(given, metadata)]
        )
        for (producer, number), gradient in zip(node.next_functions, sent):
            if producer is not None and gradient is not None and (producer in signal or (producer, number) in first):
                edge = (producer, number)
                arrived[edge] = arrived[edge] + gradient if edge in arrived else gradient
    return [arrived[edge].unsqueeze(0) if edge in arrived else None for edge in chain.cut.states[0]]


def _call(node: Node, given: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    sent = node.apply(*given) if hasattr(node, "apply") and not callable(node) else node(*given)  # type: ignore[operator]
    return sent if isinstance(sent, tuple) else (sent,)


def is_nested(graph: Graph, edges: Sequence[Edge]) -> bool:
    """Return whether one of the edges lies upstream of another one."""
    return any(edge[0] in graph.downstream([other]) for other in edges for edge in edges if edge is not other)


def assert_same(found: Cotangents, expected: Cotangents, *, ulps: float = 0.0) -> None:
    """Compare to the last bit, or to a number of units in the last place of the largest entry; None equals zero."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        if one is None or other is None:
            present = one if other is None else other
            assert present is None or not present.any()
            continue
        assert one.shape == other.shape
        if ulps:
            size = float(other.abs().max())
            assert float((one - other).abs().max()) <= ulps * torch.finfo(other.dtype).eps * size
        else:
            assert torch.equal(one, other)


def some_cotangents(chain: Chain, count: int = 3) -> Cotangents:
    """Return ``count`` random cotangents of the last state."""
    return random_cotangents(chain, count, 5)


def one_of(columns: Cotangents, index: int) -> Cotangents:
    """Return one of several cotangents."""
    return [None if c is None else c[index : index + 1] for c in columns]
