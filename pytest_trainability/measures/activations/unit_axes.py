"""The dimensions of a tensor that count units (channels, features, neurons), found from the parameters that it depends on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from ...engine.capture.graph import zeros_at
from ...engine.capture.operators import operator_name
from ...engine.capture.recorder import Edge
from ...engine.torch_internals import leaf_of

__all__ = ["Layout"]


MAX_NODES = 256
"""Number of autograd nodes upstream of a tensor that are searched for parameters."""
MAX_PARAMETERS = 4
"""Number of parameters that are examined. Each costs a few gradients."""
SEPARATED = 0.9
"""Smallest total variation between the gradients of different units, as distributions over the entries of a parameter. It is 1,
or about 1 - 1/n after a norm that mixes n units. Between different samples it is about one half for random inputs, and less for
similar ones."""
TIED = 0.01
"""If the total variations along two dimensions differ by less than this, the order of the dimensions decides."""


class Layout:
    """Finds the dimensions of tensors of one graph that count units: channels, features, neurons."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        """Collect the group norms among the nodes of a run's graph."""
        self._norms: dict[Node | None, list[Edge]] = {}
        for node in nodes:
            if _is_group_norm(node):
                for parameter, _ in node.next_functions[1:]:
                    self._norms.setdefault(parameter, []).extend(_input_of(node))
        self._known: dict[tuple[int, tuple[int, ...]], tuple[int, ...]] = {}

    def unit_axes(self, edge: Edge, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the dimensions of a tensor that count units; an empty tuple if no parameter shows them.

        Each unit has separate weights. The gradients of different units are therefore nonzero in different entries of a bias or
        of the scale of a norm, and in different rows or columns of a weight. The nearest parameter upstream for which this
        holds decides. The dimension may be shorter than the parameter, because a gate is a part of a layer's outputs. Several
        dimensions may count units together, such as heads and the features of each head. Among the parameters of one operator,
        those with a single dimension are examined first: it can count nothing but units.

        Args:
            edge: Edge of the tensor in the autograd graph.
            shape: Shape of the tensor.
        """
        examined = 0
        for parameter in _upstream_parameters(edge, self._norms):
            if examined == MAX_PARAMETERS:
                break
            axes = parameter.candidate_axes(shape)
            if not axes:
                continue
            examined += 1
            key = id(parameter.values), tuple(shape)
            if key not in self._known:
                self._known[key] = _unit_axes(edge, shape, parameter, axes)
            if found := self._known[key]:
                return found
        return ()


@dataclass(frozen=True, slots=True, eq=False)
class _Parameter:
    """A parameter that a tensor depends on."""

    values: Tensor
    norms: tuple[Edge, ...]
    """Inputs of group norms that use this parameter, or that are nearer to the tensor."""
    is_table: bool
    """Whether indices look up its rows. The rows do not count units then."""

    def dims(self, shape: Sequence[int]) -> list[int]:
        """Return the dimensions of the parameter that may count units: the only one of a vector, the first two of a weight.

        A parameter that is added or multiplied as a whole, such as a position embedding, has none.
        """
        long = [dim for dim, size in enumerate(self.values.shape) if size > 1]
        if self.is_table:
            return long[1:2]
        if len(long) < 2:
            return long
        trailing = tuple(self.values.shape[long[0] :])
        return [] if tuple(shape[-len(trailing) :]) == trailing else [dim for dim in long if dim < long[0] + 2]

    def candidate_axes(self, shape: Sequence[int]) -> list[int]:
        """Return the dimensions of a tensor that may count units, in the order of examination.

        Later dimensions come first, because samples, each of which may look up separate rows, come before units. For a vector, a
        dimension of equal length comes before all others.
        """
        sizes = [self.values.shape[dim] for dim in self.dims(shape)]
        axes = [axis for axis, length in enumerate(shape) if 1 < length <= max(sizes, default=0)]
        return sorted(axes, key=lambda axis: (len(sizes) == 1 and shape[axis] != sizes[0], -axis))


def _upstream_parameters(edge: Edge, norms_of: Mapping[Node | None, Sequence[Edge]]) -> Iterator[_Parameter]:
    """Yield the parameters that a tensor depends on, the nearest first."""
    pending, seen = deque([edge[0]]), {edge[0]}
    norms: list[Edge] = []
    tables: set[Node | None] = set()
    while pending and len(seen) < MAX_NODES:
        node = pending.popleft()
        variable = leaf_of(node)
        if isinstance(variable, nn.Parameter) and variable.numel() > 1:
            yield _Parameter(variable, (*norms, *norms_of.get(node, ())), node in tables)
        if operator_name(node).startswith("Embedding"):
            tables.add(node.next_functions[0][0])
        if _is_group_norm(node):
            norms += _input_of(node)
        for further in sorted((node for node, _ in node.next_functions if node is not None), key=_is_weight):
            if further not in seen:
                seen.add(further)
                pending.append(further)


def _is_group_norm(node: Node) -> bool:
    return operator_name(node) == "NativeGroupNorm"


def _input_of(norm: Node) -> list[Edge]:
    """Return the edge of a group norm's input, as a list with one element, or an empty one if it carries no gradient."""
    return [(producer, number) for producer, number in norm.next_functions[:1] if producer is not None]


def _is_weight(node: Node) -> bool:
    """Whether a node is a parameter with several dimensions."""
    variable = leaf_of(node)
    return isinstance(variable, Tensor) and variable.dim() > 1


def _unit_axes(edge: Edge, shape: Sequence[int], parameter: _Parameter, axes: Sequence[int]) -> tuple[int, ...]:
    """Return the dimensions along which entries depend on separate parts of a parameter; an empty tuple if there are none."""
    size = max(parameter.values.shape[dim] for dim in parameter.dims(shape))
    separation: dict[int, float] = {}
    for axis in axes:
        separation[axis] = _separation(edge, shape, parameter, axis)
        if separation[axis] >= 1 - TIED:
            break
    least = max(SEPARATED, max(separation.values()) - TIED)
    first = next((axis for axis in separation if separation[axis] >= least), None)
    if first is None:
        return ()
    # Several dimensions together count no more units than the parameter has.
    further = [axis for axis in axes if axis != first and shape[axis] * shape[first] <= size]
    joint = [axis for axis in further if (separation.get(axis) or _separation(edge, shape, parameter, axis)) >= least]
    return tuple(sorted([first, *joint]))


def _separation(edge: Edge, shape: Sequence[int], parameter: _Parameter, axis: int) -> float:
    """Return the total variation between the gradients of the first entries along a dimension and of all others."""
    first, rest = (_gradient(edge, parameter, axis, entries) for entries in (slice(0, 1), slice(1, None)))
    if first is None or rest is None:
        return 0.0
    dims = [dim for dim in parameter.dims(shape) if parameter.values.shape[dim] >= shape[axis]]
    return max(_total_variation(_distribution(first, dim), _distribution(rest, dim)) for dim in dims)


def _gradient(edge: Edge, parameter: _Parameter, axis: int, entries: slice) -> Tensor | None:
    """Return the gradient of some entries along ``axis`` with respect to the parameter; None if they do not depend on it.

    The gradients with respect to the inputs of group norms are computed as well, and not used. PyTorch 2.13 on the CPU crashes
    with a segmentation fault if it computes only the gradients of a group norm's parameters, and the input is in channels-last
    format.
    """
    cotangent = zeros_at(edge)
    within = cotangent.movedim(axis, 0)[entries]
    within.copy_(_weights(within.shape))
    wanted = [
        torch.autograd.graph.get_gradient_edge(parameter.values),
        *(GradientEdge(*norm) for norm in parameter.norms),
    ]
    found: Tensor | None = torch.autograd.grad(
        [GradientEdge(*edge)], wanted, [cotangent], retain_graph=True, allow_unused=True
    )[0]
    return None if found is None else found.to_dense().detach()


def _weights(shape: Sequence[int]) -> Tensor:
    """Return a cotangent with different absolute values everywhere, and a random sign for each index of the first dimension.

    A constant cotangent would not do: a norm removes what its inputs have in common, and the gradient of a constant is zero.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    sizes = torch.rand(tuple(shape), generator=generator, device="cpu") / 2 + 0.75
    signs = torch.randint(2, tuple(shape[:1]), generator=generator, device="cpu") * 2 - 1
    return sizes * signs.reshape(-1, *(1 for _ in shape[1:]))


def _distribution(gradient: Tensor, dim: int) -> Tensor:
    """Return the shares of a gradient's sum of squares by index of a dimension, ``(size,)``; NaN for a gradient of zero."""
    sizes = gradient.abs()
    sizes = sizes.to(torch.promote_types(sizes.dtype, torch.float32))
    squares = (sizes / sizes.max()).square()
    others = [other for other in range(squares.dim()) if other != dim]
    shares = (squares.sum(dim=others) if others else squares).cpu().double()
    return shares / shares.sum()


def _total_variation(one: Tensor, other: Tensor) -> float:
    """Return the total variation of two distributions: 1 for disjoint supports, 0 if they are equal or one is NaN."""
    distance = float((one - other).abs().sum()) / 2
    return distance if math.isfinite(distance) else 0.0
