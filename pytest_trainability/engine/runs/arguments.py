"""Validation of single arguments, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...errors import UsageError
from .recipe import OptimizerFactory

__all__ = ["as_count", "as_loss", "as_optimizer", "refuse_type"]


def refuse_type(name: str, value: Any, expected: type | tuple[type, ...], what: str) -> None:
    """Refuse an argument that is not an instance of the expected type.

    Args:
        name: Name of the argument.
        value: Its value.
        expected: Type, or types.
        what: Description of the expected values, for the message.

    Raises:
        UsageError: The value has another type.
    """
    if not isinstance(value, expected):
        msg = f"{name} must be {what}. Got {value!r}."
        raise UsageError(msg)


def as_count(name: str, value: Any, *, least: int = 1, otherwise: str = "") -> int:
    """Return a whole number of at least ``least``.

    Args:
        name: Name of the argument.
        value: Its value.
        least: Smallest valid number.
        otherwise: Description of other valid values, for the message.

    Raises:
        UsageError: The value is not a whole number, or too small.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        alternative = f", {otherwise}" if otherwise else ""
        msg = f"{name} must be a whole number of at least {least}{alternative}. Got {value!r}."
        raise UsageError(msg)
    return value


def as_loss(loss: Any, target: Any) -> Callable[..., Any] | None:
    """Return the loss function, or None. A class of losses, such as ``nn.CrossEntropyLoss``, is called without arguments.

    Raises:
        UsageError: The loss is not callable, a class that needs arguments, or there is a target without a loss.
    """
    if loss is None and target is not None:
        msg = "a target must come with the loss that takes it: loss=F.cross_entropy, target=labels. Got a target alone."
        raise UsageError(msg)
    if loss is not None and not callable(loss):
        cure = " Hand in the function itself, such as F.cross_entropy." if isinstance(loss, str) else ""
        msg = f"the loss must be a function loss(output) or loss(output, target). Got {type(loss).__name__}.{cure}"
        raise UsageError(msg)
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        try:
            return loss()
        except TypeError as error:
            msg = f"the loss must be a function, or an object such as {loss.__name__}(...). The class needs arguments: {error}."
            raise UsageError(msg) from error
    return loss  # type: ignore[no-any-return]


def as_optimizer(optimizer: Any) -> OptimizerFactory | None:
    """Return the function that makes an optimizer, or None.

    Raises:
        UsageError: The argument is an optimizer instead of a function, or is not callable.
    """
    if isinstance(optimizer, torch.optim.Optimizer) or not (optimizer is None or callable(optimizer)):
        msg = (
            "optimizer must be a function of the parameters that makes one: lambda p: torch.optim.SGD(p, lr=0.1). "
            f"Got {type(optimizer).__name__}. Every seed has its own parameters, and needs its own optimizer."
        )
        raise UsageError(msg)
    return optimizer  # type: ignore[no-any-return]
