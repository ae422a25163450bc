"""The definition of a measure, and the table of all, on the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_trainability.commands import CANNOT, main
from pytest_trainability.commands.measures import PAGES, page_of
from pytest_trainability.measures import MEASURES

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs" / "measures"


@pytest.mark.parametrize("name", ["log_gain", "gradient_norm", "nonfinite", "lyapunov_spectrum"])
def test_explain_prints_definition_and_bound(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["explain", name]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{name} ({MEASURES[name].kind}")
    assert "Returns:" in text
    assert f"@pytest.mark.trainability({name}=" in text


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_explain_prints_the_page_of_the_documentation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["explain", name]) == 0
    text = capsys.readouterr().out
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    question = re.search(r"(?m)^\*(.+)\*$", page)
    assert question is not None and question[1] in " ".join(text.split())
    assert "Cost. " in text and "Source. " in text
    assert not re.search(r"\]\(\w+\.md\)|\*\*[A-Z]", text), "links and emphasis are gone"
    # Nothing of the page is lost but its marks.
    words = re.findall(r"[A-Za-zλ]{4,}", re.sub(r"\]\([^)\s]*\)", "]", page.partition("\n")[2]))
    shown = re.findall(r"[A-Za-zλ]{4,}", text)
    assert not set(words) - set(shown)


def test_prose_is_wrapped_and_lists_are_indented(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["explain", "gradient_noise_scale"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("When it misleads.")
    assert lines[start + 2].startswith("- The measured batch must not be")
    assert lines[start + 3].startswith("  ")
    assert all(len(line) <= 60 for line in lines[start : start + 8])


def test_the_wheel_holds_the_pages_where_they_are_looked_for() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"docs/measures": f"pytest_trainability/measures/{PAGES}"}


def test_a_measure_of_another_package_has_no_page() -> None:
    assert page_of("of_another_package") == ""


def test_a_misspelt_measure_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "log_gian"]) == CANNOT
    assert "Did you mean 'log_gain'?" in capsys.readouterr().err


def test_the_table_has_a_line_for_each_measure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["measures"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(MEASURES)
    assert all(len(line) <= 120 for line in lines)
