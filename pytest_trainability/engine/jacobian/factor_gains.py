"""Gains of the factors of every step: one cotangent is pulled back through a chain that is cut into factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..capture.chain import Chain
from ..capture.factors import Factor, Factorization, factors_between
from ..capture.graph import Graph
from ..capture.operators import operator_name
from ..capture.recorder import Edge
from ..linalg.norms import as_float64, norm
from ..torch_internals import apply_node, output_metadata
from .qr_sweep import products_are_noise
from .trajectories import Division, Trajectories
from .vjp import Cotangents, backward, pull_back

__all__ = ["Branch", "FactorGain", "factor_gains"]

_SUMS = ("Add", "Sub", "Rsub")
SAME_SLOPES = {torch.float16: 0.05, torch.bfloat16: 0.2}
"""Relative error up to which two cotangents show the same slopes, by data type; 1e-3 for the others."""


@dataclass(frozen=True, slots=True, eq=False)
class FactorGain:
    """What one factor does to the cotangent."""

    factor: Factor
    step: int
    """Index of the step, from 0 on."""
    gain: float
    """``ln ‖Jᵀu‖ / ‖u‖``, nats, averaged over trajectories; ``-inf`` if it vanishes, NaN behind such a factor."""
    slopes: Tensor | None = None
    """Slopes of all entries where the factor acts on each entry alone, flattened, in float64; else None."""
    branches: tuple[Branch, ...] = ()
    """Paths whose results are added, where that is what the factor does."""


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One of several paths whose results are added."""

    gain: float
    """``ln ‖Jᵀu‖ / ‖u‖`` of this path alone, where u arrives at the sum."""
    factors: tuple[FactorGain, ...]
    """Factors of the path; none for a skip connection that changes nothing."""


def factor_gains(
    factorization: Factorization, graph: Graph, trajectories: Trajectories, columns: Cotangents
) -> list[FactorGain]:
    """Pull one cotangent back through all factors of a chain.

    The gains of the factors of a step add up to the growth rate of the step, for this cotangent.

    Args:
        factorization: The chain, cut into factors.
        graph: Its graph.
        trajectories: The chain of steps, and its division into trajectories.
        columns: One cotangent of the last state: for each of its edges a tensor ``(1, *shape)``, or None for zero.

    Returns:
        The factors in program order, from the first one that the cotangent reaches. Within a step, the logarithm of the norm is
        averaged over trajectories where the tensors can be divided, and is that of all of them elsewhere.
    """
    chain, steps, size = factorization.chain, factorization.steps, _Size(trajectories)
    found: list[FactorGain] = []
    for index in range(len(steps), 0, -1):
        factor, step = factorization.factors[index - 1], steps[index - 1]
        if index == len(steps) or steps[index] != step:
            # Renormalized at the end of every step, so that float32 suffices for a chain of any gain.
            columns = _unit(trajectories, columns)
            before = size.of(columns)
        arriving, columns = columns, pull_back(chain, index, columns)
        after = size.of(columns)
        if after == -math.inf or _is_noise(chain, index, after - before):
            return [FactorGain(factor, step, -math.inf), *found[::-1]]
        u = _single(factor, chain.cut.states[index], arriving)
        slopes = None if u is None else _slopes(factor, u)
        branches = () if u is None or slopes is not None else _branches(graph, factor, u, step)
        found.append(FactorGain(factor, step, after - before, slopes, branches))
        before = after
    return found[::-1]


def _is_noise(chain: Chain, index: int, gain: float) -> bool:
    """Return whether a factor has computed round-off instead of zero."""
    whole = Division(1)
    return bool(products_are_noise(chain, index, torch.tensor([math.exp(min(gain, 0.0))]), whole.norms).any())


def _single(factor: Factor, state: Sequence[Edge], columns: Cotangents) -> Tensor | None:
    """Return the cotangent of a factor's later end if both ends are single edges; None for states of several tensors."""
    if len(factor.roots) != 1 or len(factor.inputs) != 1:
        return None
    (column,) = (c for c, edge in zip(columns, state) if edge == factor.roots[0])
    return None if column is None else column[0]


def _slopes(factor: Factor, u: Tensor) -> Tensor | None:
    """Return the slopes of a factor that acts on each entry alone; None for any other one.

    Its Jacobian is diagonal: the quotient of what leaves and what enters is the same for every cotangent.
    """
    (root,), (end,) = factor.roots, factor.inputs
    if not factor.nodes or _shape(root) != _shape(end) or u.is_complex():
        return None
    other = torch.randn(u.shape, generator=torch.Generator().manual_seed(0)).to(u)
    first, second = (_product(root, end, cotangent) for cotangent in (u, other))
    if first is None or second is None:
        return None
    # The quotient of numbers near the smallest one of the data type has lost its digits.
    smallest = torch.finfo(u.dtype).tiny / torch.finfo(u.dtype).eps
    u, other, first, second = (as_float64(t) for t in (u, other, first, second))
    slopes = torch.where(torch.minimum(u.abs(), first.abs()) < smallest, second / other, first / u)
    if float(norm(slopes * other - second)) > SAME_SLOPES.get(_dtype(root), 1e-3) * float(norm(second)):
        return None
    return slopes.flatten().cpu()


def _branches(graph: Graph, factor: Factor, u: Tensor, step: int) -> tuple[Branch, ...]:
    """Return the paths whose results the last operation of a factor adds; none if it is not a sum of several paths."""
    (root,), (end,) = factor.roots, factor.inputs
    if len(factor.nodes) < 2 or operator_name(root[0]) not in _SUMS:
        return ()
    outputs = len(output_metadata(root[0]))
    arriving = apply_node(root[0], [u if i == root[1] else None for i in range(outputs)])
    paths = [
        ((node, number), part)
        for (node, number), part in zip(root[0].next_functions, arriving)
        if node is not None and part is not None and ((node, number) == end or node in factor.nodes)
    ]
    return (
        tuple(_branch(graph, end, edge, part, float(norm(u)), step) for edge, part in paths) if len(paths) > 1 else ()
    )


def _branch(graph: Graph, end: Edge, start: Edge, u: Tensor, size: float, step: int) -> Branch:
    """Pull a cotangent back along one path, from where it joins the others to the beginning of all."""
    found: list[FactorGain] = []
    for factor in reversed(factors_between(graph, [end], [start]) if start != end else []):
        (root,), (earlier,) = factor.roots, factor.inputs
        product = _product(root, earlier, u)
        if product is None or not float(norm(product)):
            found.append(FactorGain(factor, step, -math.inf))
            return Branch(-math.inf, tuple(found[::-1]))
        slopes = _slopes(factor, u)
        branches = () if slopes is not None else _branches(graph, factor, u, step)
        found.append(FactorGain(factor, step, math.log(float(norm(product)) / float(norm(u))), slopes, branches))
        u = product
    last = float(norm(u))
    return Branch(math.log(last / size) if last else -math.inf, tuple(found[::-1]))


def _product(root: Edge, end: Edge, u: Tensor) -> Tensor | None:
    """Return ``Jᵀu`` between two single edges; None if nothing arrives."""
    (product,) = backward([GradientEdge(*root)], [GradientEdge(*end)], [u.unsqueeze(0)])
    return None if product is None else product[0]


def _shape(edge: Edge) -> tuple[int, ...]:
    return tuple(output_metadata(edge[0])[edge[1]].shape)


def _dtype(edge: Edge) -> torch.dtype:
    return output_metadata(edge[0])[edge[1]].dtype


class _Size:
    """Mean over trajectories of the logarithm of the norm of a cotangent.

    A tensor inside a step may have a layout in which trajectories cannot be recognized. Then the norm of all of them counts, and
    the difference between both kinds of average is carried over from the state before.
    """

    def __init__(self, trajectories: Trajectories) -> None:
        self._division = trajectories.division
        self._gap = 0.0

    def of(self, columns: Cotangents) -> float:
        """Return the logarithm in nats; ``-inf`` if the part of a trajectory is zero."""
        state = [column[0] for column in columns if column is not None]
        joint = math.hypot(*(float(norm(column.reshape(1, -1), dim=1)) for column in state), 0.0)
        if not joint:
            return -math.inf
        if not all(self._division.divides(column.shape) for column in state):
            return math.log(joint) + self._gap
        mean = float(self._division.norms(state).log().mean())
        self._gap = mean - math.log(joint)
        return mean


def _unit(trajectories: Trajectories, columns: Cotangents) -> Cotangents:
    """Rescale the part of each trajectory to norm 1."""
    division = trajectories.division
    state = [None if column is None else column[0] for column in columns]
    factors = 1 / division.norms(state)
    return [None if column is None else division.multiply(column, factors).unsqueeze(0) for column in state]
