"""``python -m pytest_trainability``: reports, baselines, contracts and measures on the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import baselines, contract, measures, reports, start
from .arguments import CANNOT, DIFFERS, PROGRAM, say

__all__ = ["CANNOT", "DIFFERS", "main"]

DESCRIPTION = """Show, merge and compare reports of pytest --trainability-json; accept measured baselines; write a first
test of a model, or its initialization contract; explain measures."""
STATUSES = """exit status:
  0 if nothing has failed or changed, 1 if something has, 2 if a file, folder or argument cannot be used. In the last case
  nothing is written."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        Exit status: 0 if nothing has failed or changed, 1 if something has, 2 if a file, folder or argument cannot be used. In
        the last case nothing is written.
    """
    from ..errors import TrainabilityError

    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except TrainabilityError as error:
        say(f"pytest_trainability: {error}", file=sys.stderr)
        return CANNOT
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=f"{STATUSES}\n\nexample:\n  {PROGRAM} show report.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for room in (reports, baselines, contract, measures, start):
        room.declare(commands)
    return parser
