"""Gradient hooks that a model sets on its own tensors, as MuZero does to scale gradients between its steps.

Autograd runs a tensor's hooks when a gradient arrives there, whether it is collected or handed on. A state in the middle of
a chain is met twice, once as the end of one segment and once as the beginning of the next; its hooks must count once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Size, Tensor
from torch.autograd.graph import GradientEdge, Node

__all__ = ["hooked_edges", "past_hooks", "through_hooks"]


def hooked_edges(edges: Iterable[tuple[Node, int]]) -> frozenset[tuple[Node, int]]:
    """Return the edges at which a gradient is changed before it is handed on.

    A probe with entries of both signs between 1e-3 and 1e4 is sent through each edge alone, which computes nothing.
    """
    values = torch.linspace(-10, 10, 1024, device="cpu").sinh()
    probes: dict[Any, Tensor] = {}

    def changes(edge: tuple[Node, int]) -> bool:
        node, number = edge
        entry = node._input_metadata[number]
        kind = tuple(entry.shape), entry.dtype, entry.device
        if kind not in probes:
            count = math.prod(entry.shape)
            repeated = values.to(device=entry.device, dtype=entry.dtype).repeat(-(-count // len(values)))
            probes[kind] = repeated[:count].reshape(Size(entry.shape))
        arrived = through_hooks(edge, probes[kind])
        return arrived.data_ptr() != probes[kind].data_ptr() and not torch.equal(arrived, probes[kind])

    return frozenset(edge for edge in edges if changes(edge))


def through_hooks(edge: tuple[Node, int], gradient: Tensor) -> Tensor:
    """Return what the hooks on an edge make of a gradient that arrives there."""
    (arrived,) = torch.autograd.grad([GradientEdge(*edge)], [GradientEdge(*edge)], [gradient], retain_graph=True)
    return arrived


def past_hooks(edge: tuple[Node, int], columns: Tensor) -> Iterable[tuple[tuple[Node, int], Tensor]]:
    """Carry cotangents ``(k, *shape)`` through the node of an edge, leaving out the hooks in front of it.

    Yields:
        The edges that the node reads from, each with its cotangents ``(k, *shape)``.
    """
    node, number = edge
    results = [_called(node, [c if i == number else None for i in range(len(node._input_metadata))]) for c in columns]
    for (producer, output), parts in zip(node.next_functions, zip(*results)):
        if producer is not None and type(producer).__name__ != "AccumulateGrad" and parts[0] is not None:
            yield (producer, output), torch.stack(list(parts))


def _called(node: Node, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    call = node if callable(node) else node.apply  # type: ignore[attr-defined]  # of a torch.autograd.Function
    with torch.no_grad():
        found = call(*gradients)
    return found if isinstance(found, tuple) else (found,)
