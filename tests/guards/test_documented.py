"""Every measure has a page and a docstring with all required parts, and generated files are up to date.

Extension points are documented with public names only.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts import script

import pytest_trainability
from pytest_trainability import measures
from pytest_trainability.measures import FAMILIES, MEASURES, Measure

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "measures"
PARTS = ("misleads", "**Cost.**", "**Source.**")
PUBLIC = {"pytest_trainability": pytest_trainability, "pytest_trainability.measures": measures}
"""The modules from which plugins import."""


def page_problems(name: str, page: str | None) -> list[str]:
    """Return the parts that a measure's page lacks; None stands for a missing page."""
    if page is None:
        return [f"docs/measures/{name}.md is missing"]
    title, _, rest = page.partition("\n\n")
    found = [] if re.fullmatch(rf"# `{name}` \(.+\)", title) else [f"a title such as '# `{name}` (unit, shape)'"]
    if not re.match(r"\*.+\?\*\n", rest):
        found.append("a question in italics: *How large is …?*")
    return found + [part for part in PARTS if part not in page]


def docstring_problems(measure: Measure) -> list[str]:
    """Return the parts that a measure's docstring lacks."""
    text = measure.read.__doc__ or ""
    found = [] if text.startswith("Return ") else ["a first sentence that begins with 'Return'"]
    found += [part for part in ("Returns:",) if f"    {part}\n" not in text]
    return found


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_measure_has_a_page(name: str) -> None:
    path = PAGES / f"{name}.md"
    assert page_problems(name, path.read_text(encoding="utf-8") if path.is_file() else None) == []


def test_an_incomplete_page_is_caught() -> None:
    title, question = "a title such as '# `x` (unit, shape)'", "a question in italics: *How large is …?*"
    assert page_problems("x", None) == ["docs/measures/x.md is missing"]
    assert page_problems("x", "# `x`\n\nA number.") == [title, question, *PARTS]
    complete = (
        "# `x` (nats)\n\n*How large is x?*\n\n**When it misleads.** Never.\n\n**Cost.** None.\n\n**Source.** None.\n"
    )
    assert page_problems("x", complete) == []
    for part in PARTS:
        assert page_problems("x", complete.replace(part, "")) == [part]
    assert page_problems("y", complete) == ["a title such as '# `y` (unit, shape)'"]
    assert page_problems("x", complete.replace("?", "")) == [question]


def test_every_page_belongs_to_a_measure() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} - {"index"} == set(MEASURES)


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_measure_has_a_docstring(name: str) -> None:
    measure = MEASURES[name]
    assert measure.read.__module__.split(".")[2] in FAMILIES
    assert docstring_problems(measure) == []


def test_an_incomplete_docstring_is_caught() -> None:
    def complete(run: Any) -> float:
        """Return a number.

        Returns:
            Nats.
        """
        return 0.0

    def without_returns(run: Any) -> float:
        """Return a number. Returns: nats."""
        return 0.0

    def without_docstring(run: Any) -> float:
        return 0.0

    def problems(read: Any) -> list[str]:
        return docstring_problems(Measure("x", "scalar", "", "linear", frozenset(), read))

    assert problems(complete) == []
    assert problems(without_returns) == ["Returns:"]
    assert problems(without_docstring) == ["a first sentence that begins with 'Return'", "Returns:"]


# Generated files -------------------------------------------------------------------------------------------------


def test_generated_files_are_up_to_date() -> None:
    """The typed attributes, the index of pages and the table of costs: ``make generated`` writes them."""
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.fixture
def generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``docs/generate.py`` as a module that writes into a temporary directory, where both files are up to date."""
    module = script("docs/generate.py")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "ATTRIBUTES", tmp_path / "attributes.py")
    monkeypatch.setattr(module, "INDEX", tmp_path / "index.md")
    module.ATTRIBUTES.write_text(module.attributes(), encoding="utf-8")
    module.INDEX.write_text(module.index(), encoding="utf-8")
    return module


def run(generate: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
    code: int = generate.main()
    return code


def test_an_outdated_file_is_caught_and_written(
    generate: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(generate, monkeypatch, "--check") == 0
    text = generate.attributes()
    generate.ATTRIBUTES.write_text(text.replace("log_gain: Estimate", "log_gain: Profile"), encoding="utf-8")
    assert run(generate, monkeypatch, "--check") == 1
    assert capsys.readouterr().out == "attributes.py is outdated: run make generated\n"
    assert run(generate, monkeypatch) == 0
    assert generate.ATTRIBUTES.read_text(encoding="utf-8") == text
    assert run(generate, monkeypatch, "--check") == 0


def test_every_measure_has_an_attribute_and_two_rows(generate: Any) -> None:
    attributes, index = generate.attributes(), generate.index()
    for name, measure in MEASURES.items():
        assert f"        {name}: {generate.TYPES[measure.kind]}\n" in attributes
        assert f"| [`{name}`]({name}.md) | " in index
        assert f"| `{name}` | " in index


def test_a_page_without_a_question_stops_the_generator(
    generate: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(generate, "PAGES", tmp_path)
    (tmp_path / "log_gain.md").write_text("# `log_gain` (nats)\n\nA number.\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"log_gain\.md must begin with a title and a question"):
        generate.question_of("log_gain")


# Public names for plugins -----------------------------------------------------------------------------------------


def private_imports(source: str) -> list[str]:
    """Return the imports of the package that are not public names of :data:`PUBLIC`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith("pytest_trainability") and a.name not in PUBLIC]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pytest_trainability"):
            module = PUBLIC.get(node.module or "")
            public = getattr(module, "__all__", ())
            found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in public]
    return found


def python_blocks(page: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))


@pytest.mark.parametrize("path", ["docs/extending.md", "examples/plugin/pytest_trainability_kurtosis.py"])
def test_extensions_use_public_names_only(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    source = python_blocks(text) if path.endswith(".md") else text
    assert "from pytest_trainability.measures import" in source, "the imports were not found"
    assert private_imports(source) == []
    assert re.findall(r"pytest_trainability\.(?:engine|records|checks|measurement|plugin)\b", text) == []


def test_a_private_import_is_caught() -> None:
    planted = {
        "from pytest_trainability.engine.runs.run import Need": ["pytest_trainability.engine.runs.run.Need"],
        "def f():\n    from pytest_trainability.measures import SWEEP, difflib": [
            "pytest_trainability.measures.difflib"
        ],
        "import pytest_trainability.engine": ["pytest_trainability.engine"],
        "from pytest_trainability.measures import Objective, declare": [],
    }
    for source, expected in planted.items():
        assert private_imports(source) == expected
