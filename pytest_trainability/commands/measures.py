"""Commands on measures: a table of all, and the definition of one."""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import textwrap
from typing import TYPE_CHECKING

from .arguments import Subparsers, declared, say

if TYPE_CHECKING:
    from ..measures import Measure

__all__ = ["declare", "explain", "measures"]


def declare(commands: Subparsers) -> None:
    """Declare the commands."""
    text = "Print the definition of a measure: equation, unit, when it misleads, and how to bound it."
    command = declared(commands, "explain", text, "explain log_gain", explain)
    command.add_argument("measure", metavar="MEASURE", help="Name of a measure, such as log_gain.")
    declared(commands, "measures", "Print a table of all measures.", "measures", measures)


def explain(options: argparse.Namespace) -> int:
    """Print the definition of a measure."""
    from ..measures import find_measure

    measure = find_measure(options.measure, where="explain")
    say(f"{measure.name} ({_what(measure)})")
    for line in ["", *_definition(measure), "", *_declaration(measure)]:
        say(line)
    return 0


def _what(measure: Measure) -> str:
    return ", ".join(part for part in (measure.kind, measure.unit) if part)


def _definition(measure: Measure) -> list[str]:
    text = inspect.getdoc(measure.read) or "No description."
    return text.splitlines()


def _declaration(measure: Measure) -> list[str]:
    """Return sentences on how the measure is averaged, compared and bounded."""
    average = "geometric means" if measure.scale == "log" else "means"
    unit = "nats of the ratio" if measure.scale == "log" else measure.unit or "its unit"
    found = [f"Averaged over seeds by {average}. A baseline tolerates a change of {measure.tolerance:g} {unit}."]
    if measure.kind == "names":
        found[:1] = ["A bound on it bounds the number of names. A baseline tolerates no change."]
    elif measure.kind in {"profile", "spectrum"}:
        found.append("A bound holds if it holds for every element.")
    if measure.explained_by_growth:
        found.append("Growth of gradients along the chain can cause a failed bound.")
    example = "at_most(0)" if measure.kind == "names" else "within(LOW, HIGH)"
    return [*found, f"To bound it: @pytest.mark.trainability({measure.name}={example})"]


def measures(options: argparse.Namespace) -> int:
    """Print a table of all measures."""
    from ..measures import MEASURES

    known = sorted(MEASURES.values(), key=lambda measure: measure.name)
    names = max(len(measure.name) for measure in known)
    kinds = max(len(_what(measure)) for measure in known)
    room = max(shutil.get_terminal_size().columns - names - kinds - 4, 30)
    for measure in known:
        text = textwrap.shorten(_first_sentence(measure), room, placeholder=" …")
        say(f"{measure.name:<{names}}  {_what(measure):<{kinds}}  {text}")
    return 0


def _first_sentence(measure: Measure) -> str:
    """Return the first line of the definition, without the word that it begins with."""
    text = re.sub(r"`+|\*", "", _definition(measure)[0])
    return text.removeprefix("Return ").rstrip(".")
