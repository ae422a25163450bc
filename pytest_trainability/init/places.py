"""The places of a model that hold initial values: names, shapes and fans of parameters and buffers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..engine.modules import named_modules_of
from ..engine.torch_internals import buffer_table, child_table, parameter_table
from ..errors import UsageError

__all__ = ["Place", "Tensors", "fans_of", "tensors_of"]


@dataclass(frozen=True, slots=True)
class Place:
    """Name and shape of a parameter or buffer."""

    name: str
    shape: tuple[int, ...]
    weight: tuple[int, ...] | None = None
    """Shape of the parameter ``weight`` of the same module; None if the module has none."""

    def of_shape(self, shape: tuple[int, ...]) -> Place:
        """Return the place of a part of the tensor."""
        return replace(self, shape=tuple(shape))


@dataclass(frozen=True, slots=True)
class Tensors:
    """The parameters and buffers of one model, by all names that lead to them."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    """Persistent or not, of every type."""
    weights: Mapping[str, tuple[int, ...]]
    """Shape of the weight next to each parameter, by the name of the parameter."""
    facts: Mapping[str, tuple[int, ...]]
    """Numbers that a configuration sets, such as of heads, by the name of the attribute."""
    parametrized: Mapping[str, Tensor]
    """Weights that are computed from parameters (``torch.nn.utils.parametrizations``), by the names of the weights."""
    sources: Mapping[str, tuple[str, ...]]
    """Names of the parameters from which each of them is computed."""

    @property
    def known(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {**self.parameters, **self.buffers, **self.parametrized}

    def place(self, name: str) -> Place:
        """Return the place of a parameter, a buffer, or a weight that is computed from parameters."""
        tables = (self.parameters, self.buffers, self.parametrized)
        tensor = next(table[name] for table in tables if name in table)
        return Place(name, tuple(tensor.shape), self.weights.get(name))


def tensors_of(model: nn.Module) -> Tensors:
    """Return the parameters and buffers of a model. A tensor that several modules share has several names."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    weights: dict[str, tuple[int, ...]] = {}
    facts: dict[str, set[int]] = {}
    parametrized: dict[str, Tensor] = {}
    sources: dict[str, tuple[str, ...]] = {}
    for path, module in _places(model, "", frozenset()):
        prefix = f"{path}." if path else ""
        table = parameter_table(module)
        computed = _computed(module)
        parametrized |= {prefix + name: tensor for name, (tensor, _) in computed.items()}
        sources |= {prefix + name: tuple(prefix + n for n in names) for name, (_, names) in computed.items()}
        parameters |= {prefix + name: p for name, p in table.items() if p is not None}
        buffers |= {prefix + name: b for name, b in buffer_table(module).items() if b is not None}
        weight = computed["weight"][0] if "weight" in computed else table.get("weight")
        if weight is not None:
            weights |= dict.fromkeys((prefix + name for name in table), tuple(weight.shape))
    for _, module in named_modules_of(model):
        for name, value in vars(module).items():
            if "head" in name and type(value) is int and value > 1:
                facts.setdefault("heads", set()).add(value)
    sorted_facts = {name: tuple(sorted(found)) for name, found in facts.items()}
    return Tensors(parameters, buffers, weights, sorted_facts, parametrized, sources)


def _computed(module: nn.Module) -> dict[str, tuple[Tensor, list[str]]]:
    """Return the weights that a module computes from parameters, with the names of these in the module.

    Parametrizations are in eval mode meanwhile: that of spectral normalization changes its buffers otherwise.
    """
    if not is_parametrized(module):
        return {}
    lists = cast("nn.ModuleDict", module.parametrizations)
    modes = [(part, part.training) for part in lists.modules()]
    try:
        lists.eval()
        with torch.no_grad():
            weights = {name: getattr(module, name).detach() for name in lists}
    finally:
        for part, training in modes:
            part.training = training
    return {
        name: (weight, [f"parametrizations.{name}.{inner}" for inner, _ in lists[name].named_parameters()])
        for name, weight in weights.items()
    }


def _places(module: nn.Module, path: str, above: frozenset[int]) -> Iterator[tuple[str, nn.Module]]:
    """Yield every path to every module, also those of a module that occurs several times."""
    yield path, module
    above = above | {id(module)}
    for name, child in child_table(module).items():
        if child is not None and id(child) not in above:
            yield from _places(child, f"{path}.{name}" if path else name, above)


def fans_of(place: Place, shape: tuple[int, ...] | None = None) -> tuple[int, int]:
    """Return fan-in and fan-out as ``torch.nn.init`` computes them: dimension 1 and 0, times the size of the kernel.

    Args:
        place: The place, which names the tensor in an error message.
        shape: Shape of the weight; by default that of the place.

    Raises:
        UsageError: The tensor has fewer than two dimensions.

    >>> fans_of(Place("weight", (8, 4, 3, 3)))
    (36, 72)
    """
    shape = place.shape if shape is None else shape
    if len(shape) < 2:
        msg = f"a rule with fans needs a tensor of two or more dimensions. {place.name!r} has the shape {shape}."
        raise UsageError(msg)
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel
