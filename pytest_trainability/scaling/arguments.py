"""Validation of the arguments of a size sweep."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from ..errors import UsageError
from ..measurement import DEFAULT_OPTIONS, Options, refuse_unknown
from ..measures import MEASURES, find_measure

__all__ = [
    "CHANGE",
    "DEFAULT_MEASURE",
    "EACH",
    "EXTREMES",
    "SUMMARIES",
    "Along",
    "Patterns",
    "Summary",
    "as_options",
    "as_sizes",
    "as_summaries",
    "inputs_at",
    "refuse_inputs",
    "refuse_measure",
]

CHANGE = "activation_change"
"""RMS of the change of each module's output in training: a measure of size sweeps with ``after_steps`` only."""

Along: TypeAlias = Literal["width", "depth"]
Summary: TypeAlias = "str | Sequence[str] | None"
Patterns: TypeAlias = "str | Sequence[str]"

DEFAULT_MEASURE: dict[str, str] = {"width": "activation_rms", "depth": "log_gain"}
EACH = "each"
EXTREMES = ("max", "min")
"""Default summaries of a profile whose elements change their names with the size."""
SUMMARIES: dict[str, str] = {"max": "largest", "min": "smallest", "mean": "mean", "first": "first", "last": "last"}
"""Summaries of a profile, and their names in sentences."""


def refuse_inputs(where: str, inputs: Any, inputs_of: Any) -> None:
    """Require exactly one of ``inputs`` and ``inputs_of``.

    Raises:
        UsageError: Neither or both are given, or ``inputs_of`` is not a function.
    """
    if (inputs is None) == (inputs_of is None):
        came = "neither" if inputs is None else "both"
        msg = f"{where} needs either inputs, or inputs_of=, a function of the size that makes them. Got {came}."
        raise UsageError(msg)
    if inputs_of is not None and not callable(inputs_of):
        msg = (
            f"inputs_of must be a function of the size. Got {type(inputs_of).__name__}. Pass inputs that are the same for all "
            "sizes as inputs=."
        )
        raise UsageError(msg)


def as_sizes(along: str, sizes: Any) -> tuple[int, ...]:
    """Return widths or depths as a tuple.

    Raises:
        UsageError: They are not two or more increasing whole numbers of at least 1.
    """
    msg = (
        f"{along}s must be two or more whole numbers of at least 1, increasing, such as [64, 128, 256]. Got {sizes!r}."
    )
    try:
        given = list(sizes)
        found = tuple(operator.index(size) for size in given)
    except TypeError:
        raise UsageError(msg) from None
    increasing = all(a < b for a, b in pairwise(found))
    if any(isinstance(size, bool) for size in given) or len(found) < 2 or found[0] < 1 or not increasing:
        raise UsageError(msg)
    return found


def as_options(where: str, settings: Mapping[str, Any]) -> Options:
    """Return the options of every measurement: those that are given, and the defaults of the others.

    Raises:
        UsageError: A name is not an argument of ``measure``.
    """
    refuse_unknown(settings, where=where)
    return cast("Options", {**DEFAULT_OPTIONS, **settings})


def refuse_measure(where: str, name: str, *, trained: bool) -> None:
    """Refuse a measure that has no slope.

    Args:
        where: The function that was called, for the message.
        name: Name of the measure.
        trained: Whether the models are trained before the measurement.

    Raises:
        UsageError: The measure is a list of names, or needs training.
        BoundError: The measure is unknown.
    """
    if name == CHANGE:
        if not trained:
            msg = f"{CHANGE} must come with after_steps=, a number of at least 1: it is the change in training."
            raise UsageError(msg)
        return
    known = (*MEASURES, CHANGE) if trained else MEASURES
    if find_measure(name, where=f"measure= of {where}", known=known).kind == "names":
        msg = (
            f"{where} needs a measure that is a number. {name!r} is a list of names. Check it at every size: "
            f"for result in scaling.measurements: result.check({name}=at_most(0))."
        )
        raise UsageError(msg)


def as_summaries(summary: Summary) -> tuple[str, ...]:
    """Return one or several summaries of a profile as a tuple; empty for None.

    Raises:
        UsageError: A name is not a summary, or ``"each"`` comes with others.
    """
    given = (summary,) if isinstance(summary, str) else tuple(summary or ())
    if not set(given) <= {*SUMMARIES, EACH} or (EACH in given and len(given) > 1):
        msg = f"summary must be 'each', or one or several of {', '.join(map(repr, SUMMARIES))}. Got {summary!r}."
        raise UsageError(msg)
    return given


def inputs_at(size: int, inputs: Any, inputs_of: Callable[[int], Any] | None) -> Any:
    """Return the inputs of the models of one size, in a form that :func:`pytest_trainability.measure` takes."""
    if inputs_of is None:
        return inputs

    # The engine calls this function where it draws inputs, so that the seed determines them.
    def drawn(generator: torch.Generator) -> Any:
        try:
            given = inputs_of(size)
            return given(generator) if callable(given) and not isinstance(given, (Tensor, Mapping)) else given
        except Exception as error:
            msg = f"inputs_of must make the inputs of every size. inputs_of({size}) raised {type(error).__name__}: {error}"
            raise UsageError(msg) from error

    return drawn
