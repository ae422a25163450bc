"""The operations that the signal passes, by step of the chain: what the forward code does, independent of its numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch.autograd.graph import Node

from ..torch_internals import saved_axis
from .chain import Chain, dependent_nodes
from .gradient_hooks import MODULE_HOOK
from .graph import Graph
from .operators import KERNELS, LAYOUTS, operator_name
from .recorder import Capture

__all__ = ["AFTER", "BEFORE", "operations_by_step"]

BEFORE, AFTER = "before the first step", "after the last step"
"""Stand for the names of steps: the operations between the inputs and the first state, and those behind the last state."""

_ALONG_AXES = frozenset({"Softmax", "SafeSoftmax", "LogSoftmax", "Cumsum", "Cumprod", "Logcumsumexp"})
"""Operators along one dimension, which their result keeps: no shape shows which one."""
_UNUSUAL = re.compile(r"[^\w.]", re.ASCII)


def operations_by_step(capture: Capture, graph: Graph, chain: Chain) -> dict[str, tuple[str, ...]]:
    """Return the names of the operations that the signal passes in each step, in program order.

    The names do not depend on the kernel that PyTorch chooses: ``Convolution`` is that of all libraries. Operations that change
    only how a tensor lies in memory (``View``, ``Clone`` and others) are left out, since PyTorch inserts them where it has to.
    An operation along one dimension that keeps all sizes has its number, counted from the last one: ``Softmax[-1]``.

    Args:
        capture: The run.
        graph: Its graph.
        chain: Its chain.

    Returns:
        Names by step, first :data:`BEFORE` and last :data:`AFTER`, where there are any.
    """
    *inner, after = chain.program(graph, _name_of)
    found = {BEFORE: _before(capture, graph, chain), **dict(zip(chain.names, inner)), AFTER: after}
    recorded = {step: tuple(_recorded(names)) for step, names in found.items()}
    return {step: names for step, names in recorded.items() if names or step not in {BEFORE, AFTER}}


def _before(capture: Capture, graph: Graph, chain: Chain) -> list[str]:
    """Return the names of the operators between the model's inputs and the first state."""
    first = chain.cut.states[0]
    upstream: set[Node] = {node for node, _ in first}
    for node in reversed(list(graph.nodes)):
        if node in upstream:
            upstream.update(producer for producer, _ in graph.reads[node])
    nodes = (upstream & dependent_nodes(capture, graph)) - graph.downstream(first)
    return [_name_of(node) for node in sorted(nodes, key=graph.place.__getitem__)]


def _name_of(node: Node) -> str:
    name = operator_name(node)
    axis = saved_axis(node) if name in _ALONG_AXES else None
    return name if axis is None else f"{name}[{axis}]"


def _recorded(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        operator, *axis = name.partition("[")
        if operator not in LAYOUTS and operator != MODULE_HOOK:
            yield "".join([KERNELS.get(operator) or _UNUSUAL.sub("_", operator), *axis])
