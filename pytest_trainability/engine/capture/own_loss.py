"""The loss that a model computes itself: where its output holds one, or a Lightning module's ``training_step``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node

from ...errors import ModelError
from ..trees import carries_gradient, named_tensors

__all__ = ["call_training_step", "has_training_step", "named_loss", "only_scalar", "picker"]


def has_training_step(model: nn.Module) -> bool:
    """Return whether a model computes its loss in ``training_step``, as a Lightning module does."""
    return callable(getattr(model, "training_step", None))


def call_training_step(model: Any, batch: Any) -> Any:
    """Return what ``training_step(batch, 0)`` returns, or ``training_step(batch)`` where it takes the batch alone.

    Raises:
        ModelError: The module optimizes manually, so that it returns no loss; or it uses the trainer, which does not exist here.
        RuntimeError: The training step raised it for another reason.
    """
    name = type(model).__name__
    otherwise = "Measure its network instead: inputs of forward(), and loss= with target=."
    if getattr(model, "automatic_optimization", True) is False:
        msg = (
            f"the training_step of a Lightning module must return the loss. {name} optimizes manually "
            f"(automatic_optimization = False). {otherwise}"
        )
        raise ModelError(msg)
    try:
        return model.training_step(batch) if _takes_batch_alone(model.training_step) else model.training_step(batch, 0)
    except RuntimeError as error:
        if "Trainer" not in str(error):
            raise
        msg = (
            f"the training_step of a Lightning module must run without a Trainer. That of {name} uses self.trainer, and raised "
            f"{type(error).__name__}: {error} {otherwise}"
        )
        raise ModelError(msg) from error


def _takes_batch_alone(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, 0)
    except TypeError:
        return True
    return False


def named_loss(output: Any, *, of_training_step: bool) -> Tensor | None:
    """Return the loss that an output names: ``output.loss``, ``output["loss"]``, or the value of ``training_step``."""
    if isinstance(output, Mapping):
        value = output.get("loss")
    elif of_training_step and isinstance(output, Tensor):
        value = output
    else:
        value = getattr(output, "loss", None)
    is_loss = isinstance(value, Tensor) and value.numel() == 1 and carries_gradient(value)
    return value.reshape(()) if is_loss and value is not None else None


def only_scalar(output: Any) -> str | None:
    """Return the place of a loss without a name, as in ``return logits, loss``; None unless it is beyond doubt.

    It is the only tensor of the output that has no dimension and carries a gradient, and it depends on every other tensor of the
    output that carries one. A temperature or a penalty that a model returns next to its output does not depend on that output.

    Returns:
        The place, as :func:`~pytest_trainability.engine.trees.named_tensors` names it; empty for an output that is the loss.
    """
    found = [(place, tensor) for place, tensor in named_tensors(output) if carries_gradient(tensor)]
    scalars = [(place, tensor) for place, tensor in found if tensor.dim() == 0]
    if len({id(tensor) for _, tensor in scalars}) != 1:
        return None
    place, scalar = scalars[0]
    others = {tensor.grad_fn for _, tensor in found if tensor is not scalar}
    return place if None not in others and others <= _ancestors(scalar.grad_fn) else None


def _ancestors(node: Node | None) -> set[Node | None]:
    """Return a node and all nodes that its backward pass reaches."""
    seen: set[Node | None] = set()
    pending = [node]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending.extend(following for following, _ in node.next_functions)
    return seen


def picker(place: str) -> Callable[[Any], Tensor]:
    """Return the loss function that takes the tensor at a place of the output."""

    def own_loss(output: Any) -> Tensor:
        return dict(named_tensors(output))[place]

    return own_loss
