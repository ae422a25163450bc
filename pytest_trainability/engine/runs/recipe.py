"""A recipe: all settings that determine a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import nn

from ..capture.recorder import Loss
from ..capture.steps import StepChoice

__all__ = [
    "NO_KERNEL",
    "ModelSource",
    "OptimizerFactory",
    "Recipe",
    "StepChoice",
    "did_not_fit",
    "is_fixed",
    "sentence",
]


ModelSource: TypeAlias = "nn.Module | Callable[[], nn.Module]"
"""A finished module, or a factory without arguments."""
OptimizerFactory: TypeAlias = "Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]"
"""A function of the parameters that makes an optimizer."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All settings that determine a measurement, except the seeds: model, inputs, and how to run and cut the model."""

    model: ModelSource
    inputs: Any
    """A tree of tensors, or a function of a generator that makes one."""
    target: Any
    """As the inputs; None without a target."""
    loss: Loss | None
    steps: StepChoice
    exponents: int
    """Number of Lyapunov exponents."""
    device: torch.device | None
    """Device of the model; None leaves a finished module where it is."""
    dtype: torch.dtype | None
    """Floating type of parameters and inputs; None leaves them as they are."""
    train: bool
    """Whether the model runs in train mode."""
    threads: int | None = None
    """Maximum number of threads; None leaves torch's setting."""
    choose_steps: Callable[[nn.Module], StepChoice | None] = lambda model: None
    """Returns the plugins' step choice for a model where ``steps`` is ``"auto"``, or None."""
    watch: Callable[[str, str], None] = lambda part, text: None
    """Receives what is going on: ``"seed"`` with its number, ``"now"`` with what is computed, and ``"end"``."""
    steps_from_plugin: bool = False
    """Whether a plugin chose ``steps``."""
    warmup: int = 0
    """Number of first steps that the exponents exclude while the state approaches the attractor."""
    alignment: int = 0
    """Number of final steps that the exponents exclude while the random frame aligns with the Lyapunov directions."""
    optimizer: OptimizerFactory | None = None
    """Makes the optimizer of measures that take optimizer steps; None for AdamW."""
    classes: int | None = None
    """Number of classes that the loss chooses from; None if the loss shows it."""

    def for_model(self, model: nn.Module) -> Recipe:
        """Return the recipe for a model, with the plugins' step choice where ``steps`` is ``"auto"``."""
        steps = self.choose_steps(model) if self.steps == "auto" else None
        return self if steps is None else replace(self, steps=steps, steps_from_plugin=True)

    @property
    def fixed(self) -> bool:
        """Whether the measurement is of one draw; see :func:`is_fixed`."""
        return is_fixed(self.model, self.inputs)


def is_fixed(model: ModelSource, inputs: Any) -> bool:
    """Return whether a measurement has a single draw: a finished module, unless it has no parameters and its inputs are drawn."""
    return isinstance(model, nn.Module) and (not callable(inputs) or any(True for _ in model.parameters()))


def sentence(error: Exception) -> str:
    """Return the message of an error, ending like a sentence."""
    text = str(error).strip()
    return text if text.endswith((".", "!", "?")) else text + "."


NO_KERNEL = (
    "PyTorch has no kernel for this operation in this data type on this processor. Measure in float32, without autocast, or on "
    "another machine."
)
"""What to do where PyTorch itself cannot run a model."""


def did_not_fit(model: nn.Module, device: torch.device | None) -> str:
    """Return the message for a device that ran out of memory."""
    return (
        f"{type(model).__name__}, one forward pass and what is measured must fit on the device. {device} ran out of memory. "
        "Measure with a smaller batch, or on the CPU (device='cpu', --trainability-device=cpu)."
    )
