"""Jacobian-vector products: the backward pass of a segment is linear, and its derivative is the segment's Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ...errors import CutError
from ..capture.chain import Chain
from ..capture.graph import zeros_at
from ..capture.recorder import Edge
from .vjp import Cotangents, barrier, quiet_batching

__all__ = ["Backward", "push_forward"]


@dataclass(frozen=True, slots=True)
class Backward:
    """The backward pass of a segment as a differentiable function: ``J_lᵀ u`` at ``u = 0``, which is linear in u."""

    cotangents: tuple[Tensor, ...]
    """``u``, for each root of the segment."""
    products: tuple[Tensor | None, ...]
    """``J_lᵀ u``, for each input of the segment; None where nothing arrives."""


def push_forward(
    chain: Chain, index: int, columns: Cotangents, *, kept: dict[int, Backward] | None = None
) -> Cotangents:
    """Apply ``J_l`` of segment ``l = index`` (1 … L) to k tangents of state l - 1.

    ``J_l v`` is the gradient of ``⟨J_lᵀ u, v⟩`` with respect to ``u``. This takes two backward passes, the first of which can be
    kept, and no second forward pass.

    Args:
        chain: The chain.
        index: Number of the segment, 1 … L.
        columns: Tangents of state l - 1: for each of its edges a tensor ``(k, *shape)``, or None for zero.
        kept: Differentiable backward passes by number of the segment, to which that of this segment is added: a further product
            with it then takes one backward pass instead of two. None to keep none, which saves their memory.

    Returns:
        Tangents of state l: for each of its edges a tensor ``(k, *shape)``, or None for zero.

    Raises:
        CutError: The segment's backward pass cannot be differentiated, or the model sets gradient hooks on states.
    """
    _without_hooks(chain, index)
    segment = chain.cut.segments[index - 1]
    later, earlier = chain.cut.states[index], chain.cut.states[index - 1]
    result: Cotangents = [None] * len(later)
    if segment.roots and any(columns[i] is not None for i in segment.inputs):
        outputs, inputs = [later[i] for i in segment.roots], [earlier[i] for i in segment.inputs]
        try:
            kept = {} if kept is None else kept
            if index not in kept:
                kept[index] = _differentiable_backward(chain, outputs, inputs)
            found = _tangents(kept[index], [columns[i] for i in segment.inputs])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CutError(_not_differentiable(chain.names[index - 1], str(error).splitlines()[0])) from error
        for i, product in zip(segment.roots, found):
            result[i] = product
    for i, j in segment.passing:
        result[i] = columns[j]
    return result


def _differentiable_backward(chain: Chain, outputs: Sequence[Edge], inputs: Sequence[Edge]) -> Backward:
    cotangents = tuple(zeros_at(edge).requires_grad_() for edge in outputs)
    with barrier(chain, inputs):
        products = torch.autograd.grad(
            [GradientEdge(*edge) for edge in outputs],
            [GradientEdge(*edge) for edge in inputs],
            cotangents,
            create_graph=True,
            allow_unused=True,
        )
    return Backward(cotangents, tuple(products))


def _tangents(backward: Backward, columns: Sequence[Tensor | None]) -> list[Tensor | None]:
    cotangents, products = backward.cotangents, backward.products
    pairs = [(g, c) for g, c in zip(products, columns) if g is not None and g.requires_grad and c is not None]
    if not pairs:
        return [None] * len(cotangents)
    roots, carried = zip(*pairs)
    if len(carried[0]) > 1:
        try:
            return _differentiated(roots, cotangents, carried, batched=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # An operator without a batching rule: one tangent after the other.
            pass
    single = [_differentiated(roots, cotangents, [c[i] for c in carried]) for i in range(len(carried[0]))]
    return [None if parts[0] is None else torch.stack([p for p in parts if p is not None]) for parts in zip(*single)]


def _differentiated(
    roots: Sequence[Tensor], cotangents: Sequence[Tensor], carried: Sequence[Tensor], *, batched: bool = False
) -> list[Tensor | None]:
    with quiet_batching():
        return list(
            torch.autograd.grad(
                roots, cotangents, carried, retain_graph=True, allow_unused=True, is_grads_batched=batched
            )
        )


def _without_hooks(chain: Chain, index: int) -> None:
    if chain.hooked:
        msg = (
            "states must have no gradient hooks where products with the Jacobian itself are needed. The model sets hooks "
            f"(register_hook) that change gradients; noticed at step {chain.names[index - 1]!r}. Remove them for this "
            "measurement, or choose steps whose last state has at most 512 numbers per trajectory."
        )
        raise CutError(msg)


def _not_differentiable(name: str, reason: str) -> str:
    return (
        "the backward pass must itself be differentiable where the last state or both ends of the chain are large. "
        f"That of step {name!r} is not: {reason.rstrip('.')}. Choose steps whose last state has at most 512 numbers per "
        "trajectory, or for this measurement an implementation with PyTorch's own operators."
    )
