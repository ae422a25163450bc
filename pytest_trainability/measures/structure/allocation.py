"""Uninitialized parameters and buffers: the model is built again in memory that is filled with NaN."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.runs.building import built
from ...engine.runs.requirements import require_factory
from ...engine.runs.run import Need, Run, Stage
from ...engine.torch_internals import TorchDispatchMode, is_lazy
from ...engine.trees import is_float
from ..measure import declare

__all__ = ["UNINITIALIZED", "allocated_as_nan", "as_allocated", "named_tensors"]


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
    """Return the parameters and buffers that have values, by name, each tensor once."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: t.detach() for name, t in named if not is_lazy(t) and t.layout is torch.strided and t.numel()}


class _AllocatedAsZero(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fills new memory with zeros."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        return found.zero_() if name in _ALLOCATORS and not found.is_meta else found


_ALLOCATORS = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}


def _uninitialized(run: Run) -> list[str]:
    require_factory(run, "uninitialized_parameters")
    with allocated_as_nan(), built(run.recipe, run.seed, []) as (model, _):
        left = {name: as_allocated(tensor) for name, tensor in named_tensors(model).items()}
    left = {name: entries for name, entries in left.items() if entries.any()}
    if left:
        # A NaN or True that the model has written also appears in zeroed memory. Ordinary memory may hold one by coincidence.
        zeroed: TorchDispatchMode = _AllocatedAsZero()  # type: ignore[no-untyped-call]
        with zeroed, built(run.recipe, run.seed, []) as (model, _):
            written = {name: as_allocated(tensor) for name, tensor in named_tensors(model).items()}
        left = {name: entries & ~written[name] if name in written else entries for name, entries in left.items()}
    return [name for name, entries in left.items() if entries.any()]


UNINITIALIZED: Need[list[str]] = Need("uninitialized parameters", _uninitialized, Stage.RERUN)
"""Names of the parameters and buffers with entries that were never written."""


@declare("names", needs=[UNINITIALIZED])
def uninitialized_parameters(run: Run) -> list[str]:
    """Return the parameters and buffers that were allocated, but not completely written.

    The factory builds the model again while PyTorch fills new memory with NaN (integers with the largest one, booleans with
    True). An entry was never written if it has this value, and does not have it when the model is built in zeroed memory. A
    tensor of integers or booleans counts only if none of its entries was written. Parameters of lazy modules, which have no
    values yet, are omitted.

    It misleads if values are loaded after the factory has returned, and for memory that does not come from PyTorch
    (``numpy.empty``).

    Returns:
        Names of parameters, then of buffers, in the model's order.

    Raises:
        InapplicableError: The model is a finished module, which cannot be built again.

    Source: pytorch/torchtitan#2450.
    """
    return run[UNINITIALIZED]
