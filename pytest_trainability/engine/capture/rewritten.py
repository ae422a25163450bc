"""Parameters that the forward pass writes, as a data-dependent initialization does in the first one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..torch_internals import is_lazy, version_of, without_torch_functions
from ..trees import is_float

__all__ = ["Rewritten", "Snapshot"]

LARGEST_COPY = 2**14
"""Number of entries up to which the values of a parameter are compared. Of larger ones, PyTorch's count of writes is compared,
which writes to ``.data`` do not change."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """Means of a parameter before and after the forward pass that wrote it."""

    before: float
    """NaN if it is not known."""
    after: float


class Snapshot:
    """The parameters of a model before its forward pass.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        with without_torch_functions(), torch.no_grad():
            self._before = {
                name: (parameter, version_of(parameter), _copied(parameter))
                for name, parameter in model.named_parameters()
                if not is_lazy(parameter) and is_float(parameter) and not parameter.is_meta
            }

    def rewritten(self) -> Mapping[str, Rewritten]:
        """Return the parameters with other values than before, by name, in the model's order."""
        found = {}
        with without_torch_functions(), torch.no_grad():
            for name, (parameter, version, before) in self._before.items():
                if before is None and version_of(parameter) != version:
                    found[name] = Rewritten(math.nan, _mean(parameter))
                elif before is not None and not _are_equal(parameter, before):
                    found[name] = Rewritten(_mean(before), _mean(parameter))
        return found


def _copied(parameter: Tensor) -> Tensor | None:
    is_plain = parameter.layout is torch.strided and not parameter.is_nested
    return parameter.detach().clone() if is_plain and parameter.numel() <= LARGEST_COPY else None


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same entries; NaN equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())


def _mean(tensor: Tensor) -> float:
    values = tensor.detach()
    return float((values.abs() if values.is_complex() else values).double().mean())
