"""Gradients of the loss, or of a random functional where there is none, with respect to every parameter."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .isolation import derived_seed
from .run import Need, Run, Stage
from .trees import carries_gradient, tensors_in

__all__ = ["PARAMETER_GRADIENTS", "functional"]


def _parameter_gradients(run: Run) -> dict[str, Tensor | None]:
    record = run.record
    names = {name: p for name, p in record.model.named_parameters() if p.requires_grad}
    if not names:
        return {}
    roots, weights = functional(record.output, record.loss, run.seed)
    found = torch.autograd.grad(roots, list(names.values()), weights, allow_unused=True)
    return dict(zip(names, found))


PARAMETER_GRADIENTS = Need("parameter gradients", _parameter_gradients, Stage.BACKWARD)
"""By name; None where no path leads from the loss to the parameter. Frozen parameters are absent."""


def functional(output: Any, loss: Tensor | None, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return tensors and weights whose inner product is the loss, or a random functional of the output where there is none.

    Its weights are Gaussian, of unit norm together, and the same for a seed on every device.
    """
    if loss is not None:
        return [loss], [torch.ones_like(loss)]
    outputs = list({id(t): t for t in tensors_in(output) if carries_gradient(t)}.values())
    generator = torch.Generator("cpu").manual_seed(derived_seed(seed, "functional"))
    drawn = [torch.randn(t.shape, generator=generator, dtype=torch.float64, device="cpu") for t in outputs]
    norm = math.sqrt(sum(float(u.square().sum()) for u in drawn))
    return outputs, [(u / norm).to(device=t.device, dtype=t.dtype) for t, u in zip(outputs, drawn)]
