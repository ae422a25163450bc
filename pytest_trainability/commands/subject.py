"""What a command measures: arguments that name the model, its inputs, its targets and its loss."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError

__all__ = ["Subject", "add_subject_arguments", "subject"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with what its measurement needs, and the texts that named them."""

    model: str
    input: tuple[str, ...]
    target: tuple[str, ...]
    loss: str
    build: Any
    """Factory without arguments, or a finished module."""
    inputs: Any
    targets: Any
    """None without ``--target``."""
    loss_function: Callable[..., Any] | None
    name: str
    """Name of the model, such as ``gpt2`` or ``build``."""


def add_subject_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name the model, its inputs, its targets and its loss."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="package.module:build (a factory, a class or a module), hf:MODEL_TYPE, hf-tiny:MODEL_TYPE, timm:NAME or "
        "torchvision:NAME. Nothing is downloaded.",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="INPUT",
        help="Inputs: 8x3x224x224 (normal numbers), 'ids:4x128<50257' (whole numbers), mask:4x128 (ones) or MODULE:NAME. "
        "May be given once for each argument of the model, also with its name: input_ids=ids:4x128<50257. By default those "
        "that the model declares.",
    )
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="TARGET",
        help="Second argument of the loss, in the form of --input, such as 'ids:8<10' for 8 labels of 10 classes.",
    )
    parser.add_argument(
        "--loss",
        default="",
        metavar="LOSS",
        help="Function of torch.nn.functional, such as cross_entropy or mse_loss, or package.module:loss. By default the loss "
        "that the model computes itself.",
    )


def subject(options: argparse.Namespace) -> Subject:
    """Return what the arguments name.

    Raises:
        UsageError: A text names nothing, or the model declares no inputs and none are given.
    """
    from ..sources.inputs import drawn_inputs
    from ..sources.models import named_model

    named = named_model(options.model)
    inputs = drawn_inputs(options.input) if options.input else named.inputs
    if inputs is None:
        msg = (
            f"{options.model!r} declares no inputs, and none are given. Write --input 8x3x224x224 for normal numbers of this "
            "shape, --input 'ids:4x128<50257' for whole numbers, or --input package.module:batch."
        )
        raise UsageError(msg)
    return Subject(
        model=options.model,
        input=tuple(options.input),
        target=tuple(options.target),
        loss=options.loss,
        build=named.build,
        inputs=inputs,
        targets=drawn_inputs(options.target) if options.target else None,
        loss_function=_loss(options.loss) if options.loss else None,
        name=named.name,
    )


def _loss(text: str) -> Callable[..., Any]:
    """Return the loss that a text names.

    Raises:
        UsageError: There is no such function.
    """
    from ..sources.code import functional_losses
    from ..sources.places import imported

    if ":" in text:
        found: Callable[..., Any] = imported(text, what="the loss")
        return found
    losses = functional_losses()
    if text in losses:
        return losses[text]
    near = difflib.get_close_matches(text, losses, n=3)
    hint = f" Nearest: {', '.join(near)}." if near else ""
    msg = f"the loss must be a function of torch.nn.functional, such as cross_entropy, or MODULE:NAME. Got {text!r}.{hint}"
    raise UsageError(msg)
