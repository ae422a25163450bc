"""Weight layers: modules with weights that mix the entries of the signal, such as linear layers and convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

from torch import nn
from torch.autograd.graph import Node
from torch.nn.utils.parametrize import is_parametrized

from ..torch_internals import leaf_of, output_metadata
from .chain import dependent_nodes
from .graph import Graph
from .operators import ENTRYWISE, operator_name
from .recorder import Capture, Edge

__all__ = ["WeightLayers"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_MIXING = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase, *_CONVOLUTIONS)
"""Modules whose weights are known to mix entries."""
_SCALING = (nn.LayerNorm, nn.RMSNorm)
"""Modules whose weights may have several dimensions and are known to scale entries."""


class WeightLayers:
    """The modules of one run that are weight layers.

    A weight layer is a module that itself, without its children, owns a parameter of two or more dimensions, unless the graph
    shows that this parameter acts entry by entry: that it scales, shifts or joins the signal, as the weight of a normalization
    over two dimensions or a position embedding does.

    Args:
        capture: The run.
        graph: Its graph.
    """

    def __init__(self, capture: Capture, graph: Graph) -> None:
        self._capture, self._graph = capture, graph
        self._known: dict[int, bool] = {}

    @cached_property
    def _signal(self) -> set[Node]:
        return dependent_nodes(self._capture, self._graph)

    @cached_property
    def _consumers(self) -> dict[Node, list[tuple[Node, int]]]:
        return self._graph.consumers()

    @cached_property
    def _leaves(self) -> dict[int, Node]:
        return {id(leaf): node for node in self._graph.nodes if (leaf := leaf_of(node)) is not None}

    def __contains__(self, module: nn.Module) -> bool:
        key = id(module)
        if key not in self._known:
            self._known[key] = self._mixes(module)
        return self._known[key]

    def owns_weight(self, module: nn.Module) -> bool:
        """Return whether the module itself owns a parameter of two or more dimensions, whatever the parameter does."""
        return any(parameter.dim() >= 2 for parameter in _own(module))

    def _mixes(self, module: nn.Module) -> bool:
        if not self.owns_weight(module) or isinstance(module, _SCALING):
            return False
        weights = (parameter for parameter in _own(module) if parameter.dim() >= 2)
        return isinstance(module, _MIXING) or any(map(self._mixes_entries, weights))

    def _mixes_entries(self, weight: nn.Parameter) -> bool:
        """Whether an operator that reads the weight and the signal mixes entries. If no operator does, nothing is known."""
        leaf = self._leaves.get(id(weight))
        readers = list(self._readers(leaf)) if leaf is not None else []
        return not readers or not all(map(self._is_entrywise, readers))

    def _readers(self, leaf: Node) -> Iterator[Node]:
        """Yield the nodes that read both the signal and what operators on parameters alone make of a leaf."""
        pending, seen = [leaf], {leaf}
        while pending:
            for consumer, _ in self._consumers.get(pending.pop(), ()):
                if consumer in self._signal:
                    yield consumer
                elif consumer not in seen:
                    seen.add(consumer)
                    pending.append(consumer)

    def _is_entrywise(self, node: Node) -> bool:
        """Whether an operator acts on each entry of the signal. A product that broadcasts the signal belongs to a contraction."""
        name = operator_name(node)
        if name not in ENTRYWISE:
            return False
        sizes = [_size(edge) for edge in self._graph.reads[node] if edge[0] in self._signal]
        return name != "Mul" or _size((node, 0)) <= max(sizes, default=0)


def _own(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of a module itself, including those of its parametrizations."""
    yield from module.parameters(recurse=False)
    if is_parametrized(module):
        yield from module.parametrizations.parameters()  # type: ignore[union-attr]


def _size(edge: Edge) -> int:
    return math.prod(output_metadata(edge[0])[edge[1]].shape)
