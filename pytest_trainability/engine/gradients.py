"""Gradients of the loss, or of a random functional where there is none, with respect to every parameter."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .isolation import generator_of
from .run import Need, Run, Stage
from .trees import carries_gradient, tensors_in

__all__ = ["PARAMETER_GRADIENTS", "functional", "trainable_parameters"]


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require grad, by name, each once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _parameter_gradients(run: Run) -> dict[str, Tensor | None]:
    record = run.record
    parameters = trainable_parameters(record.model)
    if not parameters:
        return {}
    roots, weights = functional(record.output, record.loss, run.seed)
    found = torch.autograd.grad(roots, list(parameters.values()), weights, allow_unused=True)
    return dict(zip(parameters, found))


PARAMETER_GRADIENTS = Need("parameter gradients", _parameter_gradients, Stage.BACKWARD)
"""By name; None where no path leads from the loss to the parameter. Frozen parameters are absent."""


def functional(output: Any, loss: Tensor | None, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return tensors and weights whose inner product is the loss, or a random functional of the output where there is none.

    Its weights are Gaussian, of unit norm together, and the same for a seed on every device.
    """
    if loss is not None:
        return [loss], [torch.ones_like(loss)]
    outputs = list({id(t): t for t in tensors_in(output) if carries_gradient(t)}.values())
    generator = generator_of(seed, "functional")
    drawn = [torch.randn(t.shape, generator=generator, dtype=torch.float64, device="cpu") for t in outputs]
    norm = math.sqrt(sum(float(u.square().sum()) for u in drawn))
    return outputs, [(u / norm).to(device=t.device, dtype=t.dtype) for t, u in zip(outputs, drawn)]
