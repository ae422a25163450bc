"""Along which dimension of a tensor its units lie: a tensor does not say, but the parameters that it was computed with do."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from .capture import Edge
from .graph import zeros_at

__all__ = ["Layout"]

SEARCHED = 256
"""How many autograd nodes upstream of a tensor are searched for parameters."""


class Layout:
    """Finds the dimension of units: channels, features, neurons."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}

    def channel_axis(self, edge: Edge, shape: Sequence[int]) -> int | None:
        """Return the dimension that counts units, each of which has weights of its own; None where no parameter tells.

        The nearest parameter upstream whose length (a bias, the scale of a norm) or number of rows or columns (a weight) is
        that of a dimension tells; of one operator's those with one dimension, which count nothing else. Where it is that of
        several, that one is taken whose first entry's gradient reaches the first row, or column, of the parameter alone.
        """
        for parameter in _upstream(edge):
            matches = {
                dim: axes for dim in _unit_dims(parameter, shape) if (axes := _axes(shape, parameter.shape[dim]))
            }
            # Rows that point to one dimension and columns that point to another do not tell.
            if matches and len(set(matches.values())) == 1:
                axes = next(iter(matches.values()))
                return axes[0] if len(axes) == 1 else self._most_selective(edge, shape, parameter, matches)
        return None

    def _most_selective(
        self, edge: Edge, shape: Sequence[int], parameter: Tensor, matches: Mapping[int, Sequence[int]]
    ) -> int:
        """Return the dimension along which entries have parameters of their own: rows of most weights, columns of some.

        Where the first column is all that an input of few features needs, it is so along every dimension, which does not tell.
        """
        key = id(parameter), tuple(shape)
        if key not in self._known:
            found = [
                [(_selectivity(edge, parameter, dim, axis), axis) for axis in axes] for dim, axes in matches.items()
            ]
            self._known[key] = max(max(found, key=lambda of_axes: max(of_axes)[0] - min(of_axes)[0]))[1]
        return self._known[key]


def _axes(shape: Sequence[int], size: int) -> tuple[int, ...]:
    return tuple(axis for axis, length in enumerate(shape) if length == size)


def _upstream(edge: Edge) -> Iterator[Tensor]:
    """Yield the parameters that a tensor was computed with, the nearest first."""
    pending, seen = deque([edge[0]]), {edge[0]}
    while pending and len(seen) < SEARCHED:
        node = pending.popleft()
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            yield variable
        for further in sorted((node for node, _ in node.next_functions if node is not None), key=_is_weight):
            if further not in seen:
                seen.add(further)
                pending.append(further)


def _is_weight(node: Node) -> bool:
    """Whether this is a parameter with several dimensions, of which a transposed convolution's first one counts what it reads."""
    variable = getattr(node, "variable", None)
    return isinstance(variable, Tensor) and variable.dim() > 1


def _unit_dims(parameter: Tensor, shape: Sequence[int]) -> list[int]:
    """Return which dimensions of a parameter may count units: a vector's only one, the first two of a weight.

    None of a parameter that is added or multiplied as a whole, such as the embedding of positions.
    """
    long = [dim for dim, size in enumerate(parameter.shape) if size > 1]
    if len(long) < 2:
        return long
    own = tuple(parameter.shape[long[0] :])
    return [] if tuple(shape[-len(own) :]) == own else [dim for dim in long if dim < long[0] + 2]


def _selectivity(edge: Edge, parameter: Tensor, dim: int, axis: int) -> float:
    """Return which part of the gradient of the first entries along ``axis`` reaches the parameter's first entry along ``dim``."""
    cotangent = zeros_at(edge)
    cotangent.select(axis, 0).fill_(1)
    found: Tensor | None = torch.autograd.grad(
        [GradientEdge(*edge)], [parameter], [cotangent], retain_graph=True, allow_unused=True
    )[0]
    if found is None:
        return 0.0
    sizes = found.to_dense().detach().abs().double().cpu()
    total = float(sizes.sum())
    return float(sizes.select(dim, 0).sum()) / total if total > 0 else 0.0
