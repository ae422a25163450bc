"""The measures, their registry, and everything that a plugin needs to add its own.

Each family is a subpackage, and each of its files holds one computation and the measures that follow from it. The registry
contains every :class:`Measure` that a module of a family declares.

Importing this package loads torch. A pytest plugin therefore imports it inside its hooks.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..engine.runs.common_needs import PARAMETER_GRADIENTS, STATE_RMS
from ..engine.runs.objective import Objective
from ..engine.runs.run import Need, Run, Stage
from ..errors import BoundError
from ..records.text import short_repr
from .measure import Measure, declare

if TYPE_CHECKING:
    from .depth.lyapunov import LOSS_SWEEP, SWEEP

__all__ = [
    "DEFAULT",
    "FAMILIES",
    "LOSS_SWEEP",
    "MEASURES",
    "PARAMETER_GRADIENTS",
    "STATE_RMS",
    "SWEEP",
    "Measure",
    "Need",
    "Objective",
    "Run",
    "Stage",
    "companion_of",
    "declare",
    "declared_measures",
    "find_measure",
    "recorded_along",
    "suggest_measure",
]

FAMILIES = ("depth", "jacobian", "activations", "gradients", "loss", "structure", "parameters")
"""Names of the subpackages that declare measures, in the order of the documentation."""

_NEEDS_OF_FAMILIES = {"LOSS_SWEEP": "depth.lyapunov", "SWEEP": "depth.lyapunov"}
"""Public needs that a family defines, and the module of each. They are looked up by name, as this package imports no family."""


def declared_measures() -> Iterator[Measure]:
    """Iterate over the measures of all families; measures of plugins are not among them.

    Yields:
        Each measure once, in the order of families, files and lines.
    """
    for family in FAMILIES:
        package = import_module(f".{family}", __name__)
        for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
            module = import_module(f".{found.name}", package.__name__)
            yield from (
                m for m in vars(module).values() if isinstance(m, Measure) and m.read.__module__ == module.__name__
            )


MEASURES: dict[str, Measure] = {m.name: m for m in declared_measures()}
"""All measures by name. Measures of plugins are added when the plugins are loaded."""

DEFAULT: tuple[str, ...] = ("lyapunov_max", "gradient_norm", "activation_rms")
"""Names of the measures that a measurement reads when the user requests none."""


def recorded_along(chain: str) -> tuple[Measure, ...]:
    """Return the measures that every baseline holds, whether a test bounds them or not.

    Args:
        chain: Direction of the chain, ``"depth"`` or ``"time"``.

    Returns:
        The measures whose ``recorded`` contains the direction, in the order of the registry.
    """
    return tuple(m for m in MEASURES.values() if chain in m.recorded)


def find_measure(name: str, *, where: str = "", known: Iterable[str] = MEASURES) -> Measure:
    """Return the measure of a name.

    >>> find_measure("log_gain").unit
    'nats'

    Args:
        name: Name of the measure.
        where: Place where the user has written the name, for the message; empty (the default) for none.
        known: Names that the message may suggest; by default those of all measures.

    Returns:
        The measure, which may be that of a plugin.

    Raises:
        BoundError: No measure has that name. The message gives ``where`` and the most similar name.
    """
    if isinstance(name, str) and name in MEASURES:
        return MEASURES[name]
    got, hint = short_repr(name), suggest_measure(name, known)
    msg = f"{where}: unknown measure {got}. {hint}" if where else f"Unknown measure {got}. {hint}"
    raise BoundError(msg)


def suggest_measure(name: object, known: Iterable[str] = MEASURES) -> str:
    """Return a sentence with the known name that resembles a name most, or with all of them.

    >>> suggest_measure("log_gian")
    "Did you mean 'log_gain'?"
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) if isinstance(name, str) else []
    return f"Did you mean {near[0]!r}?" if near else f"Measures: {', '.join(sorted(known))}."


def companion_of(measure: Measure) -> Measure | None:
    """Return the measure that another one is measured with; None if it is measured alone.

    >>> companion_of(find_measure("initial_loss")).name, companion_of(find_measure("log_gain"))
    ('excess_loss', None)

    Raises:
        BoundError: ``measured_with`` names no measure.
    """
    name = measure.measured_with
    return find_measure(name, where=f"measured_with of the measure {measure.name!r}") if name else None


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_OF_FAMILIES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f".{_NEEDS_OF_FAMILIES[name]}", __name__), name)
