"""The option of commands that sets the tolerances of a comparison."""

from __future__ import annotations

import argparse

from .plugins import load_measures

__all__ = ["add_tolerances", "tolerances_of"]


def add_tolerances(command: argparse.ArgumentParser) -> None:
    """Add the option that sets tolerances."""
    command.add_argument(
        "--tolerances",
        action="append",
        default=[],
        metavar="TOLERANCE",
        help="Tolerance of a measure, such as 'log_gain = 0.5'. May be given several times.",
    )


def tolerances_of(options: argparse.Namespace) -> dict[str, float]:
    """Return the tolerance of every measure: that of its declaration, unless the option sets another one.

    Raises:
        UsageError: A line is no tolerance, or its name is no measure.
    """
    from ..checks.tolerances import parse_tolerances
    from ..measures import MEASURES, find_measure

    load_measures()
    given = parse_tolerances(options.tolerances, where="--tolerances")
    known = {measure.name: measure.tolerance for measure in MEASURES.values()}
    return known | {find_measure(name, where="--tolerances").name: value for name, value in given.items()}
