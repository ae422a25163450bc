"""Memory that was allocated and never written: the model is built again in memory that is filled with NaN."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..torch_internals import DispatchMode, is_lazy, is_packed
from ..trees import is_float
from .building import built
from .run import Need, Run, Stage

__all__ = ["UNWRITTEN", "allocated_as_nan", "as_allocated", "named_tensors", "unwritten_tensors"]


@contextmanager
def allocated_as_nan() -> Iterator[None]:
    """Let PyTorch fill new memory with NaN, with the largest integer, or with True, depending on its type.

    This covers ``torch.empty``, ``empty_like``, ``new_empty``, ``torch.Tensor(n)``, ``resize_``, ``to_empty`` and
    ``skip_init``. Random numbers are drawn as without it.
    """
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    try:
        # Memory is filled in deterministic mode only. Operators without a deterministic algorithm may still run.
        torch.use_deterministic_algorithms(True, warn_only=True)  # noqa: FBT003  its own signature
        settings.fill_uninitialized_memory = True
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic.*")
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        settings.fill_uninitialized_memory = fills


def as_allocated(tensor: Tensor) -> Tensor:
    """Return which entries have the value with which :func:`allocated_as_nan` fills memory, as booleans.

    For integers and booleans, either all entries count or none: a single entry may have that value by design.
    """
    if is_float(tensor):
        return (tensor.float() if tensor.element_size() == 1 else tensor).isnan()
    untouched = tensor if tensor.dtype is torch.bool else tensor == torch.iinfo(tensor.dtype).max
    return untouched & untouched.all()


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers that have values that PyTorch reads, by name, each tensor once."""
    named = [*model.named_parameters(), *model.named_buffers()]
    have_values = ((n, t) for n, t in named if not is_lazy(t) and t.layout is torch.strided and t.numel())
    return {name: tensor.detach() for name, tensor in have_values if not is_packed(tensor)}


class _AllocatedAsZero(DispatchMode):
    """Fills new memory with zeros."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        return found.zero_() if name in _ALLOCATORS and not found.is_meta else found


_ALLOCATORS = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}


Build: TypeAlias = Callable[[], AbstractContextManager[nn.Module]]
"""Builds the model, always with the same seed, for the length of a context."""


def unwritten_tensors(build: Build) -> list[str]:
    """Return the names of the parameters and buffers with entries that were never written.

    The model is built in memory that is filled with NaN, and once more in zeroed memory if that leaves any.

    Args:
        build: Builds the model.

    Returns:
        Names of parameters, then of buffers, in the model's order.
    """
    with allocated_as_nan(), build() as model:
        left = {name: as_allocated(tensor) for name, tensor in named_tensors(model).items()}
    left = {name: entries for name, entries in left.items() if entries.any()}
    if left:
        # A NaN or True that the model has written also appears in zeroed memory. Ordinary memory may hold one by coincidence.
        zeroed: DispatchMode = _AllocatedAsZero()  # type: ignore[no-untyped-call]
        with zeroed, build() as model:
            written = {name: as_allocated(tensor) for name, tensor in named_tensors(model).items()}
        left = {name: entries & ~written[name] if name in written else entries for name, entries in left.items()}
    return [name for name, entries in left.items() if entries.any()]


def _unwritten(run: Run) -> list[str]:
    @contextmanager
    def build() -> Iterator[nn.Module]:
        with built(run.recipe, run.seed, []) as (model, _):
            yield model

    # Whether memory is written is a property of the code, and each comparison takes one or two builds.
    is_finished = isinstance(run.recipe.model, nn.Module)
    return run.of_first_seed(UNWRITTEN.name, lambda: [] if is_finished else unwritten_tensors(build))


UNWRITTEN: Need[list[str]] = Need("tensors that were never written", _unwritten, Stage.RERUN, once=True)
"""Names of the parameters and buffers with entries that were never written. A finished module, which cannot be built again, has
none."""
