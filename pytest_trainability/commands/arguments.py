"""What commands share: arguments with an example, exit statuses, and lines for the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "CANNOT",
    "DIFFERS",
    "PROGRAM",
    "Subparsers",
    "declared",
    "emit",
    "say",
    "write",
]

DIFFERS, CANNOT = 1, 2
"""Exit statuses: something has changed, failed or does not hold; a file, folder or argument cannot be used."""
PROGRAM = "python -m pytest_trainability"

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def declared(
    commands: Subparsers, name: str, text: str, example: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Return the parser of a new command, whose help ends with an example.

    Args:
        commands: All commands.
        name: Name of the command.
        text: What it does.
        example: Arguments of an example.
        run: Runs the command and returns its exit status.
    """
    command = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {PROGRAM} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def say(line: str, file: TextIO | None = None) -> None:
    """Print one line. Names in it may come from an artifact."""
    from ..report.layout import shown_in

    file = file or sys.stdout
    print(shown_in(line, getattr(file, "encoding", None)), file=file)


def emit(text: str) -> None:
    """Print a text that is written for another program, in ASCII if the terminal cannot represent it."""
    from ..report.layout import to_ascii

    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError):
        text = to_ascii(text)
    sys.stdout.write(text)


def write(path: Path, text: str) -> None:
    """Write a file as a whole.

    Raises:
        ReportError: It cannot be written. It is unchanged then.
    """
    from ..checks.atomic_files import replace_file
    from ..errors import ReportError

    if path.exists() and not path.is_file():
        msg = f"{path} could not be written. It is not a regular file."
        raise ReportError(msg)
    try:
        replace_file(path.resolve(), text)
    except OSError as error:
        msg = f"{path} could not be written. {type(error).__name__}: {error.strerror or error}."
        raise ReportError(msg) from None
