"""Initial values that no healthy model has, each with the reason in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.modules import named_modules_of
from ..engine.torch_internals import child_table, parameter_table
from ..records.tensors import TensorStatistics
from .description import ModelDescription, initial_tensors
from .significance import entries_of
from .statistics import is_readable, statistics_of

__all__ = ["NEVER_WRITTEN", "exchanged_shifts", "in_order", "seeded_inside", "trained_entries", "unusual_values"]

LARGEST_GAIN = 4.0
"""Largest gain ``rms * sqrt(fan-in)`` of a weight matrix inside a numbered block. Initialization for the backward pass (He,
fan-out) has a gain of ``sqrt(2 * fan-in / fan-out)``, which is 2.8 where the output has a quarter of the inputs."""
NARROWEST = 0.25
"""Smallest ratio of outputs to inputs of a matrix whose gain is judged. A router with few outputs may have unit weights."""
MOST_OUT = 24.0
"""Largest entry of a matrix, in root mean squares. The largest of 10⁹ normal entries is 6."""
FEW = 64
"""Number of entries below which extremes and distributions say little."""
SPARSE = 0.5
"""Share of zeros from which a few entries far out are a design, such as a one-hot table."""
STEADY = 1e-3
"""Relative spread up to which the gains of a normalization count as equal."""

NEVER_WRITTEN = "its memory was allocated and never written: it holds what was there before"
"""Reason of a parameter or buffer that is not initialized, or not completely."""
LEAST_VALUES = 8
"""Number of different values from which two equal draws are no coincidence."""

_Finding = tuple[Tensor | None, str]


def unusual_values(model: nn.Module, description: ModelDescription) -> dict[str, str]:
    """Return what is unusual about parameters, by name, in the model's order.

    Args:
        model: The model as it was built.
        description: Its description.

    Returns:
        One reason for each parameter that has any.
    """
    tensors = initial_tensors(model)
    names = {id(tensor): name for name, tensor in tensors.items()}
    modules = list(named_modules_of(model))
    tables = [m.weight for _, m in modules if isinstance(m, nn.Embedding) and id(m.weight) in names]
    drawn_rows = max((len(t) for t in tables if not description.values[names[id(t)]].is_constant), default=0)
    findings = [
        finding for path, module in modules for finding in _of_module(path, module, names, description, drawn_rows)
    ]
    findings += [(tensor, _of_parameter(tensor, description.values[name])) for name, tensor in tensors.items()]
    reasons: dict[str, str] = {}
    for tensor, reason in findings:
        if reason and tensor is not None and id(tensor) in names:
            reasons.setdefault(names[id(tensor)], reason)
    return {name: reasons[name] for name in tensors if name in reasons}


def exchanged_shifts(model: nn.Module, gains: Collection[str]) -> tuple[str, ...]:
    """Return the names of the shifts of normalizations whose entries are all one, as those of their gains should be.

    Args:
        model: The model.
        gains: Names of the gains of normalizations.
    """
    parents = {name.rpartition(".")[0] for name in gains}
    shifts = ((name, tensor) for name, tensor in initial_tensors(model).items() if name not in gains)
    return tuple(
        name
        for name, shift in shifts
        if name.rpartition(".")[0] in parents and isinstance(shift, nn.Parameter) and bool((shift.detach() == 1).all())
    )


def trained_entries(model: nn.Module) -> dict[str, Tensor]:
    """Return some entries of each parameter that is trained and not constant, for the comparison with another draw."""
    tensors = {name: tensor for name, tensor in initial_tensors(model).items() if tensor.requires_grad}
    entries = {name: entries_of(tensor) for name, tensor in tensors.items()}
    return {name: found for name, found in entries.items() if torch.unique(found).numel() >= LEAST_VALUES}


def seeded_inside(first: Mapping[str, Tensor], second: Mapping[str, Tensor], drawn: Collection[str]) -> dict[str, str]:
    """Return the drawn parameters that two builds with different seeds share, by name, each with the reason.

    If that is true of all of them, the factory seeds the generator, and one line says so.

    Args:
        first: Result of :func:`trained_entries` for the model of one seed.
        second: The same for another seed.
        drawn: Parameters that were filled with random numbers when the second model was built.
    """
    compared = [name for name in second if name in first and name in drawn]
    shared = [name for name in compared if torch.equal(first[name], second[name])]
    reason = "drawn, but the same on two builds with different seeds: a generator is seeded inside"
    if len(shared) > 1 and shared == compared:
        return {shared[0]: f"{reason} (and so are all {len(shared)} drawn parameters)"}
    return dict.fromkeys(shared, reason)


def in_order(reasons: Mapping[str, str], model: nn.Module) -> dict[str, str]:
    """Return reasons by name in the order of a model's parameters and buffers."""
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    return {name: reasons[name] for name in names if name in reasons}


def _of_module(
    path: str, module: nn.Module, names: dict[int, str], description: ModelDescription, drawn_rows: int
) -> Iterator[_Finding]:
    """Yield what is unusual about a module's own parameters.

    Args:
        path: Name of the module.
        module: The module.
        names: Names of the tensors of the model, by identity.
        description: Description of the model.
        drawn_rows: Number of rows of the model's largest embedding that is drawn.
    """

    def values_of(name: str) -> TensorStatistics | None:
        tensor = getattr(module, name, None)
        return description.values.get(names.get(id(tensor), "")) if isinstance(tensor, Tensor) else None

    weight: Any = getattr(module, "weight", None)
    values = values_of("weight")
    if values is not None and values.count and not values.not_finite:
        if weight.dim() == 1 and "Norm" in type(module).__name__:
            yield weight, _of_gains(values, values_of("bias"))
        if isinstance(module, nn.Embedding):
            yield weight, _of_table(module, values, drawn_rows)
        elif weight.dim() >= 2:
            yield weight, _of_matrix(path, module, weight, values)
    yield from _of_low_rank(module)


def _of_gains(gain: TensorStatistics, shift: TensorStatistics | None) -> str:
    """Return what is unusual about the weights of a normalization."""
    if not gain.rms and shift is not None and shift.is_constant and shift.mean == 1:
        return "the gain of a normalization is 0 and its shift 1: exchanged"
    is_drawn = gain.count > 1 and gain.std > STEADY * gain.rms and abs(gain.mean) < gain.std
    return (
        f"the gain of a normalization is drawn around 0 (std {gain.std:.2g}), and should be constant"
        if is_drawn
        else ""
    )


def _of_table(module: nn.Embedding, values: TensorStatistics, drawn_rows: int) -> str:
    """Return what is unusual about an embedding. One of zeros may be added to another one that is drawn."""
    if values.is_constant and (values.mean or module.num_embeddings > drawn_rows):
        return f"all entries of an embedding are {values.mean:.3g}: its rows are equal"
    row = module.padding_idx
    if row is not None and statistics_of(module.weight[row]).rms:
        return f"row {row} of an embedding is its padding row, and is not 0"
    return ""


def _of_matrix(path: str, module: nn.Module, weight: Tensor, values: TensorStatistics) -> str:
    """Return what is unusual about a weight matrix."""
    fans = _fans(module, weight)
    if fans is None:
        return ""
    if values.is_constant and values.mean and values.count >= FEW:
        return f"all entries of a weight matrix are {values.mean:.3g}: its units are equal"
    if not any(part.isdecimal() for part in path.split(".")):
        return ""
    inputs, outputs = fans
    gain = values.rms * math.sqrt(inputs)
    if gain > LARGEST_GAIN and outputs >= NARROWEST * inputs and values.count >= FEW:
        return f"rms {values.rms:.3g} for {inputs} inputs is a gain of {gain:.2g}: 1 keeps the size of a signal"
    return ""


def _fans(module: nn.Module, weight: Tensor) -> tuple[int, int] | None:
    """Return the numbers of inputs and outputs of a matrix product or convolution; None for other modules."""
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return weight[0].numel(), weight.shape[0]
    # The layer of this name in transformers multiplies from the right.
    return tuple(weight.shape) if type(module).__name__ == "Conv1D" and weight.dim() == 2 else None  # type: ignore[return-value]


def _of_low_rank(module: nn.Module) -> Iterator[_Finding]:
    """Yield the first factor of a low-rank product whose two factors are zero: neither gets a gradient, ever.

    The factors are parameters of one module, or weights of its children, with shapes (rank, inputs) and (outputs, rank).
    """
    parts = [*parameter_table(module).values(), *child_table(module).values()]
    factors = [factor for part in parts if (factor := _factor(part)) is not None and is_readable(factor)]
    matrices = [m for m in factors if m.dim() == 2 and m.numel() and m.requires_grad]
    zero = [m for m in matrices if not bool(m.detach().any())]
    for down, up in permutations(zero, 2):
        if down.shape[0] == up.shape[1] < min(down.shape[1], up.shape[0]):
            yield down, "both factors of a low-rank product are 0: neither ever gets a gradient"


def _factor(part: Any) -> Tensor | None:
    """Return the weight of a factor: a parameter, a layer, or a dictionary of one of these."""
    if isinstance(part, (nn.ModuleDict, nn.ParameterDict)) and len(part) == 1:
        part = next(iter(part.values()))
    found = getattr(part, "weight", part)
    return found if isinstance(found, Tensor) else None


def _of_parameter(tensor: Tensor, values: TensorStatistics) -> str:
    """Return what is unusual about a matrix, or a larger array, whatever it is for."""
    if not isinstance(tensor, nn.Parameter) or tensor.dim() < 2 or values.count < FEW or values.not_finite:
        return ""
    if not values.rms:
        return (
            "" if tensor.requires_grad else "all entries are 0, and the parameter is frozen: it never changes anything"
        )
    ratio = values.largest / values.rms
    is_out = ratio > MOST_OUT and values.zeros < SPARSE * values.count
    return f"the largest entry, {values.largest:.3g}, is {ratio:.0f} root mean squares out" if is_out else ""
