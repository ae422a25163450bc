"""Each measure has a page that says what it is, when it misleads, what it costs and where it comes from."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from pytest_trainability import measurement
from pytest_trainability.measures import MEASURES

PAGES = Path(__file__).parents[2] / "docs" / "measures"
TYPES = {"scalar": "Estimate", "spectrum": "Spectrum", "profile": "Profile", "names": "Names"}
WANTED = ("misleads", "**Cost.**", "**Source.**")


def missing(name: str, page: str) -> list[str]:
    """Return what a page lacks."""
    title = page.partition("\n")[0]
    found = [] if re.fullmatch(rf"# `{name}` \(.+\)", title) else [f"a title such as '# `{name}` (unit, shape)'"]
    return found + [part for part in WANTED if part not in page]


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_measure_has_a_page(name: str) -> None:
    path = PAGES / f"{name}.md"
    assert path.is_file(), f"docs/measures/{name}.md must describe it"
    assert missing(name, path.read_text()) == []


def test_a_page_that_says_too_little_is_caught() -> None:
    assert missing("x", "# `x`\n\nA number.") == ["a title such as '# `x` (unit, shape)'", *WANTED]


def test_no_page_is_left_over() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} - {"index"} == set(MEASURES)


def test_the_index_lists_all() -> None:
    listed = re.findall(r"^\| \[`(\w+)`\]", (PAGES / "index.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(MEASURES)


def test_measurement_is_annotated_with_all() -> None:
    tree = ast.parse(inspect.getsource(measurement.Measurement))
    found = {
        node.target.id: node.annotation.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.annotation, ast.Name)
    }
    assert found == {name: TYPES[measure.kind] for name, measure in MEASURES.items()}


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_measure_has_a_file_and_a_docstring_of_its_own(name: str) -> None:
    read = MEASURES[name].read
    assert read.__module__ == f"pytest_trainability.measures.{name}"
    assert read.__doc__ and "Returns:" in read.__doc__
