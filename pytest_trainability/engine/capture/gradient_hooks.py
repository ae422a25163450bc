"""Gradient hooks that a model registers on its own tensors, as MuZero does to scale gradients between its steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Size, Tensor
from torch.autograd.graph import GradientEdge, Node

from ...errors import ModelError
from ..torch_internals import apply_node, is_leaf_node, output_metadata
from .graph import Cut
from .operators import operator_name

__all__ = ["MODULE_HOOK", "edges_with_hooks_apart", "hooked_edges", "past_hooks", "through_hooks"]

# Note [Gradient hooks count once]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# Autograd runs the hooks of a tensor when a gradient arrives at it, both when the gradient is returned to the caller and when
# it flows on to the producers of the tensor. An inner state of a chain is reached twice: as the input of one segment and as the
# output of the next one. If both products ran the hooks, a hook that halves the gradient would quarter it.
#
# The hooks therefore run in the product in which the gradient arrives at the state (`through_hooks`). The other product starts
# right behind the hooks: it calls the node itself (`past_hooks`). Only edges whose hooks change a gradient need this
# (`hooked_edges`). `Tensor.retain_grad`, for instance, registers a hook that changes nothing. The first state needs it as well if
# it has several tensors, or if a later segment reads it again: the gradients of some inputs are then collected before their hooks
# (Note [Barrier at the inputs]).


MODULE_HOOK = "BackwardHookFunctionBackward"
"""Name of the nodes that PyTorch adds to the arguments and to the results of a module with backward hooks."""


def edges_with_hooks_apart(cut: Cut) -> set[tuple[Node, int]]:
    """Return the edges of states whose hooks may not run where their gradient is collected.

    See Note [Gradient hooks count once].
    """
    first = cut.states[0]
    inner = {edge for state in cut.states[1:-1] for edge in state}
    return {*inner, *first} if len(first) > 1 or not inner.isdisjoint(first) else inner


def hooked_edges(edges: Iterable[tuple[Node, int]]) -> frozenset[tuple[Node, int]]:
    """Return the edges whose hooks change a gradient.

    A probe, with entries of both signs between 1e-2 and 1e4, is sent through the hooks of each edge. No node runs.

    Raises:
        ModelError: An edge is the result of a module with a backward hook, which cannot run without the hooks of its result.
    """
    # The entries are in the order of multiples of the golden ratio, so that a few of them already cover the range.
    values = torch.linspace(-10, 10, 1024, device="cpu").sinh()[633 * torch.arange(1024, device="cpu") % 1024]
    probes: dict[Any, Tensor] = {}

    def changes(edge: tuple[Node, int]) -> bool:
        node, number = edge
        entry = output_metadata(node)[number]
        kind = tuple(entry.shape), entry.dtype, entry.device
        if kind not in probes:
            count = math.prod(entry.shape)
            repeated = values.to(device=entry.device, dtype=entry.dtype).repeat(-(-count // len(values)))
            probes[kind] = repeated[:count].reshape(Size(entry.shape))
        arrived = through_hooks(edge, probes[kind])
        return arrived.data_ptr() != probes[kind].data_ptr() and not torch.equal(arrived, probes[kind])

    found = frozenset(edge for edge in edges if changes(edge))
    if any(operator_name(node) == MODULE_HOOK for node, _ in found):
        msg = (
            "the result of a step must not have both a gradient hook (Tensor.register_hook) and a backward hook of its module "
            "(register_full_backward_hook). Both act on the same state, and cannot be told apart. Remove one of them for this "
            "measurement, or choose other steps with steps=..."
        )
        raise ModelError(msg)
    return found


def through_hooks(edge: tuple[Node, int], gradient: Tensor) -> Tensor:
    """Return the gradient that the hooks of an edge make of the given one."""
    (arrived,) = torch.autograd.grad([GradientEdge(*edge)], [GradientEdge(*edge)], [gradient], retain_graph=True)
    return arrived


def past_hooks(edge: tuple[Node, int], cotangents: Tensor) -> Iterable[tuple[tuple[Node, int], Tensor]]:
    """Carry cotangents ``(k, *shape)`` through the node of an edge without running the hooks of the edge.

    See Note [Gradient hooks count once].

    Yields:
        The edges that the node reads, except leaves, each with its cotangents ``(k, *shape)``.
    """
    node, number = edge
    outputs = range(len(output_metadata(node)))
    with torch.no_grad():
        results = [apply_node(node, [c if i == number else None for i in outputs]) for c in cotangents]
    for (producer, output), parts in zip(node.next_functions, zip(*results)):
        if producer is not None and not is_leaf_node(producer) and parts[0] is not None:
            yield (producer, output), torch.stack(list(parts))
