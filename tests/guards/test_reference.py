"""The reference documents every public name, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest_trainability

REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"


def documented(page: str) -> set[str]:
    """Return the names of the package for which a page has an autodoc directive."""
    return set(re.findall(r"^\.\. auto\w+:: pytest_trainability\.(\w+)$", page, re.MULTILINE))


def test_reference_documents_every_public_name_and_no_other() -> None:
    assert sorted(documented(REFERENCE.read_text(encoding="utf-8"))) == sorted(pytest_trainability.__all__)


def test_missing_name_is_detected() -> None:
    page = REFERENCE.read_text(encoding="utf-8")
    for name in pytest_trainability.__all__:
        without = re.sub(rf"^\.\. auto\w+:: pytest_trainability\.{name}$", f"`{name}`", page, flags=re.MULTILINE)
        assert documented(without) == {*pytest_trainability.__all__} - {name}
