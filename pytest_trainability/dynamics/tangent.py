"""Tangent dynamics of a map that is iterated: how a frame of perturbations grows along a trajectory, with QR at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.trees import map_tensors, tensors_in
from ..errors import ModelError

__all__ = ["Map", "random_frame", "tangent_sweep"]


Map = Callable[[Any, int], Any]
"""Takes a state and the number of the step, and returns the next state."""


def tangent_sweep(step: Map, state: Any, frame: Tensor, steps: range, *, batched: bool) -> Iterator[tuple[Any, Tensor]]:
    """Iterate a map and carry a frame along: ``J_t Q_{t-1} = Q_t R_t``.

    Args:
        step: The map.
        state: Where it starts: a tensor, or a tree of them.
        frame: ``Q_0``, of shape ``(trajectories, size of a state, k)``, orthonormal columns.
        steps: Their numbers, which the map is given.
        batched: Whether the first dimension of every tensor of the state counts trajectories.

    Yields:
        After each step the state, and ``ln |diag R_t|`` of shape ``(trajectories, k)`` in nats; ``-inf`` where a column has
        vanished. The frame that was given is overwritten.

    Source: Benettin, Galgani, Giorgilli & Strelcyn, Meccanica 15, 9 (1980), with the QR form of Eckmann & Ruelle, Rev. Mod.
    Phys. 57, 617 (1985).
    """
    for number in steps:
        with torch.enable_grad():
            before = [t.detach().requires_grad_() for t in tensors_in(state)]
            result = step(_rebuilt(state, before), number)
        after = list(tensors_in(result))
        if not any(t.requires_grad for t in after):
            msg = (
                "step must depend on the state in autograd's eyes. What it returned carries no gradient: look for .detach(), "
                ".item(), argmax, numpy or torch.no_grad() in it."
            )
            raise ModelError(msg)
        push = _by_rows if frame.shape[1] <= frame.shape[2] + 2 else _by_columns
        Q, R = torch.linalg.qr(push(before, after, frame, batched=batched))
        frame.copy_(Q)
        state = map_tensors(result, Tensor.detach)
        yield state, R.diagonal(dim1=-2, dim2=-1).abs().log()


def random_frame(state: Any, count: int, seed: int, *, batched: bool) -> Tensor:
    """Draw an orthonormal frame of ``count`` columns, the same for every trajectory; more than fit are left out."""
    tensors = list(tensors_in(state))
    trajectories = len(tensors[0]) if batched else 1
    size = sum(t.numel() for t in tensors) // trajectories
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randn(size, min(count, size), generator=generator, dtype=torch.float64, device="cpu")
    frame: Tensor = torch.linalg.qr(drawn).Q.to(device=tensors[0].device, dtype=tensors[0].dtype)
    return frame.expand(trajectories, *frame.shape).clone()


def _split(frame: Tensor, state: Any, *, batched: bool) -> list[Tensor]:
    """Cut a frame into columns ``(k, *shape)`` for each tensor of the state."""
    columns: list[Tensor] = []
    done = 0
    for tensor in tensors_in(state):
        size = tensor.numel() // len(frame)
        part = frame[:, done : done + size].permute(2, 0, 1)
        columns.append(part.reshape(len(part), *tensor.shape) if batched else part[:, 0].reshape(-1, *tensor.shape))
        done += size
    return columns


def _join(columns: Sequence[Tensor], *, batched: bool) -> Tensor:
    """Put columns ``(k, *shape)`` of the tensors of a state together as ``(trajectories, size, k)``."""
    parts = [
        c.flatten(2) if batched and c.dim() > 2 else c.reshape(len(c), c.shape[1] if batched else 1, -1)
        for c in columns
    ]
    joined: Tensor = torch.cat(parts, dim=2)
    return joined.permute(1, 2, 0)


def _by_rows(before: Sequence[Tensor], after: Sequence[Tensor], frame: Tensor, *, batched: bool) -> Tensor:
    """Return ``J Q`` by way of the whole Jacobian, one backward pass for each of its rows: for small states."""
    rows: list[Tensor] = []
    paths = [i for i, t in enumerate(after) if t.requires_grad]
    for number in range(frame.shape[1]):
        unit = torch.zeros_like(frame[:, :, :1])
        unit[:, number] = 1
        cotangents = _split(unit, after, batched=batched)
        found = (
            torch.autograd.grad(
                [after[i] for i in paths],
                before,
                [cotangents[i][0] for i in paths],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            if paths
            else [torch.zeros_like(t) for t in before]
        )
        rows.append(_join([g.unsqueeze(0) for g in found], batched=batched)[:, :, 0])
    return torch.stack(rows, dim=1) @ frame


def _by_columns(before: Sequence[Tensor], after: Sequence[Tensor], frame: Tensor, *, batched: bool) -> Tensor:
    """Return ``J Q`` column by column, as the derivative of ``Jᵀ u`` by ``u``, in two backward passes: for large states."""
    columns = _split(frame, before, batched=batched)
    carried = [torch.zeros(frame.shape[2], *t.shape, dtype=t.dtype, device=t.device) for t in after]
    with torch.enable_grad():
        duals = [torch.zeros_like(t, requires_grad=True) for t in after]
        live = [(t, u) for t, u in zip(after, duals) if t.requires_grad]
        found = (
            torch.autograd.grad(
                [t for t, _ in live], before, [u for _, u in live], create_graph=True, allow_unused=True
            )
            if live
            else [None] * len(before)
        )
    paths = [(g, column) for g, column in zip(found, columns) if g is not None and g.requires_grad]
    for number in range(frame.shape[2] if paths else 0):
        products = torch.autograd.grad(
            [g for g, _ in paths], duals, [column[number] for _, column in paths], retain_graph=True, allow_unused=True
        )
        for whole, product in zip(carried, products):
            if product is not None:
                whole[number] = product
    return _join(carried, batched=batched)


def _rebuilt(tree: Any, tensors: Sequence[Tensor]) -> Any:
    """Return the tree with its tensors replaced, in their order."""
    given = iter(tensors)
    return map_tensors(tree, lambda _: next(given))
