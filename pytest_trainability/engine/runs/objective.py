"""Gradients of the loss, or of a random functional where there is none, with respect to every parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..capture.recorder import Capture, Loss, evaluate
from ..isolation import derived_seed, generator_of, seeded
from ..trees import carries_gradient, map_tensors, tensors_in
from .forward_pass import call_arguments
from .run import Run

__all__ = ["Objective", "functional", "trainable_parameters", "twice_differentiable"]


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require grad, by name, each once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


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


class Objective:
    """The loss of a model on a batch, or a random functional of its output where it has none, as a function of the parameters.

    Every evaluation draws the same dropout masks, those of the run that left the record. Buffers (BatchNorm's statistics) change
    as in any forward pass.

    Args:
        capture: Model, inputs and target.
        loss: The loss that is called on the output; None where the model computes its own, or there is none.
        seed: Of the run.
    """

    def __init__(self, capture: Capture, loss: Loss | None, seed: int) -> None:
        self.model: nn.Module = capture.model
        self.parameters = trainable_parameters(self.model)
        self.inputs, self.target = capture.inputs, capture.target
        self.loss = loss
        self.seed = seed

    @classmethod
    def of(cls, run: Run) -> Objective:
        """Take the loss of a run; in a need of stage ``RERUN``, which puts parameters and buffers back."""
        return cls(run.capture, run.recipe.loss, run.seed)

    def outputs(self) -> tuple[Any, Tensor | None]:
        """Run the model; return its output and its loss, None where it has none."""
        seeded(derived_seed(self.seed, "forward"))
        args, kwargs = call_arguments(map_tensors(self.inputs, lambda t: t.detach().clone()))
        return evaluate(self.model, args, kwargs, self.target, self.loss)

    def __call__(self) -> Tensor:
        """Run the model and return the loss, a scalar with its graph."""
        roots, weights = functional(*self.outputs(), self.seed)
        value = roots[0].reshape(()) if len(roots) == 1 and roots[0].numel() == 1 else None
        if value is None or not bool((weights[0] == 1).all()):
            value = torch.stack([(root * weight).sum() for root, weight in zip(roots, weights)]).sum()
        return value

    def gradients(self, loss: Tensor | None = None, *, create_graph: bool = False) -> dict[str, Tensor | None]:
        """Differentiate the loss by every trainable parameter; None where no path leads to it.

        Args:
            loss: What an evaluation has returned; the model is run unless given.
            create_graph: Whether the gradients are to be differentiated again.
        """
        loss = self() if loss is None else loss
        found = torch.autograd.grad(loss, list(self.parameters.values()), create_graph=create_graph, allow_unused=True)
        return dict(zip(self.parameters, found))


@contextmanager
def twice_differentiable(*_: Any) -> Iterator[None]:
    """Run attention and recurrent layers by kernels whose backward passes can be differentiated; also an instrument."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield
