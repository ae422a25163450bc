"""Linear steps: layers without an activation between them, which are equal to one layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from ...engine.capture.function_mode import FunctionObserver
from ...engine.capture.graph import Graph
from ...engine.capture.operators import CONVOLUTIONS, MOVES, operator_name
from ...engine.capture.recorder import Call, Edge, Recorder, now
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import WeakTensorKeyDictionary, saved, sequence_number, without_torch_functions
from ...engine.trees import carries_gradient, tensors_in
from ..measure import declare

__all__ = ["LINEAR_STEPS"]


# Operators -------------------------------------------------------------------------------------------------------
_LINEAR = frozenset(
    MOVES
    | {"Diagonal", "Repeat", "Roll", "Flip", "Add", "Sub", "Rsub", "Neg", "Sum", "Mean", "Cumsum", "NativeDropout"}
    | {
        "AvgPool2D",
        "AvgPool3D",
        "AdaptiveAvgPool2D",
        "AdaptiveAvgPool3D",
        "MkldnnAdaptiveAvgPool2D",
        "Im2Col",
        "Col2Im",
    }
    | {"UpsampleNearest1D", "UpsampleNearest2D", "UpsampleNearest3D", "UpsampleLinear1D", "UpsampleTrilinear3D"}
    | {"UpsampleNearestExact1D", "UpsampleNearestExact2D", "UpsampleNearestExact3D"}
    | {"UpsampleBilinear2D", "UpsampleBilinear2DAa", "UpsampleBicubic2D", "UpsampleBicubic2DAa"}
    | {"PixelShuffle", "PixelUnshuffle", "ChannelShuffle", "NativeChannelShuffle", "ConstantPadNd"}
    | {"ReflectionPad1D", "ReflectionPad2D", "ReflectionPad3D"}
    | {"ReplicationPad1D", "ReplicationPad2D", "ReplicationPad3D"}
    | {"ViewAsReal", "ViewAsComplex", "Real", "FftR2C", "FftC2C", "FftC2R"}
)
"""Operators that are linear in all operands together."""


_PRODUCTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Mul", "Mm", "Bmm", "Mv", "Linear", "MkldnnLinear"), (0, 1)),
    **dict.fromkeys(("Addmm", "Baddbmm", "Addbmm", "Addmv"), (1, 2)),
    **dict.fromkeys(CONVOLUTIONS, (0, 1)),
}
"""Operators that are linear in each of their factors, and the positions of the factors among the operands."""


_BATCH_NORMS = frozenset({"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"})


def _is_linear_by_setting(node: Node) -> bool:
    """Whether an operator is linear because of its arguments: BatchNorm with running averages, a leaky ReLU of slope 1."""
    operator = operator_name(node)
    if operator in _BATCH_NORMS:
        return saved(node, "training", default=True) is False
    return operator == "LeakyRelu" and saved(node, "negative_slope", default=0.0) == 1.0


# Factors without a gradient --------------------------------------------------------------------------------------
def _reads_only_shape(name: str) -> bool:
    """Whether a function reads the shape of its first argument, and not its values."""
    return name.endswith("_like") or name.startswith("new_")


class _Masks(FunctionObserver):
    """Finds tensors that are computed from the signal without a gradient (masks, norms), and the operators that read them.

    Autograd treats such a tensor as a constant, and ``x * (x > 0)`` as linear.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.readers: set[int] = set()
        """Sequence numbers of autograd nodes. References to the nodes would keep the graph alive."""
        self._from_signal = WeakTensorKeyDictionary()

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = now()
        result = func(*args, **kwargs)
        with without_torch_functions():
            name = getattr(func, "__name__", "")
            operands = list(tensors_in((args[_reads_only_shape(name) :], kwargs)))
            reads_mask = any(map(self._is_mask, operands))
            if reads_mask:
                self.readers.update(range(before, now()))
            if reads_mask or any(carries_gradient(t) and not t.is_leaf for t in operands):
                for computed in tensors_in(args[0] if name == "__setitem__" else result):
                    self._from_signal[computed] = True
        return result

    def _is_mask(self, tensor: Tensor) -> bool:
        return not carries_gradient(tensor) and tensor in self._from_signal


@dataclass(frozen=True, slots=True, eq=False)
class _Signal:
    """The part of the graph that depends on the first state."""

    graph: Graph
    edges: frozenset[Edge]
    """Edges of the first state."""
    nodes: frozenset[Node]
    """Nodes that depend on the first state."""
    constants: frozenset[int]
    """Addresses of the model's parameters and buffers."""
    masked: Collection[int]
    """Sequence numbers of the nodes that read a tensor which is computed from the signal without a gradient."""
    others: frozenset[Edge | Node]
    """Edges of the model's inputs that are not in the first state, and the nodes that depend on them."""

    def reaches(self, edge: tuple[Node | None, int]) -> bool:
        """Whether an edge depends on the first state, or is one of its edges."""
        return edge[0] is not None and (edge[0] in self.nodes or edge in self.edges)

    def joins_others(self, node: Node) -> bool:
        """Whether an operator also reads what depends on other inputs of the model, and not on the first state."""
        read = (edge for edge in self.graph.reads[node] if not self.reaches(edge))
        return any(edge in self.others or edge[0] in self.others for edge in read)

    def between(self, outputs: Iterable[Edge], inputs: Iterable[Edge]) -> tuple[set[Node], set[Edge]]:
        """Return the nodes on paths from the inputs to the outputs, and the inputs at which these paths begin."""
        stop = set(inputs)
        pending = [edge for edge in outputs if self.reaches(edge)]
        entered: set[Edge] = set()
        nodes: set[Node] = set()
        while pending:
            edge = pending.pop()
            if edge in stop:
                entered.add(edge)
            elif edge[0] not in nodes and edge not in self.edges:
                nodes.add(edge[0])
                pending += [read for read in self.graph.reads[edge[0]] if self.reaches(read)]
        return nodes, entered

    def is_linear_in(self, node: Node) -> bool:
        """Whether an operator is known to be linear in the signal. Unknown operators count as nonlinear."""
        operator = operator_name(node)
        reached = [self.reaches(edge) for edge in node.next_functions]
        if sequence_number(node) in self.masked:
            return False
        if operator in _LINEAR or _is_linear_by_setting(node):
            return True
        if operator == "Div":
            return not any(reached[1:]) and self._is_constant(node, "other")
        if (
            operator not in _PRODUCTS
            or sum(reached[place] for place in _PRODUCTS[operator] if place < len(reached)) != 1
        ):
            return False
        if operator == "Mul":
            return self._is_constant(node, "other" if reached[0] else "self")
        return True

    def _is_constant(self, node: Node, factor: str) -> bool:
        """Whether a factor is known to be independent of the signal."""
        try:
            value = saved(node, factor)
        except RuntimeError:
            # The factor has been overwritten.
            return False
        if not isinstance(value, Tensor) or value.numel() == 1 or value.requires_grad:
            return True
        return value.untyped_storage().data_ptr() in self.constants or _is_dropout(value)


def _is_dropout(mask: Tensor) -> bool:
    """Whether the nonzero entries of a factor are all equal, and not one, as in a dropout mask."""
    if not mask.is_floating_point():
        return False
    kept = mask[mask != 0]
    return bool(kept.numel() > 0 and (kept == kept[0]).all() and kept[0] != 1)


# Steps -----------------------------------------------------------------------------------------------------------
def _linear_steps(run: Run) -> list[str]:
    """Return the steps that are linear although an activation was expected in them or before them.

    A weight layer and the weight layer before it are equal to one layer if the second one reads only the output of the first one,
    through linear operators, and nothing else reads it. A step that contains modules is expected to be nonlinear if another
    module of its class is nonlinear, or if the step before it has the same class and is linear as well.
    """
    chain = run.chain
    if chain.along == "time":
        return []
    signal = _signal_of(run)
    readers = run.graph.consumers()
    linear = [_is_linear(signal, step.outputs, state) for step, state in zip(chain.steps, chain.cut.states)]
    classes = [type_before_parametrizations(step.module) for step in chain.steps]
    # A class is nonlinear by what its modules do, and not by activations between them.
    nonlinear_classes = {
        cls for cls, step in zip(classes, chain.steps) if not _is_linear(signal, step.outputs, step.inputs)
    }
    found = []
    for index, (name, step) in enumerate(zip(chain.names, chain.steps)):
        before = chain.steps[index - 1] if index else None
        if not linear[index]:
            continue
        if _is_layer(step.module):
            collapses = before is not None and _collapses(signal, before, step, chain.cut.states[index], readers)
        else:
            # If no step of this class is nonlinear, the one before is linear as well.
            has_same_class = before is not None and classes[index - 1] is classes[index]
            collapses = classes[index] in nonlinear_classes or has_same_class
        if collapses:
            found.append(name)
    return found


LINEAR_STEPS: Need[list[str]] = Need("linear steps", _linear_steps, instruments=(_Masks,))
"""Names of the steps that are linear although an activation was expected, in program order."""


def _signal_of(run: Run) -> _Signal:
    model, first = run.capture.model, run.chain.cut.states[0]
    held = [*model.parameters(), *model.buffers()]
    constants = frozenset(t.untyped_storage().data_ptr() for t in held if t.layout is torch.strided)
    masked = run.capture.watched[_Masks].readers
    sources = frozenset(run.capture.sources) - frozenset(first)
    others = sources | run.graph.downstream(sources) if sources else sources
    return _Signal(run.graph, frozenset(first), run.graph.downstream(first), constants, masked, others)


def _is_linear(signal: _Signal, outputs: Iterable[Edge], inputs: Iterable[Edge]) -> bool:
    """Whether the map from inputs to outputs is linear in the signal, and not empty."""
    nodes, _ = signal.between(outputs, inputs)
    return bool(nodes) and all(map(signal.is_linear_in, nodes))


def _collapses(signal: _Signal, before: Call, step: Call, state: Iterable[Edge], readers: Mapping[Node, Any]) -> bool:
    """Whether two layers are equal to one layer, without being a factorization by design."""
    if not _is_layer(before.module) or not _is_linear(signal, before.outputs, before.inputs):
        return False
    nodes, entered = signal.between(step.outputs, state)
    if any(map(signal.joins_others, nodes)):
        return False
    inside = nodes - {node for node, _ in step.outputs} | {node for node, _ in entered}
    read_by_others = any(reader not in nodes for node in inside for reader, _ in readers.get(node, ()))
    return entered <= set(before.outputs) and not read_by_others and not _factorizes(before.module, step.module)


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is a single layer: it has no submodules, except parametrizations of its weight (weight norm)."""
    children = [name for name, _ in module.named_children()]
    return not children or (is_parametrized(module) and children == ["parametrizations"])


def _factorizes(first: nn.Module, second: nn.Module) -> bool:
    """Whether two layers without an activation between them are a factorization by design.

    A bottleneck is narrower between the two layers than at both ends (LoRA, the code of an autoencoder). In a separable
    convolution, one of the two layers has groups, or their kernels extend along different dimensions.

    Returns:
        True if the missing activation is no fault.
    """
    if getattr(first, "groups", 1) > 1 or getattr(second, "groups", 1) > 1:
        return True
    before, after = _widths(first), _widths(second)
    if before is not None and after is not None and before[1] < min(before[0], after[1]):
        return True
    kernels = _kernel(first), _kernel(second)
    extended = [any(size > 1 for size in kernel) for kernel in kernels]
    return all(extended) and len(kernels[0]) == len(kernels[1]) and all(min(sizes) == 1 for sizes in zip(*kernels))


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """Return the numbers of input and output units or channels of a layer; None if they are unknown."""
    for entering, leaving in (("in_features", "out_features"), ("in_channels", "out_channels"), ("nx", "nf")):
        widths = getattr(module, entering, None), getattr(module, leaving, None)
        if isinstance(widths[0], int) and isinstance(widths[1], int):
            return widths[0], widths[1]
    return None


def _kernel(module: nn.Module) -> tuple[int, ...]:
    size = getattr(module, "kernel_size", ())
    return size if isinstance(size, tuple) else ()


@declare("names", needs=[LINEAR_STEPS])
def linear_steps(run: Run) -> list[str]:
    """Return the steps that are exactly linear although an activation was expected.

    Two layers without an activation between them are equal to one layer: ``W₂ (W₁ x + b₁) + b₂``. A weight layer is listed if it
    reads only the output of the weight layer before it, through linear operators, and nothing else reads that output. A layer
    that also reads what becomes of another input of the model, as where a condition is added, is not listed. A step
    that contains modules is listed if it is linear and another module of its class is not, or if the step before it has the same
    class and is linear as well. Bottlenecks (LoRA) and separable convolutions are linear by design, and are not listed.

    It misleads if a linear operator is unknown to it, or if a normalization with statistics of the batch lies between two
    layers: such steps count as nonlinear.

    Returns:
        Step names, in program order. The missing activation belongs before or into the listed step. Along time the list is empty,
        because linear recurrences read an input at every step.

    Source: Goodfellow, Bengio & Courville, Deep Learning (2016), section 6.1, on why hidden units must be nonlinear.
    """
    return run[LINEAR_STEPS]
