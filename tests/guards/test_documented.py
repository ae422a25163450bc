"""Each measure has a page that says what it is, when it misleads, what it costs and where it comes from."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_trainability.measures import FAMILIES, MEASURES

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "measures"
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


def test_what_follows_from_the_declarations_is_up_to_date() -> None:
    """The typed attributes, the index of pages and the table of costs: ``make generated`` writes them."""
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_a_stale_file_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = load_generate()
    stale = tmp_path / "attributes.py"
    stale.write_text(generate.attributes().replace("log_gain: Estimate", "log_gain: Profile"))
    monkeypatch.setattr(generate, "ATTRIBUTES", stale)
    monkeypatch.setattr(generate, "ROOT", tmp_path.parent)
    monkeypatch.setattr(generate, "INDEX", tmp_path / "index.md")
    (tmp_path / "index.md").write_text(generate.index())
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1


def load_generate() -> Any:
    """Return ``docs/generate.py``, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_measure_has_a_docstring(name: str) -> None:
    measure = MEASURES[name]
    assert measure.read.__module__.split(".")[2] in FAMILIES
    assert measure.read.__doc__ and "Returns:" in measure.read.__doc__
