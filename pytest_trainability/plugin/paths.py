"""Paths as reports show them and as xdist sends them."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["from_text", "relative_path", "to_text"]


def relative_path(path: Path, start: Path) -> str:
    """Return a path relative to a folder; the absolute path if there is none, as between two drives of Windows."""
    try:
        return os.path.relpath(path, start)
    except ValueError:
        return str(path.absolute())


def to_text(path: Path) -> str:
    """Return a path as text that xdist can send. Names of files need not be UTF-8."""
    return os.fsencode(path).decode("latin-1")


def from_text(text: str) -> Path:
    """Return the path for a result of :func:`to_text`."""
    return Path(os.fsdecode(text.encode("latin-1")))
