"""An instrument that sees the results of all operations in a forward pass, also between modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import multi_head_attention_forward

from ..torch_internals import function_transforms_are_active, without_dispatch, without_torch_functions
from ..trees import is_float, tensors_in
from .function_mode import FunctionObserver

__all__ = ["ResultObserver", "opened_attention", "unmasked"]

opened_attention = without_dispatch(multi_head_attention_forward)
"""``multi_head_attention_forward``, whose inner operations are visible to function modes."""


_MOVES = frozenset(
    {"view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "alias"}
    | {"transpose", "permute", "swapaxes", "swapdims", "movedim", "t", "adjoint", "expand", "expand_as", "as_strided"}
    | {"chunk", "split", "tensor_split", "unbind", "narrow", "select", "diagonal", "unfold", "detach", "clone"}
    | {"__getitem__", "index_select", "gather", "repeat", "repeat_interleave", "cat", "concat", "stack", "roll", "flip"}
    | {"broadcast_to", "broadcast_tensors", "requires_grad_", "view_as_real", "view_as_complex", "__get__", "__set__"}
)
"""Functions that move entries. Their results hold no new values."""
_MEMORY = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "resize_as_"})
"""Functions whose results hold whatever memory holds."""


class ResultObserver(FunctionObserver):
    """Observes the floating-point results of all PyTorch functions that a model calls, except those that move entries.

    What happens inside a function, such as the scores in fused attention or the squares in a norm, is not seen. Neither is what
    happens in scripted functions and in transforms of ``torch.func``. Subclasses override :meth:`observe`.
    """

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, and observe its results."""
        if func is multi_head_attention_forward:
            with self:
                return opened_attention(*args, **kwargs)
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") in _MOVES | _MEMORY or function_transforms_are_active():
            return result
        with without_torch_functions(), torch.no_grad():
            for tensor in tensors_in(result):
                if is_float(tensor) and not tensor.is_meta and tensor.numel():
                    self.observe(self.path, tensor.detach())
        return result

    def observe(self, path: str, result: Tensor) -> None:
        """Observe a result.

        Args:
            path: Name of the module that computed it, or ``"loss"``.
            result: The result, detached: real or complex numbers of any layout, at least one.
        """
        raise NotImplementedError


LOWEST = -1e8
"""Entries up to this number, or up to the smallest number of their type, mask scores if no entry is as far above 0."""


def unmasked(values: Tensor) -> tuple[Tensor, float]:
    """Replace the entries that mask scores by 0.

    Such entries are ``-inf``, the smallest number of a type, or at most -10⁸, in a tensor whose largest entry is not as large.

    Args:
        values: Real numbers of any shape, at least one.

    Returns:
        The values, and the largest absolute value among them; NaN if an entry is NaN.
    """
    low, high = _ends(values)
    lowest = max(torch.finfo(values.dtype).min, LOWEST)
    if low <= lowest < -high:
        values = values.masked_fill(values <= lowest, 0)
        low, high = _ends(values)
    return values, max(-low, high)


def _ends(values: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest entry; NaN twice if an entry is NaN."""
    low, high = torch.aminmax(values)
    return float(low), float(high)
