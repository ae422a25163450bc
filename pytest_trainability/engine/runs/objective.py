"""The loss as a function of the parameters, and its gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..capture.recorder import Capture, Loss, evaluate, with_gradient
from ..isolation import derived_seed, generator_of, seeded
from ..trees import carries_gradient, is_float, map_tensors, tensors_in
from .forward_pass import call_arguments
from .run import Run

__all__ = ["Objective", "functional", "trainable_parameters", "twice_differentiable"]


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require grad, by name; a shared parameter has its first name only."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def functional(output: Any, loss: Tensor | None, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return tensors and weights whose inner product is the loss, or a random functional of the output if there is no loss.

    The random weights are Gaussian, normalized so that all of them together have norm 1. The seed determines them on every
    device.

    Args:
        output: Output of the model.
        loss: The loss, a scalar.
        seed: Seed of the run.

    Returns:
        The tensors that carry a gradient, each once, and a weight of the same shape for each.
    """
    if loss is not None:
        return [loss], [torch.ones_like(loss)]
    outputs = list({id(t): t for t in tensors_in(output) if carries_gradient(t)}.values())
    generator = generator_of(seed, "functional")
    drawn = [torch.randn(t.shape, generator=generator, dtype=torch.float64, device="cpu") for t in outputs]
    norm = math.sqrt(sum(float(u.square().sum()) for u in drawn))
    return outputs, [(u / norm).to(device=t.device, dtype=t.dtype) for t, u in zip(outputs, drawn)]


class Objective:
    """The loss of a model on one batch as a function of the parameters; without a loss, a random functional of the output.

    Every evaluation draws the dropout masks of the captured run. Buffers, such as BatchNorm's statistics, change as in any
    forward pass.

    Args:
        capture: Model, inputs and target of the run.
        loss: Function that is called on the output; None if the model computes its own loss or there is none.
        seed: Seed of the run.
    """

    def __init__(self, capture: Capture, loss: Loss | None, seed: int) -> None:
        self.model: nn.Module = capture.model
        self.parameters = trainable_parameters(self.model)
        self.inputs, self.target = capture.inputs, capture.target
        self.loss = loss
        self.seed = seed
        self.inputs_carry_gradient = False
        """Whether float inputs are copies that require a gradient, as in the captured run."""

    @classmethod
    def of(cls, run: Run) -> Objective:
        """Return the objective of a run, for a need of stage ``RERUN``, after which parameters and buffers are restored."""
        return cls(run.capture, run.capture.loss_function, run.seed)

    def outputs(self) -> tuple[Any, Tensor | None]:
        """Return the output and the loss of the model, after running it; None without a loss."""

        def fresh(tensor: Tensor) -> Tensor:
            carries = self.inputs_carry_gradient and is_float(tensor)
            return with_gradient(tensor) if carries else tensor.detach().clone()

        seeded(derived_seed(self.seed, "forward"))
        args, kwargs = call_arguments(map_tensors(self.inputs, fresh))
        return evaluate(self.model, args, kwargs, self.target, self.loss)

    def reaches_inputs(self) -> bool:
        """Return whether the gradient of the loss with respect to an input is not zero, after running the model."""
        inputs, leaves = self.inputs, list[Tensor]()

        def leaf(tensor: Tensor) -> Tensor:
            leaves.append(tensor.detach().clone().requires_grad_())
            # A copy, which the model may change in place.
            return leaves[-1].clone()

        seeded(derived_seed(self.seed, "forward"))
        args, kwargs = call_arguments(map_tensors(inputs, lambda t: leaf(t) if is_float(t) else t.detach().clone()))
        if not leaves:
            return False
        loss = self._value(*evaluate(self.model, args, kwargs, self.target, self.loss))
        return any(g is not None and bool((g != 0).any()) for g in torch.autograd.grad(loss, leaves, allow_unused=True))

    def __call__(self) -> Tensor:
        """Return the loss, a scalar with its graph, after running the model."""
        return self._value(*self.outputs())

    def _value(self, output: Any, loss: Tensor | None) -> Tensor:
        roots, weights = functional(output, loss, self.seed)
        value = roots[0].reshape(()) if len(roots) == 1 and roots[0].numel() == 1 else None
        if value is None or not bool((weights[0] == 1).all()):
            value = torch.stack([(root * weight).sum() for root, weight in zip(roots, weights)]).sum()
        return value

    def gradients(self, loss: Tensor | None = None, *, create_graph: bool = False) -> dict[str, Tensor | None]:
        """Differentiate the loss with respect to every trainable parameter.

        Args:
            loss: Value of an evaluation; by default the model is run.
            create_graph: Whether the gradients can be differentiated again.

        Returns:
            Gradients by parameter name; None for a parameter that the loss does not depend on.
        """
        loss = self() if loss is None else loss
        found = torch.autograd.grad(loss, list(self.parameters.values()), create_graph=create_graph, allow_unused=True)
        return dict(zip(self.parameters, found))


@contextmanager
def twice_differentiable(*_: Any) -> Iterator[None]:
    """Use kernels of attention and recurrent layers whose backward passes can be differentiated; also an instrument."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield
