"""A model as it was built: statistics of its parameters and buffers, and the classes of its modules."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from ..engine.modules import named_modules_of
from ..engine.torch_internals import PARAMETRIZED
from ..records.tensors import TensorStatistics
from .copies import copies_among
from .parts import parts_of
from .statistics import is_readable, statistics_of

__all__ = ["ModelDescription", "describe", "initial_tensors"]


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Initial values and modules of one model."""

    values: dict[str, TensorStatistics]
    """Statistics by name: of parameters, then of buffers, in the model's order. A tensor of several names has its first one."""
    shapes: dict[str, tuple[int, ...]]
    """Shapes of the same tensors."""
    modules: dict[str, str]
    """Class by name, in the model's order; the model itself has the empty name."""
    copies: dict[str, str] = field(default_factory=dict)
    """Names of tensors that equal an earlier one entry by entry, each with that one's name."""


def describe(model: nn.Module) -> ModelDescription:
    """Return the description of a model. Nothing is run and nothing is copied.

    >>> found = describe(nn.Sequential(nn.Linear(3, 2), nn.Tanh()))
    >>> found.shapes, found.modules
    ({'0.weight': (2, 3), '0.bias': (2,)}, {'': 'Sequential', '0': 'Linear', '1': 'Tanh'})
    """
    tensors = initial_tensors(model)
    values = {name: _statistics_with_parts(tensor) for name, tensor in tensors.items()}
    return ModelDescription(
        values,
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: _class_of(module) for name, module in named_modules_of(model)},
        copies_among(tensors, values),
    )


def _statistics_with_parts(tensor: Tensor) -> TensorStatistics:
    found = statistics_of(tensor)
    return replace(found, parts=parts_of(tensor, found))


def initial_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers with entries that can be read, by name, each tensor once.

    See :func:`~pytest_trainability.init.statistics.is_readable` for what is left out.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if is_readable(tensor)}


def _class_of(module: nn.Module) -> str:
    """Return the name of a module's class; of a parametrized module, that of its class before."""
    return type(module).__name__.removeprefix(PARAMETRIZED) or type(module).__name__
