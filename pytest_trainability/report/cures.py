"""Cures of failed checks as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..records.reports import CheckRecord
from ..records.text import format_number, visible
from .markdown import code

__all__ = ["cures_page"]


def cures_page(records: Sequence[CheckRecord]) -> str:
    """Return a page that lists, for each failed check, its likely cause and the changes that bring it inside its bounds.

    Args:
        records: Checks with cures.

    Returns:
        Markdown; an empty text without records.
    """
    return "\n".join([HEAD, *(line for record in records for line in _lines(record))]) + "\n" if records else ""


HEAD = """# Suggestions of pytest-trainability

Each change was tried on copies of the model, on the seeds of the failed check. No source file was changed."""


def _lines(record: CheckRecord) -> Iterator[str]:
    yield f"\n## {code(record.test)}\n"
    yield f"Model {code(record.model)}, {visible(record.steps)}, measured in {record.mode} mode.\n"
    yield from (f"- likely cause: {_escaped(line)}" for line in record.cause)
    for cure in record.cures:
        yield f"\n{code(cure.text)}\n"
        yield f"{cure.measure}: {format_number(cure.before)} → {format_number(cure.after)}"


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in r"\`*_[]<>#|" else c for c in visible(text))
