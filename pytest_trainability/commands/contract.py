"""Write the initialization contract of a model."""

from __future__ import annotations

import argparse
import sys

from .arguments import DIFFERS, Subparsers, declared, say

__all__ = ["declare", "write_contract"]


def declare(commands: Subparsers) -> None:
    """Declare the command ``contract``."""
    text = "Print the initialization contract that a model keeps. Exit status 1 if it does not hold on other seeds."
    command = declared(commands, "contract", text, "contract package.module:build --seeds 8", write_contract)
    command.add_argument("build", metavar="MODULE:FACTORY", help="Factory of the model, such as package.module:build.")
    command.add_argument("--seeds", default="8", help="Seeds to read, such as 8 or 0-7 (default: 8).")
    command.add_argument("--name", default="CONTRACT", help="Name of the dictionary (default: CONTRACT).")


def write_contract(options: argparse.Namespace) -> int:
    """Print the contract of a model, and check it on as many other seeds."""
    from ..checks.statistics import as_seeds
    from ..measurement.contracts import checked_contract
    from ..sources.places import imported

    build = imported(options.build, what="the factory", form="MODULE:FACTORY")
    text, trouble = checked_contract(build, as_seeds(options.seeds), options.name)
    print(text, end="")
    if trouble:
        say("pytest_trainability: this contract does not hold on other seeds. Correct it by hand:", file=sys.stderr)
        for line in trouble.splitlines():
            say(line, file=sys.stderr)
    return DIFFERS if trouble else 0
