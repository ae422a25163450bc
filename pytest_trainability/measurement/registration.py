"""Adding a measure to the registry at run time."""

from __future__ import annotations

from collections.abc import Iterable
from keyword import iskeyword
from typing import Any

from ..errors import UsageError
from ..measures import MEASURES, Measure
from .options import Options
from .result import Measurement

__all__ = ["add_measure", "add_measures"]

_RESERVED = frozenset({"model", "inputs", "measures", "confidence", "preset", "tolerances"})
"""Other arguments of ``measure`` and keywords of the marker: no measure may have such a name, as none could have a bound."""


def add_measure(measure: Measure) -> None:
    """Add a measure to this process: an attribute of every measurement, and a name for bounds.

    A pytest plugin returns its measures from the hook ``pytest_trainability_measures`` instead. Adding the same object again has
    no effect.

    >>> from pytest_trainability import Measure, Need, Stage, measure
    >>> from pytest_trainability.measures import MEASURES
    >>> import torch
    >>> COUNT = Need("parameter count", lambda run: sum(p.numel() for p in run.capture.model.parameters()), Stage.RERUN)
    >>> add_measure(
    ...     Measure("parameter_count", "scalar", "", "linear", frozenset({COUNT}), lambda run: float(run[COUNT]))
    ... )
    >>> print(measure(torch.nn.Linear(3, 2), torch.ones(1, 3)).parameter_count)
    8
    >>> _ = MEASURES.pop("parameter_count")  # only for this example

    Args:
        measure: The measure. Its name must be a Python identifier without a leading underscore that neither another measure, nor
            an attribute of a measurement, nor an argument of ``measure`` or the marker has.

    Raises:
        UsageError: The argument is not a ``Measure``, or its name is invalid or taken.
    """
    given: Any = measure
    if not isinstance(given, Measure):
        msg = f"a measure must be a pytest_trainability.Measure. Got {type(given).__name__}."
        raise UsageError(msg)
    name = measure.name
    taken = {*_RESERVED, *Options.__optional_keys__, *dir(Measurement)} - set(MEASURES)
    invalid = not name.isidentifier() or iskeyword(name) or name.startswith("_")
    if invalid or name in taken or MEASURES.get(name, measure) is not measure:
        msg = (
            f"the name of a measure must be an unused identifier, such as gradient_kurtosis. {name!r} is "
            f"{'not an identifier for a measure' if invalid else 'taken'}. Rename the measure."
        )
        raise UsageError(msg)
    MEASURES[name] = measure


def add_measures(given: Any, *, where: str) -> None:
    """Add the measures that a plugin returns.

    Args:
        given: The measures.
        where: The hook and the plugin, for messages.

    Raises:
        UsageError: There are no measures in it, or the name of one is taken.
    """
    if not isinstance(given, Iterable):
        msg = f"{where} must return a list of measures. Got {given!r}."
        raise UsageError(msg)
    try:
        for measure in given:
            add_measure(measure)
    except UsageError as error:
        msg = f"{where}: {error}"
        raise UsageError(msg) from None
