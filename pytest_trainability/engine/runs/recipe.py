"""A recipe: everything that determines a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import nn

from ..capture.recorder import Loss
from ..capture.steps import StepChoice

__all__ = ["ModelSource", "OptimizerFactory", "Recipe", "StepChoice", "did_not_fit", "is_fixed", "sentence"]


ModelSource: TypeAlias = "nn.Module | Callable[[], nn.Module]"
OptimizerFactory: TypeAlias = "Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines a measurement: model, inputs and how to run and cut it."""

    model: ModelSource
    inputs: Any
    target: Any
    loss: Loss | None
    steps: StepChoice
    exponents: int
    device: torch.device | None
    """None leaves a finished module where it is."""
    dtype: torch.dtype | None
    train: bool
    threads: int | None = None
    choose_steps: Callable[[nn.Module], StepChoice | None] = lambda model: None
    """Returns the plugins' step choice for a model where ``steps`` is ``"auto"``, or None."""
    steps_from_plugin: bool = False
    """Whether a plugin chose ``steps``."""
    warmup: int = 0
    """First steps that the exponents are not averaged over: the state finds its attractor."""
    alignment: int = 0
    """Last steps that they are not averaged over: the frame, which comes from there, turns to its directions."""
    optimizer: OptimizerFactory | None = None
    """Makes the optimizer of the parameters it is given."""
    classes: int | None = None
    """How many there are to choose from; None to find it out from the loss."""

    def for_model(self, model: nn.Module) -> Recipe:
        """Return the recipe with what is to be found out from the model: how it is cut."""
        steps = self.choose_steps(model) if self.steps == "auto" else None
        return self if steps is None else replace(self, steps=steps, steps_from_plugin=True)

    @property
    def fixed(self) -> bool:
        """As :func:`is_fixed`."""
        return is_fixed(self.model, self.inputs)


def is_fixed(model: ModelSource, inputs: Any) -> bool:
    """Whether the model is a finished module, one draw of its weights; one without weights may be measured on several inputs."""
    return isinstance(model, nn.Module) and (not callable(inputs) or any(True for _ in model.parameters()))


def sentence(error: Exception) -> str:
    """Return what an error says, with a full stop."""
    text = str(error).strip()
    return text if text.endswith((".", "!", "?")) else text + "."


def did_not_fit(model: nn.Module, device: torch.device | None) -> str:
    """Say that the device ran out of memory."""
    return (
        f"{type(model).__name__}, one forward pass and what is measured must fit on the device. {device} ran out of memory. "
        "Measure with a smaller batch, or on the CPU (device='cpu', --trainability-device=cpu)."
    )
