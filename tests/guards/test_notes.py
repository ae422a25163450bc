"""Named notes: each is written once, each reference has a note, and ``docs/engine.md`` lists them all."""

from __future__ import annotations

import doctest
import re
from collections import Counter
from pathlib import Path

import torch

import pytest_trainability

PACKAGE = Path(pytest_trainability.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "engine.md"

DEFINITION = re.compile(r"^# Note \[([^\]]+)\]\n# ~+$", re.MULTILINE)
REFERENCE = re.compile(r"Note\s+\[([^\]]+)\]")


def defined(texts: list[str]) -> Counter[str]:
    """Count how often each note is written."""
    return Counter(name for text in texts for name in DEFINITION.findall(text))


def referred(texts: list[str]) -> set[str]:
    """Return the names of all notes that are referred to."""
    return {" ".join(re.sub(r"\n\s*#?\s*", " ", name).split()) for text in texts for name in REFERENCE.findall(text)}


TEXTS = [path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))]


def test_every_note_is_written_once() -> None:
    assert {name: count for name, count in defined(TEXTS).items() if count > 1} == {}


def test_every_reference_has_a_note() -> None:
    assert referred(TEXTS) - set(defined(TEXTS)) == set()


def test_the_page_lists_all_notes() -> None:
    listed = set(re.findall(r"^\| Note \[([^\]]+)\] \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == set(defined(TEXTS))


def test_a_dangling_reference_is_caught() -> None:
    texts = ["# Note [A]\n# ~~~~~~~~\n# Text.\n", "# See Note [B] in graph.py.\n", "# See Note\n# [A].\n"]
    assert set(defined(texts)) == {"A"}
    assert referred(texts) == {"A", "B"}


def test_the_worked_example_of_the_page_runs() -> None:
    # Autograd counts on from whatever this process has computed before.
    torch.ones(1, requires_grad=True).exp()
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, verbose=False)
    assert tried > 10
    assert failed == 0
