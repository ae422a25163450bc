"""Results in a page of the documentation, between two comments."""

from __future__ import annotations

from pathlib import Path


def write_between(page: Path, mark: str, text: str) -> None:
    """Replace what is between ``<!-- mark -->`` and ``<!-- end of mark -->``."""
    first, last = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
    head, found, rest = page.read_text(encoding="utf-8").partition(first)
    _, ended, tail = rest.partition(last)
    assert found and ended, f"{page} must have the comments {first.strip()} and {last}"
    page.write_text(f"{head}{first}\n{text}\n\n{last}{tail}", encoding="utf-8")
