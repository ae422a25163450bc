"""Losses that are named by text: ``cross_entropy``, ``nn.CrossEntropyLoss`` or ``package.module:loss``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ..errors import UsageError
from ..records.calls import Call, parse_call
from .places import imported

__all__ = ["cross_entropy", "named_loss", "needs_target", "suits_torch", "torch_loss"]

_PREFIXES = ("torch.nn.functional.", "torch.nn.", "nn.functional.", "nn.", "F.")


def named_loss(text: str) -> Callable[..., Any]:
    """Return the loss that a text names.

    ``cross_entropy`` alone also takes the scores of a language model: classes in their last dimension, and a target of the shape
    of the others.

    >>> named_loss("mse").__name__, named_loss("nn.CrossEntropyLoss(label_smoothing=0.1)")
    ('mse_loss', CrossEntropyLoss())

    Args:
        text: Name of a function of ``torch.nn.functional``, with or without ``_loss``; a class of ``torch.nn``, with or without
            arguments; or ``package.module:loss``.

    Raises:
        UsageError: There is no such loss. The message gives the nearest.
    """
    if ":" in text:
        found: Callable[..., Any] = imported(text, what="the loss")
        return found
    try:
        call = parse_call(text)
    except ValueError as error:
        msg = f"the loss must be cross_entropy, mse, nn.CrossEntropyLoss or MODULE:NAME. Got {text!r}: {error}"
        raise UsageError(msg) from None
    return _of_torch(call, text)


def torch_loss(call: Call, text: str) -> tuple[str, Any]:
    """Return the name of a loss of torch, and the function or class.

    >>> torch_loss(parse_call("nn.MSE"), "nn.MSE")
    ('MSELoss', <class 'torch.nn.modules.loss.MSELoss'>)

    Args:
        call: The loss. Its arguments do not matter.
        text: How it is written, for the message.

    Raises:
        UsageError: There is no such loss. The message gives the nearest.
    """
    name = call.name.removeprefix(_prefix(call))
    losses = _losses()
    full = next((known for known in (name, f"{name}_loss", f"{name}Loss") if known in losses), None)
    if full is None:
        near = difflib.get_close_matches(name, [*losses, *(known.removesuffix("_loss") for known in losses)], n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "One of yours is named MODULE:NAME."
        msg = f"torch has no loss {text!r}. {hint}"
        raise UsageError(msg)
    return full, losses[full]


def _prefix(call: Call) -> str:
    return next((prefix for prefix in _PREFIXES if call.name.startswith(prefix)), "")


def _of_torch(call: Call, text: str) -> Callable[..., Any]:
    _, found = torch_loss(call, text)
    if not isinstance(found, type):
        if call.args or call.kwargs:
            msg = (
                f"a function such as {call.name} must be named without arguments. Name a class: "
                "nn.CrossEntropyLoss(ignore_index=0)."
            )
            raise UsageError(msg)
        return cross_entropy if found is functional.cross_entropy and not _prefix(call) else found
    try:
        loss: Callable[..., Any] = found(*call.args, **call.kwargs)
    except (TypeError, ValueError) as error:
        msg = f"the loss {text!r} must be a class that takes its arguments: {error}."
        raise UsageError(msg) from None
    return loss


def _losses() -> dict[str, Any]:
    """Return the losses of torch: functions with a target, and classes, by name."""
    functions = {name: found for name, found in vars(functional).items() if _is_loss(name, found)}
    classes = {name: found for name, found in vars(nn).items() if name.endswith("Loss")}
    return {**functions, **classes}


def _is_loss(name: str, found: Any) -> bool:
    return callable(found) and name.endswith(("_loss", "cross_entropy", "kl_div", "_with_logits")) and name[0] != "_"


def cross_entropy(output: Any, target: Tensor) -> Tensor:
    """Return the cross-entropy of scores, whose classes are in the last dimension if the target has the shape of the others.

    Args:
        output: The scores, or an object that has them as ``logits``.
        target: Classes.

    Raises:
        TypeError: The output holds no scores of this name.
    """
    scores = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(scores, Tensor):
        keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        msg = f"it takes a tensor, or an output with logits. Got {type(output).__name__}{keys}: name a loss of yours, MODULE:NAME"
        raise TypeError(msg)
    if _are_of_tokens(scores, target):
        return functional.cross_entropy(scores.reshape(-1, scores.shape[-1]), target.reshape(-1))
    return functional.cross_entropy(scores, target)


def suits_torch(output: Any, target: Tensor) -> bool:
    """Return whether torch's own cross-entropy means the same as :func:`cross_entropy` for these arguments."""
    return isinstance(output, Tensor) and not _are_of_tokens(output, target)


def _are_of_tokens(scores: Tensor, target: Tensor) -> bool:
    return scores.dim() > 2 and target.shape == scores.shape[:-1]


def needs_target(loss: Any) -> bool:
    """Return whether a loss takes a second argument that has no default."""
    call = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds and parameter.default is parameter.empty for parameter in parameters) >= 2
