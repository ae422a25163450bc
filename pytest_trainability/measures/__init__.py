"""The measures, one quantity a file, by family; and their registry.

The registry is what the families declare: every :class:`Measure` that a module of theirs holds.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Iterable, Iterator
from importlib import import_module

from ..errors import BoundError
from .measure import Measure

__all__ = ["DEFAULT", "FAMILIES", "MEASURES", "Measure", "declared_measures", "find_measure", "recorded_along"]

FAMILIES = ("depth", "jacobian", "activations", "gradients", "loss", "structure")


def declared_measures() -> Iterator[Measure]:
    """Yield the measures of all families, in the order of families, files and lines."""
    for family in FAMILIES:
        package = import_module(f".{family}", __name__)
        for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
            module = import_module(f".{found.name}", package.__name__)
            yield from (
                m for m in vars(module).values() if isinstance(m, Measure) and m.read.__module__ == module.__name__
            )


MEASURES: dict[str, Measure] = {m.name: m for m in declared_measures()}
"""By name; a plugin's join it when they are loaded."""

DEFAULT: tuple[str, ...] = ("lyapunov_max", "gradient_norm", "activation_rms")
"""What is measured when nothing is asked for."""


def recorded_along(chain: str) -> tuple[Measure, ...]:
    """Return what a baseline along ``"depth"`` or ``"time"`` holds, in addition to the measures that a test has bounds for."""
    return tuple(m for m in MEASURES.values() if chain in m.recorded)


def find_measure(name: str, *, where: str = "", known: Iterable[str] = MEASURES) -> Measure:
    """Return the measure of that name.

    Args:
        name: Of the measure.
        where: Where it was asked for, for the message.
        known: Names that the message may suggest.

    Raises:
        BoundError: There is none; the message names ``where`` it was asked for, and the nearest name.
    """
    if name in MEASURES:
        return MEASURES[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"Measures: {', '.join(sorted(known))}."
    msg = f"{where}: unknown measure {name!r}. {hint}" if where else f"Unknown measure {name!r}. {hint}"
    raise BoundError(msg)
