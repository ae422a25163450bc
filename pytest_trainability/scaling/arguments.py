"""What a sweep is asked for."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..errors import UsageError
from ..measurement import measure as measure_once
from ..measures import MEASURES, find_measure

CHANGE = "activation_change"
"""By how much training changes what each module returns: known to sweeps of trained models only."""

Along: TypeAlias = Literal["width", "depth"]
Summary: TypeAlias = "str | Sequence[str] | None"
Patterns: TypeAlias = "str | Sequence[str]"

DEFAULT: dict[str, str] = {"width": "activation_rms", "depth": "log_gain"}
EACH = "each"
EXTREMES = ("max", "min")
"""What is followed of a profile whose elements change their names with the size."""
SUMMARIES: dict[str, str] = {"max": "largest", "min": "smallest", "mean": "mean", "first": "first", "last": "last"}

_OWN = {"measures", "confidence"}
SETTINGS = {
    name: parameter.default
    for name, parameter in signature(measure_once).parameters.items()
    if parameter.kind is Parameter.KEYWORD_ONLY and name not in _OWN
}
"""Arguments of :func:`pytest_trainability.measure` that are handed on, with their defaults."""


def refuse_inputs(where: str, inputs: Any, inputs_of: Any) -> None:
    """Refuse all but one of ``inputs`` and ``inputs_of``.

    Raises:
        UsageError: Neither or both came, or no function.
    """
    if (inputs is None) == (inputs_of is None):
        came = "neither" if inputs is None else "both"
        msg = f"{where} must be given inputs, or inputs_of=, a function that makes those of a size. Got {came}."
        raise UsageError(msg)
    if inputs_of is not None and not callable(inputs_of):
        msg = f"inputs_of must be a function of the size. Got {type(inputs_of).__name__}. What is the same for all is inputs=."
        raise UsageError(msg)


def as_sizes(along: str, sizes: Any) -> tuple[int, ...]:
    """Read widths or depths.

    Raises:
        UsageError: They are not two or more, whole and increasing.
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


def as_settings(where: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments that are handed on to every measurement, the usual ones included.

    Raises:
        UsageError: One of those given is none.
    """
    for name in settings:
        if name not in SETTINGS:
            near = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            msg = f"{where} must be given arguments of its own or of measure(). {name!r} is none.{hint}"
            raise UsageError(msg)
    return {**SETTINGS, **settings}


def refuse_measure(where: str, name: str, *, trained: bool) -> None:
    """Refuse what has no slope.

    Raises:
        UsageError: It is no number, or changes only with training.
        BoundError: There is no such measure.
    """
    if name == CHANGE:
        if not trained:
            msg = f"{CHANGE} must come with after_steps=, a number of at least 1: it is what training changes."
            raise UsageError(msg)
        return
    known = (*MEASURES, CHANGE) if trained else MEASURES
    if find_measure(name, where=f"measure= of {where}", known=known).kind == "names":
        msg = (
            f"{where} must be given a measure that is a number. {name!r} is a list of names. Check it at every size: "
            f"for result in sweep.measurements: result.check({name}=at_most(0))."
        )
        raise UsageError(msg)


def as_summaries(summary: Summary) -> tuple[str, ...]:
    """Read a summary, or several, of a profile; none is empty.

    Raises:
        UsageError: It is none.
    """
    given = (summary,) if isinstance(summary, str) else tuple(summary or ())
    if not set(given) <= {*SUMMARIES, EACH} or (EACH in given and len(given) > 1):
        msg = f"summary must be 'each', or one or several of {', '.join(map(repr, SUMMARIES))}. Got {summary!r}."
        raise UsageError(msg)
    return given


def inputs_at(size: int, inputs: Any, inputs_of: Callable[[int], Any] | None) -> Any:
    """Return the inputs of the model of one size, as :func:`pytest_trainability.measure` takes them."""
    if inputs_of is None:
        return inputs

    # Called where the engine draws inputs, so that one seed means one draw.
    def drawn(generator: torch.Generator) -> Any:
        try:
            given = inputs_of(size)
            return given(generator) if callable(given) and not isinstance(given, (Tensor, Mapping)) else given
        except Exception as error:
            msg = f"inputs_of must make the inputs of every size. inputs_of({size}) raised {type(error).__name__}: {error}"
            raise UsageError(msg) from error

    return drawn
