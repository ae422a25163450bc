"""Tangent dynamics of an iterated map: a frame of perturbations is carried along a trajectory, with QR after every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.trees import map_tensors, tensors_in
from ..errors import ModelError

__all__ = ["Map", "random_frame", "tangent_sweep"]


Map = Callable[[Any, int], Any]
"""Maps a state and the number of the step to the next state."""


def tangent_sweep(step: Map, state: Any, frame: Tensor, steps: range, *, batched: bool) -> Iterator[tuple[Any, Tensor]]:
    """Iterate a map and carry a frame of tangents along: ``J_t Q_{t-1} = Q_t R_t``.

    Args:
        step: The map.
        state: Initial state: a tensor or a tree of tensors.
        frame: ``Q_0`` of shape ``(trajectories, n, k)`` with orthonormal columns, n numbers per state; overwritten by ``Q_t``.
        steps: Numbers of the steps, passed on to the map.
        batched: Whether the first dimension of every tensor of the state counts trajectories.

    Yields:
        After each step the state, and ``ln |diag R_t|`` of shape ``(trajectories, k)`` in nats; ``-inf`` where a column vanishes.

    Raises:
        ModelError: The new state does not depend on the old one in the autograd graph.

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
                "the result of step must depend on the state in the autograd graph. It carries no gradient. Look for "
                ".detach(), .item(), argmax, numpy or torch.no_grad() in step."
            )
            raise ModelError(msg)
        push = _by_rows if frame.shape[1] <= frame.shape[2] + 2 else _by_columns
        Q, R = torch.linalg.qr(push(before, after, frame, batched=batched))
        frame.copy_(Q)
        state = map_tensors(result, Tensor.detach)
        yield state, R.diagonal(dim1=-2, dim2=-1).abs().log()


def random_frame(state: Any, count: int, seed: int, *, batched: bool) -> Tensor:
    """Draw an orthonormal frame, the same for every trajectory.

    Returns:
        Columns of shape ``(trajectories, n, min(count, n))``, for states of n numbers, with the dtype and device of the state.
    """
    tensors = list(tensors_in(state))
    trajectories = len(tensors[0]) if batched else 1
    size = sum(t.numel() for t in tensors) // trajectories
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randn(size, min(count, size), generator=generator, dtype=torch.float64, device="cpu")
    frame: Tensor = torch.linalg.qr(drawn).Q.to(device=tensors[0].device, dtype=tensors[0].dtype)
    return frame.expand(trajectories, *frame.shape).clone()


def _split(frame: Tensor, state: Any, *, batched: bool) -> list[Tensor]:
    """Split a frame into one tensor of k columns, ``(k, *shape)``, for each tensor of the state."""
    columns: list[Tensor] = []
    done = 0
    for tensor in tensors_in(state):
        size = tensor.numel() // len(frame)
        part = frame[:, done : done + size].permute(2, 0, 1)
        columns.append(part.reshape(len(part), *tensor.shape) if batched else part[:, 0].reshape(-1, *tensor.shape))
        done += size
    return columns


def _join(columns: Sequence[Tensor], *, batched: bool) -> Tensor:
    """Join the columns ``(k, *shape)`` of the tensors of a state to ``(trajectories, n, k)``: the inverse of :func:`_split`."""
    parts = [
        c.flatten(2) if batched and c.dim() > 2 else c.reshape(len(c), c.shape[1] if batched else 1, -1)
        for c in columns
    ]
    joined: Tensor = torch.cat(parts, dim=2)
    return joined.permute(1, 2, 0)


def _by_rows(before: Sequence[Tensor], after: Sequence[Tensor], frame: Tensor, *, batched: bool) -> Tensor:
    """Return ``J Q`` by computing all rows of ``J``, one backward pass for each: cheaper for small states."""
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
    """Return ``J Q`` column by column, as derivatives of ``Jᵀ u`` with respect to ``u``: cheaper for large states."""
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
    """Return a copy of the tree with its tensors replaced by others, in the same order."""
    remaining = iter(tensors)
    return map_tensors(tree, lambda _: next(remaining))
