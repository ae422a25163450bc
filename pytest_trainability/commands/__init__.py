"""``python -m pytest_trainability``: reports, baselines, contracts and measures on the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import baselines, contract, look, measures, reports, start
from .arguments import CANNOT, DIFFERS, PROGRAM, say

__all__ = ["CANNOT", "DIFFERS", "main"]

DESCRIPTION = """Take a first look at a model; write a first test of it, or its initialization contract; show, merge and
compare reports of pytest --trainability-json; accept measured baselines; explain measures."""
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
    for room in (look, start, reports, baselines, contract, measures):
        room.declare(commands)
    return parser
