"""Steps that follow each other without an activation between them, so that two weights are one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.utils.weak import WeakTensorKeyDictionary

from ...engine.capture.function_mode import FunctionObserver
from ...engine.capture.graph import Graph
from ...engine.capture.operators import CONVOLUTIONS, MOVES, operator_name
from ...engine.capture.recorder import Call, Edge, Recorder, now
from ...engine.runs.run import Need, Run
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
"""Linear in all that they read together."""


_PRODUCTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Mul", "Mm", "Bmm", "Mv", "Linear", "MkldnnLinear"), (0, 1)),
    **dict.fromkeys(("Addmm", "Baddbmm", "Addbmm", "Addmv"), (1, 2)),
    **dict.fromkeys(CONVOLUTIONS, (0, 1)),
}
"""Linear in each of their factors, which stand at these places."""


_BATCH_NORMS = frozenset({"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"})


def _is_linear_by_setting(node: Node) -> bool:
    """Whether an operator is linear as it was called: BatchNorm by running averages, a leaky ReLU without a leak."""
    operator = operator_name(node)
    if operator in _BATCH_NORMS:
        return getattr(node, "_saved_training", True) is False
    return operator == "LeakyRelu" and getattr(node, "_saved_negative_slope", 0.0) == 1.0


# What autograd does not see --------------------------------------------------------------------------------------
def _reads_shape(name: str) -> bool:
    """Whether a function reads the shape of its first argument, not its numbers."""
    return name.endswith("_like") or name.startswith("new_")


class _Masks(FunctionObserver):
    """Sees masks, norms and the like that are made from the signal without a gradient, and which operators read them.

    Autograd takes them for constants, and ``x * (x > 0)`` for linear.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.readers: set[int] = set()
        """Sequence numbers of autograd nodes, not the nodes, which would be kept alive."""
        self._made = WeakTensorKeyDictionary()

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = now()
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            name = getattr(func, "__name__", "")
            read = list(tensors_in((args[_reads_shape(name) :], kwargs)))
            made_from_signal = any(map(self._is_made, read))
            if made_from_signal:
                self.readers.update(range(before, now()))
            if made_from_signal or any(carries_gradient(t) and not t.is_leaf for t in read):
                for made in tensors_in(args[0] if name == "__setitem__" else result):
                    self._made[made] = True
        return result

    def _is_made(self, tensor: Tensor) -> bool:
        return not carries_gradient(tensor) and tensor in self._made


@dataclass(frozen=True, slots=True, eq=False)
class _Signal:
    """What depends on the first state."""

    graph: Graph
    edges: frozenset[Edge]
    """The first state itself."""
    nodes: set[Node]
    constants: frozenset[int]
    """Addresses of the model's parameters and buffers."""
    masked: Collection[int]
    """Sequence numbers of the nodes that read what was made from the signal without a gradient."""

    def reaches(self, edge: tuple[Node | None, int]) -> bool:
        return edge[0] is not None and (edge[0] in self.nodes or edge in self.edges)

    def between(self, outputs: Iterable[Edge], inputs: Iterable[Edge]) -> tuple[set[Node], set[Edge]]:
        """Return the nodes that lead from the inputs to the outputs, and the inputs that they read."""
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
        """Whether an operator is known to be linear in the signal; one that is not known counts as nonlinear."""
        operator = operator_name(node)
        reached = [self.reaches(edge) for edge in node.next_functions]
        if node._sequence_nr() in self.masked:
            return False
        if operator in _LINEAR or _is_linear_by_setting(node):
            return True
        if operator == "Div":
            return not any(reached[1:]) and self._is_constant(node, "_saved_other")
        if (
            operator not in _PRODUCTS
            or sum(reached[place] for place in _PRODUCTS[operator] if place < len(reached)) != 1
        ):
            return False
        if operator == "Mul":
            return self._is_constant(node, "_saved_other" if reached[0] else "_saved_self")
        return True

    def _is_constant(self, node: Node, factor: str) -> bool:
        """Whether a factor is known not to depend on the signal."""
        try:
            value = getattr(node, factor, None)
        except RuntimeError:
            # It was overwritten.
            return False
        if not isinstance(value, Tensor) or value.numel() == 1 or value.requires_grad:
            return True
        return value.untyped_storage().data_ptr() in self.constants or _is_dropout(value)


def _is_dropout(mask: Tensor) -> bool:
    """Whether a factor is zero here and one number elsewhere, which is not one."""
    if not mask.is_floating_point():
        return False
    kept = mask[mask != 0]
    return bool(kept.numel() > 0 and (kept == kept[0]).all() and kept[0] != 1)


# Steps -----------------------------------------------------------------------------------------------------------
def _linear_steps(run: Run) -> list[str]:
    """Return the steps that an activation was expected in and that have none.

    A weight layer is one map with the layer before it if it reads nothing but that one's output, which nobody else
    reads, through linear operators only. A step that is made of modules is expected to be nonlinear where another of
    its class is, and where the step before it is of its class and linear, too.
    """
    chain = run.chain
    if chain.along == "time":
        return []
    signal = _signal_of(run)
    readers = run.graph.consumers()
    linear = [_is_linear(signal, step.outputs, state) for step, state in zip(chain.steps, chain.cut.states)]
    classes = [type_before_parametrizations(step.module) for step in chain.steps]
    nonlinear_classes = {cls for cls, is_linear in zip(classes, linear) if not is_linear}
    found = []
    for index, (name, step) in enumerate(zip(chain.names, chain.steps)):
        before = chain.steps[index - 1] if index else None
        if not linear[index]:
            continue
        if _is_layer(step.module):
            collapses = before is not None and _collapses(signal, before, step, chain.cut.states[index], readers)
        else:
            alike = before is not None and classes[index - 1] is classes[index]
            collapses = classes[index] in nonlinear_classes or (alike and linear[index - 1])
        if collapses:
            found.append(name)
    return found


LINEAR_STEPS: Need[list[str]] = Need("linear steps", _linear_steps, instruments=(_Masks,))
"""By name, in program order."""


def _signal_of(run: Run) -> _Signal:
    model, first = run.capture.model, run.chain.cut.states[0]
    held = [*model.parameters(), *model.buffers()]
    constants = frozenset(t.untyped_storage().data_ptr() for t in held if t.layout is torch.strided)
    masked = run.capture.watched[_Masks].readers
    return _Signal(run.graph, frozenset(first), run.graph.downstream(first), constants, masked)


def _is_linear(signal: _Signal, outputs: Iterable[Edge], inputs: Iterable[Edge]) -> bool:
    """Whether what lies between is linear in the signal, and something does lie there."""
    nodes, _ = signal.between(outputs, inputs)
    return bool(nodes) and all(map(signal.is_linear_in, nodes))


def _collapses(signal: _Signal, before: Call, step: Call, state: Iterable[Edge], readers: Mapping[Node, Any]) -> bool:
    """Whether two layers are one linear map, which nobody has meant to factorize."""
    if not _is_layer(before.module) or not _is_linear(signal, before.outputs, before.inputs):
        return False
    nodes, entered = signal.between(step.outputs, state)
    inside = nodes - {node for node, _ in step.outputs} | {node for node, _ in entered}
    read_by_others = any(reader not in nodes for node in inside for reader, _ in readers.get(node, ()))
    return entered <= set(before.outputs) and not read_by_others and not _factorizes(before.module, step.module)


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is one weight, without parts but those that make it (weight norm)."""
    parts = [name for name, _ in module.named_children()]
    return not parts or (is_parametrized(module) and parts == ["parametrizations"])


def _factorizes(first: nn.Module, second: nn.Module) -> bool:
    """Whether two layers without an activation between them are a factorization that is meant.

    That is a bottleneck, narrower inside than at both ends (LoRA, the code of an autoencoder), or a separable
    convolution: one of the two has groups, or they extend along different dimensions.
    """
    if getattr(first, "groups", 1) > 1 or getattr(second, "groups", 1) > 1:
        return True
    one, other = _widths(first), _widths(second)
    if one is not None and other is not None and one[1] < min(one[0], other[1]):
        return True
    kernels = _kernel(first), _kernel(second)
    extended = [any(size > 1 for size in kernel) for kernel in kernels]
    return all(extended) and len(kernels[0]) == len(kernels[1]) and all(min(sizes) == 1 for sizes in zip(*kernels))


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """Return how many units or channels a layer reads and gives out; None where that is not known."""
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

    Two layers without an activation between them are one: ``W₂ (W₁ x + b₁) + b₂``. A weight layer is named if it reads
    nothing but the output of the weight layer before it, through linear operators only, and nobody else reads that; a
    step that is made of modules if it is linear where another of its class is not, or where the one before it is linear
    as well. Meant are, and not named, bottlenecks (LoRA) and separable convolutions. It misleads where an operator is
    linear that is not known to be, and where a normalization stands between that takes its averages from the batch:
    neither is named.

    Returns:
        Step names, in program order; the step before the missing activation is the one before. None along time, where
        linear recurrences take in an input at every step.

    Source: Goodfellow, Bengio & Courville, Deep Learning (2016), section 6.1, on why hidden units must be nonlinear.
    """
    return run[LINEAR_STEPS]
