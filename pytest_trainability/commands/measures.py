"""Commands on measures: a table of all, and the definition of one."""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import textwrap
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import Subparsers, declared, say
from .plugins import load_measures

if TYPE_CHECKING:
    from ..measures import Measure

__all__ = ["declare", "explain", "measures", "page_of"]

PAGES = "pages"
"""Folder inside ``pytest_trainability.measures`` that holds the pages in an installed package. See ``pyproject.toml``."""
WIDEST = 100
"""Largest number of columns of an explanation."""


def declare(commands: Subparsers) -> None:
    """Declare the commands."""
    text = "Print the definition and the page of a measure: equation, unit, when it misleads, and how to bound it."
    command = declared(commands, "explain", text, "explain log_gain", explain)
    command.add_argument("measure", metavar="MEASURE", help="Name of a measure, such as log_gain.")
    declared(commands, "measures", "Print a table of all measures.", "measures", measures)


def explain(options: argparse.Namespace) -> int:
    """Print the definition of a measure."""
    from ..measures import find_measure

    load_measures()
    measure = find_measure(options.measure, where="explain")
    say(f"{measure.name} ({_what(measure)})")
    for line in ["", *_definition(measure), "", *_explanation(measure), *_declaration(measure)]:
        say(line)
    return 0


def _what(measure: Measure) -> str:
    return ", ".join(part for part in (measure.kind, measure.unit) if part)


def _definition(measure: Measure) -> list[str]:
    text = inspect.getdoc(measure.read) or "No description."
    return text.splitlines()


def _explanation(measure: Measure) -> list[str]:
    """Return the page of a measure as plain text, wrapped to the terminal; nothing for a measure of another package."""
    page = page_of(measure.name)
    width = min(shutil.get_terminal_size().columns, WIDEST)
    blocks = [_plain(block, width) for block in page.partition("\n")[2].strip().split("\n\n")] if page else []
    return [line for block in blocks for line in (*block, "")]


def page_of(name: str) -> str:
    """Return the page of a measure in the documentation, which the package holds as data; empty if there is none.

    Args:
        name: Name of the measure.
    """
    packed = files("pytest_trainability.measures") / PAGES
    # In a checkout, the pages are where they are written.
    folder = packed if packed.is_dir() else Path(__file__).parents[2] / "docs" / "measures"
    page = folder / f"{name}.md"
    return page.read_text(encoding="utf-8") if page.is_file() else ""


def _plain(block: str, width: int) -> list[str]:
    """Return a block of Markdown without links and emphasis. Formulas, tables and code keep their lines."""
    if block.startswith("```"):
        return block.split("\n")
    text = re.sub(r"\[([^\]]+)\]\([^)\s]*\)", r"\1", block)
    text = re.sub(r"\*\*(.+?)\*\*", r"\1", text)
    text = re.sub(r"(?m)^\*(.+)\*$", r"\1", text)
    if text.startswith(("$$", "|")):
        return text.split("\n")
    items = re.split(r"\n(?=- |\d+\. )", text)
    return [
        line for item in items for line in textwrap.wrap(" ".join(item.split()), width, subsequent_indent=_indent(item))
    ]


def _indent(item: str) -> str:
    """Return the indent of the further lines of an item of a list; empty for a paragraph."""
    found = re.match(r"- |\d+\. ", item)
    return " " * len(found[0]) if found else ""


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

    load_measures()
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
