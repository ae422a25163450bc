"""Tensors inside nested containers: the inputs and outputs of models."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

__all__ = [
    "batch_size",
    "carries_gradient",
    "is_empty",
    "is_float",
    "map_tensors",
    "named_tensors",
    "tensors_in",
    "to_tensor_like",
]


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of a tree of tuples, lists, mappings and dataclasses, depth first.

    ``ModelOutput`` and ``BatchFeature`` of transformers are mappings. Tensors in other objects are skipped: a key-value cache
    holds tensors for later calls, which are not outputs.
    """
    for _, tensor in named_tensors(tree):
        yield tensor


def named_tensors(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a tree as :func:`tensors_in` does, each with its place: ``['logits']``, ``[0]`` or ``.loss``.

    Yields:
        The place, empty for a tree that is a tensor, and the tensor.
    """
    pending = [("", tree)]
    seen: set[int] = set()
    while pending:
        place, node = pending.pop()
        if isinstance(node, Tensor):
            yield place, node
            continue
        children = _children(node)
        if children and id(node) not in seen:
            seen.add(id(node))
            pending.extend((place + step, child) for step, child in reversed(children))


def _children(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, Mapping):
        return [(f"[{key!r}]", value) for key, value in node.items()]
    if isinstance(node, (tuple, list)):
        return [(f"[{index}]", value) for index, value in enumerate(node)]
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return [(f".{field.name}", getattr(node, field.name, None)) for field in dataclasses.fields(node)]
    return []


def map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of the tree in which each tensor is replaced by ``change(tensor)``; other leaves stay the same objects."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, PackedSequence):
        # PyTorch requires its batch sizes on the CPU.
        indices = (None if i is None else change(i) for i in (tree.sorted_indices, tree.unsorted_indices))
        return PackedSequence(change(tree.data), tree.batch_sizes, *indices)
    if isinstance(tree, tuple):
        items = [map_tensors(item, change) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if isinstance(tree, list):
        return [map_tensors(item, change) for item in tree]
    if isinstance(tree, dict):
        changed: Any = copy.copy(tree)
        for key, value in tree.items():
            changed[key] = map_tensors(value, change)
        return changed
    if isinstance(tree, Mapping):
        return {key: map_tensors(value, change) for key, value in tree.items()}
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        changed = copy.copy(tree)
        for field in dataclasses.fields(tree):
            object.__setattr__(changed, field.name, map_tensors(getattr(tree, field.name), change))
        return changed
    return tree


def is_float(tensor: Tensor) -> bool:
    """Return whether a tensor holds floating-point or complex numbers, and not integers or booleans."""
    return tensor.is_floating_point() or tensor.is_complex()


def carries_gradient(tensor: Tensor) -> bool:
    """Return whether gradients flow into a tensor: it is floating-point or complex, and requires grad."""
    return tensor.requires_grad and is_float(tensor)


def batch_size(tree: Any) -> int | None:
    """Return the length of the first dimension of the first tensor with dimensions, or None if there is no such tensor."""
    for tensor in tensors_in(tree):
        if tensor.dim() > 0:
            return int(tensor.shape[0])
    return None


def is_empty(tree: Any) -> bool:
    """Return whether a tensor of the tree has no elements."""
    return any(tensor.numel() == 0 for tensor in tensors_in(tree))


def to_tensor_like(value: Tensor, *, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    """Move a tensor to ``device``; convert it to ``dtype`` if it is floating-point, and to its complex type if it is complex."""
    if dtype is not None and value.is_floating_point():
        return value.to(device=device, dtype=dtype)
    if dtype is not None and value.is_complex():
        # PyTorch computes little with complex numbers of half precision.
        return value.to(device=device, dtype=torch.complex128 if dtype == torch.float64 else torch.complex64)
    return value.to(device=device)
