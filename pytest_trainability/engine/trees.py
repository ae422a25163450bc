"""Tensors inside nested containers: the inputs and outputs of models."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.utils.rnn import PackedSequence

from .torch_internals import registered_children

__all__ = [
    "batch_size",
    "carries_gradient",
    "is_empty",
    "is_float",
    "map_tensors",
    "named_tensors",
    "tensors_in",
    "to_tensor_like",
    "with_tensors",
]


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of a tree, depth first.

    The branches of a tree are tuples, lists, mappings (such as ``ModelOutput`` of transformers), dataclasses, distributions,
    graphs of PyTorch Geometric, and containers that are registered with ``torch.utils._pytree``. Tensors in other objects are
    skipped. So are those in a key-value cache: it holds tensors for later calls, which are not outputs.
    """
    pending = [tree]
    seen: set[int] = set()
    while pending:
        node = pending.pop()
        if isinstance(node, Tensor):
            yield node
        elif type(node) not in _LEAVES:
            children = _children(node)
            if children and id(node) not in seen:
                seen.add(id(node))
                pending.extend(child for _, child in reversed(children))


_LEAVES = frozenset({type(None), bool, int, float, str, slice, torch.Size, torch.dtype, torch.device})
"""Types of frequent leaves without tensors."""


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
    if isinstance(node, (tuple, list)):
        return [(f"[{index}]", value) for index, value in enumerate(node)]
    if isinstance(node, Mapping):
        return [(f"[{key!r}]", value) for key, value in node.items()]
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return [(f".{field.name}", getattr(node, field.name, None)) for field in dataclasses.fields(node)]
    if isinstance(node, Distribution):
        held = ((name, value) for name, value in vars(node).items() if not name.startswith("_"))
        return [(f".{name}", value) for name, value in held if isinstance(value, (Tensor, Distribution))]
    if _is_graph_data(node):
        return [(f"[{key!r}]", value) for key, value in node.to_dict().items()]
    if (registered := _registered(node)) is not None:
        return [(f"<{index}>", child) for index, child in enumerate(registered[0])]
    return []


def _is_graph_data(node: Any) -> bool:
    """Whether an object is a graph, or a batch of graphs, of PyTorch Geometric."""
    return any(
        f"{base.__module__}.{base.__name__}" == "torch_geometric.data.data.BaseData" for base in type(node).__mro__
    )


def _registered(node: Any) -> tuple[list[Any], Callable[[list[Any]], Any]] | None:
    """Return children of a registered container, except of a key-value cache, and the function that rebuilds it."""
    return None if type(node).__name__.endswith("Cache") else registered_children(node)


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
    if _is_graph_data(tree):
        return copy.copy(tree).apply(change)
    if (registered := _registered(tree)) is not None:
        return registered[1]([map_tensors(child, change) for child in registered[0]])
    return tree


def with_tensors(tree: Any) -> Any:
    """Return a tree with numpy arrays replaced by tensors, and the same tree if there are none.

    Floating-point arrays get PyTorch's default type, as numpy makes most of them float64. Arrays of other things than numbers
    stay as they are.
    """
    if isinstance(tree, np.ndarray):
        return _as_tensor(tree) if tree.dtype.kind in "biufc" else tree
    if isinstance(tree, (tuple, list)):
        items = [with_tensors(item) for item in tree]
        if all(new is old for new, old in zip(items, tree)):
            return tree
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if isinstance(tree, dict):
        changed = {key: with_tensors(value) for key, value in tree.items()}
        if all(changed[key] is tree[key] for key in tree):
            return tree
        copied = copy.copy(tree)
        copied.update(changed)
        return copied
    return tree


def _as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array).copy())
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


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
