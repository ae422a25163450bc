"""Jacobian-vector products: the backward pass of a segment is linear, and its derivative is the segment's Jacobian."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ...errors import CutError
from ..capture.chain import Chain
from ..capture.graph import zeros_at
from ..capture.recorder import Edge
from .vjp import Cotangents, barrier, quiet_batching

__all__ = ["push_forward"]


def push_forward(chain: Chain, index: int, columns: Cotangents) -> Cotangents:
    """Apply ``J_l`` of segment ``l = index`` (1 … L) to k tangents of state l - 1.

    ``J_l v`` is the gradient of ``⟨J_lᵀ u, v⟩`` with respect to ``u``. This takes two backward passes, and no second forward
    pass.

    Args:
        chain: The chain.
        index: Number of the segment, 1 … L.
        columns: Tangents of state l - 1: for each of its edges a tensor ``(k, *shape)``, or None for zero.

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
            found = _tangents(chain, outputs, inputs, [columns[i] for i in segment.inputs])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CutError(_not_differentiable(chain.names[index - 1], str(error).splitlines()[0])) from error
        for i, product in zip(segment.roots, found):
            result[i] = product
    for i, j in segment.passing:
        result[i] = columns[j]
    return result


def _tangents(
    chain: Chain, outputs: Sequence[Edge], inputs: Sequence[Edge], columns: Cotangents
) -> list[Tensor | None]:
    cotangents = [zeros_at(edge).requires_grad_() for edge in outputs]
    with barrier(chain, inputs):
        products = torch.autograd.grad(
            [GradientEdge(*edge) for edge in outputs],
            [GradientEdge(*edge) for edge in inputs],
            cotangents,
            create_graph=True,
            allow_unused=True,
        )
    pairs = [(g, c) for g, c in zip(products, columns) if g is not None and g.requires_grad and c is not None]
    if not pairs:
        return [None] * len(outputs)
    roots, carried = zip(*pairs)
    try:
        return _differentiated(roots, cotangents, carried, batched=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        # An operator without a batching rule: one tangent after the other.
        single = [_differentiated(roots, cotangents, [c[i] for c in carried]) for i in range(len(carried[0]))]
        return [
            None if parts[0] is None else torch.stack([p for p in parts if p is not None]) for parts in zip(*single)
        ]


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
