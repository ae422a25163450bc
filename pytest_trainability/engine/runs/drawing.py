"""Which parameters hold random numbers that were drawn while the model was built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..torch_internals import DispatchMode, StorageWeakRef
from ..trees import tensors_in

__all__ = ["Draws", "observed_draws"]

_NEW = ("empty", "zeros", "ones", "full", "new_")
"""Beginnings of the names of operators that take shape and type of a tensor, and not its entries."""
_OVERWRITING = {"copy_", "fill_", "zero_"}
"""Operators that replace the entries of their first argument."""


class Draws(DispatchMode):
    """Follows random numbers from the operator that draws them through all others, by the memory that holds them.

    Numbers that are drawn outside of PyTorch, as by numpy, are not seen. Memory that is overwritten from elsewhere, as by a
    checkpoint, holds none any more.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory: set[StorageWeakRef] = set()
        # A weak reference keeps the address of freed memory from being used again.

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._note(tensors_in(found), drawn=True)
        elif name.startswith(_NEW):
            self._note(tensors_in(found), drawn=False)
        elif name in _OVERWRITING and _is_whole(args[0]):
            self._note(args[:1], drawn=self._any(args[1:]))
        else:
            self._note(tensors_in(found), drawn=self._any((args, kwargs)))
        return found

    def _any(self, tree: Any) -> bool:
        return any(self._holds(tensor) for tensor in tensors_in(tree))

    def _holds(self, tensor: Tensor) -> bool:
        memory = _memory_of(tensor)
        return memory is not None and memory in self._memory

    def _note(self, tensors: Iterable[Any], *, drawn: bool) -> None:
        memory = {reference for tensor in tensors if (reference := _memory_of(tensor)) is not None}
        self._memory.update(memory) if drawn else self._memory.difference_update(memory)

    def of(self, model: nn.Module) -> list[str]:
        """Return the names of the trainable parameters that hold numbers which were drawn."""
        return [name for name, p in model.named_parameters() if p.requires_grad and self._holds(p)]


def _memory_of(tensor: Any) -> StorageWeakRef | None:
    """Return the memory of a tensor; None for one without, such as a sparse tensor or one of a lazy module."""
    try:
        return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    except (NotImplementedError, RuntimeError, ValueError):
        return None


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor holds all entries of its memory."""
    if _memory_of(tensor) is None:
        return False
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


@contextmanager
def observed_draws() -> Iterator[Draws]:
    """Observe the random numbers that are drawn inside the context, and where they go."""
    draws = Draws()
    with draws:
        yield draws
