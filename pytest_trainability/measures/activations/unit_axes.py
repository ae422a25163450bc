"""Along which dimension of a tensor its units lie: a tensor does not say, but the parameters that it was computed with do."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from ...engine.capture.graph import zeros_at
from ...engine.capture.recorder import Edge

__all__ = ["Layout"]


SEARCHED = 256
"""How many autograd nodes upstream of a tensor are searched for parameters."""
TRIED = 4
"""How many of the parameters found there are tried, for each costs a few gradients."""
APART = 0.9
"""Total variation between where in a parameter the gradients of different units lie: one, and less behind a norm that mixes
n units, by about 1/n. That between different samples is about a half where inputs are random, and less where they are alike."""
TIED = 0.01
"""Two dimensions along which they are apart by nearly as much are told apart by their order."""


class Layout:
    """Finds the dimensions of units: channels, features, neurons."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        """Look through the nodes of a run's graph."""
        self._norms: dict[Node | None, list[Edge]] = {}
        for node in nodes:
            if _is_group_norm(node):
                for parameter, _ in node.next_functions[1:]:
                    self._norms.setdefault(parameter, []).extend(_read(node))
        self._known: dict[tuple[int, tuple[int, ...]], tuple[int, ...]] = {}

    def unit_axes(self, edge: Edge, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the dimension that counts units, each of which has weights of its own; an empty tuple where no parameter tells.

        The nearest parameter upstream tells of which different entries along a dimension reach different entries (a bias, the
        scale of a norm), or rows or columns (a weight), as their gradients show. The dimension may be shorter than the
        parameter, for gates are parts of one layer's outputs, and they may be several, such as heads and what each is made of.
        Of one operator's parameters those with one dimension come first, which count nothing else.
        """
        tried = 0
        for parameter in _upstream(edge, self._norms):
            if tried == TRIED:
                break
            axes = parameter.axes(shape)
            if not axes:
                continue
            tried += 1
            key = id(parameter.values), tuple(shape)
            if key not in self._known:
                self._known[key] = _units(edge, shape, parameter, axes)
            if found := self._known[key]:
                return found
        return ()


@dataclass(frozen=True, slots=True, eq=False)
class _Parameter:
    """A parameter that a tensor was computed with."""

    values: Tensor
    norms: tuple[Edge, ...]
    """What group norms have read that use it, or lie nearer to the tensor."""
    is_table: bool
    """Whether its rows are looked up; they are then no units."""

    def dims(self, shape: Sequence[int]) -> list[int]:
        """Return which of its dimensions may count units: a vector's only one, the first two of a weight.

        None of a parameter that is added or multiplied as a whole, such as the embedding of positions.
        """
        long = [dim for dim, size in enumerate(self.values.shape) if size > 1]
        if self.is_table:
            return long[1:2]
        if len(long) < 2:
            return long
        own = tuple(self.values.shape[long[0] :])
        return [] if tuple(shape[-len(own) :]) == own else [dim for dim in long if dim < long[0] + 2]

    def axes(self, shape: Sequence[int]) -> list[int]:
        """Return along which dimensions of a tensor its units, or some of them, may lie, in the order to try them in.

        The last comes first: samples, each of which may look up rows of its own, lie before units. So does one as long as a
        vector, of which nothing is looked up.
        """
        sizes = [self.values.shape[dim] for dim in self.dims(shape)]
        axes = [axis for axis, length in enumerate(shape) if 1 < length <= max(sizes, default=0)]
        return sorted(axes, key=lambda axis: (len(sizes) == 1 and shape[axis] != sizes[0], -axis))


def _upstream(edge: Edge, norms_of: Mapping[Node | None, Sequence[Edge]]) -> Iterator[_Parameter]:
    """Yield the parameters that a tensor was computed with, the nearest first; copies of inputs are leaves, but none of these."""
    pending, seen = deque([edge[0]]), {edge[0]}
    norms: list[Edge] = []
    tables: set[Node | None] = set()
    while pending and len(seen) < SEARCHED:
        node = pending.popleft()
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter) and variable.numel() > 1:
            yield _Parameter(variable, (*norms, *norms_of.get(node, ())), node in tables)
        if node.name().startswith("Embedding"):
            tables.add(node.next_functions[0][0])
        if _is_group_norm(node):
            norms += _read(node)
        for further in sorted((node for node, _ in node.next_functions if node is not None), key=_is_weight):
            if further not in seen:
                seen.add(further)
                pending.append(further)


def _is_group_norm(node: Node) -> bool:
    return node.name() == "NativeGroupNormBackward0"


def _read(norm: Node) -> list[Edge]:
    """Return what a group norm has read beside its parameters, as a list of one, else an empty one."""
    return [(producer, number) for producer, number in norm.next_functions[:1] if producer is not None]


def _is_weight(node: Node) -> bool:
    """Whether this is a parameter with several dimensions, of which a transposed convolution's first one counts what it reads."""
    variable = getattr(node, "variable", None)
    return isinstance(variable, Tensor) and variable.dim() > 1


def _units(edge: Edge, shape: Sequence[int], parameter: _Parameter, axes: Sequence[int]) -> tuple[int, ...]:
    """Return the dimensions along which entries reach parts of a parameter of their own; an empty tuple where there are none."""
    size = max(parameter.values.shape[dim] for dim in parameter.dims(shape))
    apart: dict[int, float] = {}
    for axis in axes:
        apart[axis] = _apart(edge, shape, parameter, axis)
        if apart[axis] >= 1 - TIED:
            break
    least = max(APART, max(apart.values()) - TIED)
    first = next((axis for axis in apart if apart[axis] >= least), None)
    if first is None:
        return ()
    # Together they count no more units than there are.
    further = [axis for axis in axes if axis != first and shape[axis] * shape[first] <= size]
    joint = [axis for axis in further if (apart.get(axis) or _apart(edge, shape, parameter, axis)) >= least]
    return tuple(sorted([first, *joint]))


def _apart(edge: Edge, shape: Sequence[int], parameter: _Parameter, axis: int) -> float:
    """Return how little the first entries along a dimension have in common with all others, in what they reach."""
    first, rest = (_gradient(edge, parameter, axis, entries) for entries in (slice(0, 1), slice(1, None)))
    if first is None or rest is None:
        return 0.0
    dims = [dim for dim in parameter.dims(shape) if parameter.values.shape[dim] >= shape[axis]]
    return max(_distance(_spread(first, dim), _spread(rest, dim)) for dim in dims)


def _gradient(edge: Edge, parameter: _Parameter, axis: int, entries: slice) -> Tensor | None:
    """Return the gradient of some entries along ``axis`` with respect to the parameter; None where they do not depend on it.

    That with respect to what group norms have read is asked for as well, and not used: PyTorch 2.13 on the CPU dies of a
    segmentation fault where it computes the gradients of a group norm's parameters alone, and the norm reads channels last.
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
    """Return weights with which the gradients of entries, counted by the first dimension, are added up.

    They have one sign within an entry, different ones between entries, and are nowhere alike: of what a norm reads, that which
    all have in common has a gradient of zero.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    sizes = torch.rand(tuple(shape), generator=generator, device="cpu") / 2 + 0.75
    signs = torch.randint(2, tuple(shape[:1]), generator=generator, device="cpu") * 2 - 1
    return sizes * signs.reshape(-1, *(1 for _ in shape[1:]))


def _spread(gradient: Tensor, dim: int) -> Tensor:
    """Return the shares of a gradient's squares that lie at the entries of a dimension; NaN of zero."""
    sizes = gradient.abs()
    sizes = sizes.to(torch.promote_types(sizes.dtype, torch.float32))
    squares = (sizes / sizes.max()).square()
    others = [other for other in range(squares.dim()) if other != dim]
    shares = (squares.sum(dim=others) if others else squares).cpu().double()
    return shares / shares.sum()


def _distance(one: Tensor, other: Tensor) -> float:
    """Return the total variation between two distributions: 1 if they lie apart; 0 if they are alike, or one is none."""
    distance = float((one - other).abs().sum()) / 2
    return distance if math.isfinite(distance) else 0.0
