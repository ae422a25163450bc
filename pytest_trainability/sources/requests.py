"""A whole measurement that is named by texts: the model, its inputs, targets and loss."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import UsageError, concerning
from .declared import by_forward, declared_inputs, declares_inputs_of_forward
from .inputs import drawn_inputs, is_place
from .losses import named_loss, needs_target
from .models import NamedModel, named_model
from .sample import Sample

__all__ = [
    "IN_FILE",
    "IN_PYTEST",
    "ON_COMMAND_LINE",
    "Request",
    "Words",
    "pytest_options",
    "requested",
    "takes_nothing",
]


@dataclass(frozen=True, slots=True)
class Words:
    """How a user writes what is missing, for messages."""

    inputs: str
    targets: str
    arguments: str
    loss: str


IN_FILE = Words(
    "inputs = '8x3x224x224'",
    "targets = 'ids:8<1000'",
    " or give them as parameters = {width = [64]}",
    "loss = 'cross_entropy'",
)
ON_COMMAND_LINE = Words("--input 8x3x224x224", "--target 'ids:8<1000'", "", "--loss cross_entropy")
IN_PYTEST = Words(
    "--trainability-input=8x3x224x224", "--trainability-targets='ids:8<1000'", "", "--trainability-loss=cross_entropy"
)


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be measured, as arguments of a measurement."""

    build: Any
    """Factory without arguments, or a finished module."""
    inputs: Any
    target: Any
    loss: Callable[..., Any] | None
    sample: Sample
    """A model, for questions about its structure."""


def requested(
    model: str,
    *,
    inputs: Sequence[str] = (),
    targets: Sequence[str] = (),
    loss: str = "",
    parameters: Mapping[str, Any] | None = None,
    words: Words = ON_COMMAND_LINE,
) -> Request:
    """Return the measurement that texts name.

    Args:
        model: As in :func:`~pytest_trainability.sources.models.named_model`.
        inputs: As in :func:`~pytest_trainability.sources.inputs.drawn_inputs`; by default those that the model declares.
        targets: In the same form; none by default.
        loss: As in :func:`~pytest_trainability.sources.losses.named_loss`; empty (the default) for none.
        parameters: Keyword arguments of the factory.
        words: How the user writes what is missing.

    Raises:
        UsageError: A text names nothing, the factory needs arguments, or the model declares no inputs and none are given.
    """
    with concerning("model"):
        named = named_model(model)
    with concerning("parameters" if parameters else "model"):
        build = _with_arguments(named, model, parameters or {}, words)
    # Further arguments may change what the model declares.
    sample, draw = (named.sample, named.draw) if build is named.build else (Sample(build), None)
    with concerning("targets"):
        if targets and not loss:
            msg = f"targets must come with the loss that takes them. Write {words.loss}."
            raise UsageError(msg)
    with concerning("loss"):
        function = named_loss(loss) if loss else None
        if function is not None and not targets and needs_target(function) and not (inputs and is_place(inputs[0])):
            msg = f"the loss {loss} takes a target, and none is given. Write {words.targets}."
            raise UsageError(msg)
    if not inputs and function is None and declares_inputs_of_forward(sample):
        build = by_forward(build)
    with concerning("inputs"):
        found = _generated(drawn_inputs(inputs) if inputs else draw or _declared(sample, model, words))
    with concerning("targets"):
        target = _generated(drawn_inputs(targets, what="the targets")) if targets else None
    return Request(build, found, target, function, sample)


def pytest_options(
    model: str, *, inputs: Sequence[str] = (), targets: Sequence[str] = (), loss: str = "", steps: str = ""
) -> list[str]:
    """Return the options with which pytest measures the same model."""
    return [
        f"--trainability-model={model}",
        *(f"--trainability-input={text}" for text in inputs),
        *(f"--trainability-targets={text}" for text in targets),
        *([f"--trainability-loss={loss}"] if loss else []),
        *([f"--trainability-steps={steps}"] if steps not in {"", "auto"} else []),
    ]


def _with_arguments(named: NamedModel, text: str, parameters: Mapping[str, Any], words: Words) -> Any:
    """Return the factory with its arguments. One that lacks some is refused before it is called."""
    if isinstance(named.build, nn.Module):
        if parameters:
            msg = f"parameters are arguments of a factory. {text!r} is a finished module."
            raise UsageError(msg)
        return named.build
    unknown, missing = _mismatch(named.build, parameters)
    if unknown:
        msg = f"the factory {text!r} must take the parameters. It has no argument {unknown}.{_nearest(named.build, parameters)}"
        raise UsageError(msg)
    if missing:
        msg = (
            f"the model must be built without arguments. {text!r} needs {missing}. Name a function without arguments"
            f"{words.arguments}."
        )
        raise UsageError(msg)
    if not parameters:
        return named.build

    @functools.wraps(named.build, updated=())
    def build() -> Any:
        return named.build(**parameters)

    return build


def _mismatch(build: Any, given: Mapping[str, Any]) -> tuple[str, str]:
    """Return the names that a factory does not take, and those that it lacks."""
    try:
        known = inspect.signature(build).parameters
    except (TypeError, ValueError):
        return "", ""
    takes_all = any(p.kind is p.VAR_KEYWORD for p in known.values())
    needed = (p for p in known.values() if p.default is p.empty and p.kind not in {p.VAR_KEYWORD, p.VAR_POSITIONAL})
    missing = [p.name for p in needed if p.name not in given]
    unknown = [name for name in given if name not in known and not takes_all]
    return ", ".join(unknown), ", ".join(missing)


def _nearest(build: Any, given: Mapping[str, Any]) -> str:
    """Return a hint at the argument of a factory that resembles one that it does not take."""
    known = list(inspect.signature(build).parameters)
    near = [found for name in given if name not in known for found in difflib.get_close_matches(name, known, n=1)]
    return f" Did you mean {' and '.join(map(repr, near))}?" if near else f" It takes {', '.join(known) or 'none'}."


def _declared(sample: Sample, text: str, words: Words) -> Any:
    inputs = declared_inputs(sample)
    if inputs is None:
        msg = f"{text!r} declares no inputs, and none are given. Write {words.inputs}, or MODULE:NAME of a batch."
        raise UsageError(msg)
    return inputs


def takes_nothing(found: Any) -> bool:
    """Return whether a batch is a function without arguments, where measurements call one with a generator."""
    return inspect.isroutine(found) and not inspect.signature(found).parameters


def _generated(found: Any) -> Any:
    """Return inputs; a function without arguments becomes one of a generator, as measurements call it."""
    return (lambda generator: found()) if takes_nothing(found) else found
