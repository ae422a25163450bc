"""A line on the terminal that says what a slow command does. It is written to the stream of errors, and leaves no trace."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

__all__ = ["StatusLine", "status_line"]

_ERASE = "\r\x1b[K"


class StatusLine:
    """One line, which each text replaces. It shows nothing in a pipe or a file.

    Args:
        stream: Where it is written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        is_terminal = stream.isatty() and os.name == "posix" and os.environ.get("TERM") != "dumb"
        self._parts: dict[str, str] | None = {} if is_terminal else None

    def show(self, text: str) -> None:
        """Show a text in place of the last one.

        Args:
            text: The text. It is cut to the width of the terminal.
        """
        from ..report.layout import cut_right, shown_in

        if self._parts is not None:
            shown = cut_right(shown_in(text, self._stream.encoding), shutil.get_terminal_size().columns - 1)
            self._stream.write(_ERASE + shown)
            self._stream.flush()

    def watch(self, model: str, part: str, text: str) -> None:
        """Show what a measurement does.

        Args:
            model: Name of the model.
            part: ``"seed"``, ``"now"`` or ``"end"``.
            text: Number of the seed, or what is computed.
        """
        if self._parts is None:
            return
        if part == "end":
            self._parts = {}
            self.clear()
            return
        self._parts[part] = text
        self.show(f"{model}: seed {self._parts.get('seed', '1')}, {self._parts.get('now', '')}")

    def clear(self) -> None:
        """Remove the line."""
        if self._parts is not None:
            self._stream.write(_ERASE)
            self._stream.flush()


@contextmanager
def status_line(text: str) -> Iterator[StatusLine]:
    """Show a line on the terminal, and remove it at the end.

    Args:
        text: The first text.

    Yields:
        The line.
    """
    line = StatusLine(sys.stderr)
    line.show(text)
    try:
        yield line
    finally:
        line.clear()
