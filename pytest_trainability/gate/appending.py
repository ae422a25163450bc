"""Adding a test to ``trainability.toml`` or ``pyproject.toml``, without a change of what stands there."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from .reading import FILE, InvalidGateError, table_of

__all__ = ["prefix_of", "refuse_unusable", "with_table"]


def prefix_of(path: Path) -> str:
    """Return what the keys of the tests in a file begin with, before ``test.NAME``.

    >>> prefix_of(Path("trainability.toml")), prefix_of(Path("pyproject.toml"))
    ('', 'tool.trainability.')
    """
    return "" if path.name == FILE else "tool.trainability."


def refuse_unusable(path: Path, name: str) -> None:
    """Refuse a file to which no table of a name can be added.

    Args:
        path: The file. One that does not exist can be written.
        name: Name of the test.

    Raises:
        UsageError: The file is no TOML, has a test of the name, or has its tests in an inline table.
    """
    text = _text(path)
    try:
        found = table_of(path, text)
    except InvalidGateError as error:
        msg = f"{path} must be valid before a table is added. {error}"
        raise UsageError(msg) from None
    tests = found[0].get("test") if found is not None and isinstance(found[0], dict) else None
    if isinstance(tests, dict) and name in tests:
        msg = f"{path} has a table [test.{name}], which is never overwritten. Choose another name: --name NAME."
        raise UsageError(msg)
    try:
        table_of(path, f"{text}\n[{prefix_of(path)}test.'{name}']\n")
    except InvalidGateError:
        msg = (
            f"{path} must be a file to which the table [{prefix_of(path)}test.{name}] can be added. A table around it is written "
            "as a value, with = {...}, which is closed. Write a header [...] for it, or choose another file: --output FILE."
        )
        raise UsageError(msg) from None


def with_table(path: Path, table: str) -> str:
    """Return the text of a file with a table at its end. The file keeps its text and its ends of lines.

    Args:
        path: The file. One that does not exist counts as empty.
        table: Lines of the table, with a line break at the end of each.
    """
    before = _text(path)
    ending = "\r\n" if "\r\n" in before else "\n"
    gap = ("" if before.endswith("\n") or not before else ending) + (ending if before.strip() else "")
    return before + gap + table.replace("\n", ending)


def _text(path: Path) -> str:
    """Return the text of a file, with its ends of lines.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} must be a file in UTF-8 to which a table can be added. {type(error).__name__}: {error}"
        raise UsageError(msg) from None
