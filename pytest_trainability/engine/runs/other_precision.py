"""Gradients in another precision: they show which gradients are the round-off of sums that cancel."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import TrainabilityError
from ..isolation import generator_of
from ..modules import modules_behind
from ..torch_internals import buffer_table, is_lazy, parameter_table
from ..trees import is_float, map_tensors
from .objective import Objective

__all__ = [
    "gradients_in_other_precision",
    "gradients_under_other_roundings",
    "in_precision",
    "other_precision",
    "replaced_values",
]

_REAL = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
_CASTS = {
    Tensor.float: torch.float32,
    Tensor.double: torch.float64,
    Tensor.half: torch.float16,
    Tensor.bfloat16: torch.bfloat16,
}
IRRATIONAL = (1 + 5**0.5) / 2
"""Factor of the loss that changes every rounding of the backward pass."""
PERTURBATION = 8
"""Relative change of the parameters that changes every rounding of the forward pass, in units of their precision."""


def other_precision(model: nn.Module) -> torch.dtype:
    """Return float32 for a model whose parameters are all float64, and float64 for every other model."""
    types = {p.dtype for p in model.parameters()}
    return torch.float32 if types and types <= {torch.float64, torch.complex128} else torch.float64


def gradients_in_other_precision(objective: Objective) -> dict[str, Tensor | None] | None:
    """Differentiate the loss with the whole model, its inputs and its loss in another precision.

    Types that the model's code names are replaced as well. Parameters and buffers have their tensors back afterwards.

    Args:
        objective: The loss, which runs with the same dropout masks.

    Returns:
        Gradients by parameter name; None if the model does not run in the other precision.
    """
    with in_precision(objective, other_precision(objective.model)):
        return _attempted(objective.gradients)


def gradients_under_other_roundings(objective: Objective) -> dict[str, Tensor | None] | None:
    """Differentiate the loss with changed last bits: of the parameters for the forward pass, of the loss for the backward pass.

    Args:
        objective: The loss, which runs with the same dropout masks.

    Returns:
        Gradients by parameter name, in the model's own precision; None if the model does not run.
    """

    def changed() -> dict[str, Tensor | None]:
        found = objective.gradients(objective() * IRRATIONAL)
        return {name: None if g is None else g / IRRATIONAL for name, g in found.items()}

    with _perturbed(objective):
        return _attempted(changed)


def _attempted(differentiate: Callable[[], dict[str, Tensor | None]]) -> dict[str, Tensor | None] | None:
    try:
        with warnings.catch_warnings():
            # The run has shown the model's own warnings. New ones are about the change, such as weights in several pieces.
            warnings.simplefilter("ignore")
            return differentiate()
    except TrainabilityError:
        raise
    except Exception:  # of any type: a kernel without this type, a cast in compiled code, memory
        return None


@contextmanager
def in_precision(objective: Objective, dtype: torch.dtype) -> Iterator[None]:
    """Run the whole model, its loss and its inputs in another type. Types that the model's code names are replaced as well.

    Parameters and buffers have their tensors back afterwards.

    Args:
        objective: The loss.
        dtype: A real type; complex tensors get the complex type of the same precision.
    """
    with _cast(objective, dtype), _Types(dtype):
        yield


@contextmanager
def _cast(objective: Objective, dtype: torch.dtype) -> Iterator[None]:
    """Hold the model, its loss and the inputs in another type."""
    modules = [objective.model, *modules_behind(objective.loss)]
    held = [t for module in modules for t in _own_tensors(module) if is_float(t) and t.dtype != _like(t, dtype)]
    given, default = (objective.inputs, objective.target), torch.get_default_dtype()
    with replaced_values({tensor: tensor.data.to(_like(tensor, dtype)) for tensor in held}):
        try:
            objective.inputs, objective.target = map_tensors(
                given, lambda t: t.detach().to(_like(t, dtype)) if is_float(t) else t
            )
            torch.set_default_dtype(dtype)
            yield
        finally:
            objective.inputs, objective.target = given
            torch.set_default_dtype(default)


@contextmanager
def _perturbed(objective: Objective) -> Iterator[None]:
    """Change each entry of the parameters by a few units of its precision."""
    generator = generator_of(objective.seed, "other roundings")

    def nearby(p: Tensor) -> Tensor:
        drawn = torch.randn(p.shape, generator=generator, device="cpu").to(p.device)
        return p.data + (PERTURBATION * torch.finfo(p.dtype).eps * drawn * p.data).to(p.dtype)

    with replaced_values({p: nearby(p) for p in objective.parameters.values()}):
        yield


@contextmanager
def replaced_values(values: dict[Tensor, Tensor]) -> Iterator[None]:
    """Give tensors other values for a while. They have the same memory as before afterwards, and not a copy of it."""
    before = {tensor: tensor.data for tensor in values}
    try:
        for tensor, value in values.items():
            tensor.data = value
        yield
    finally:
        for tensor, value in before.items():
            tensor.data = value


def _own_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield parameters, buffers and tensors in plain attributes, except results of differentiable operations."""
    seen: set[int] = set()
    for module in model.modules():
        kept = (value for value in vars(module).values() if isinstance(value, Tensor) and value.grad_fn is None)
        for tensor in (*parameter_table(module).values(), *buffer_table(module).values(), *kept):
            if tensor is not None and not is_lazy(tensor) and not tensor.is_inference() and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def _like(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the type of a tensor in the precision of ``dtype``; types that are not ordinary numbers stay."""
    if tensor.is_complex():
        return _COMPLEX[dtype]
    return dtype if tensor.dtype in _REAL else tensor.dtype


class _Types(TorchFunctionMode):
    """Replaces the floating types that the code of a model names, as in ``x.float()`` or ``softmax(dtype=torch.float32)``."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.types: dict[Any, torch.dtype] = dict.fromkeys(_REAL, dtype) | dict.fromkeys(
            (torch.complex64, torch.complex128), _COMPLEX[dtype]
        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CASTS:
            return args[0].to(self.dtype)
        changed = [self._replaced(argument) for argument in args]
        return func(*changed, **{name: self._replaced(value) for name, value in (kwargs or {}).items()})

    def _replaced(self, argument: Any) -> Any:
        return self.types.get(argument, argument) if isinstance(argument, torch.dtype) else argument
