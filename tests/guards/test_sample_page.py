"""The sample page of the documentation is what the package writes: same style and script, same parts, same examples."""

from __future__ import annotations

import ast
import base64
import gzip
import re
from html.parser import HTMLParser
from pathlib import Path

from documents import check, document, error

from pytest_trainability.report.html import page

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "docs" / "_static" / "demo.html"
LARGEST = 1_000_000
"""Number of characters that the repository has room for."""
REMEDY = "docs/_static/demo.html is outdated: run make sample"


class Parts(HTMLParser):
    """Collects elements with their classes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, str]] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add((tag, dict(attrs).get("class") or ""))


def unpacked(text: str) -> str:
    """Return a page with what it holds compressed."""
    return re.sub(
        r'<script type="text/plain">([^<]+)</script>',
        lambda found: gzip.decompress(base64.b64decode(found[1])).decode(),
        text,
    )


def parts(text: str) -> set[tuple[str, str]]:
    reader = Parts()
    reader.feed(unpacked(text))
    return reader.found


def assets(text: str) -> list[str]:
    """Return style and script of a page."""
    return re.findall(r"<style>.+?</style>|<script>.+?</script>", text, re.DOTALL)


def of_every_kind() -> str:
    """Return a page with checks of every kind."""
    checks = [
        check("a::held", layers=3, notes=["n"], lists=[["t", "n"]], explanation=["e"]),
        check("a::failed", rate=-2.0, layers=3),
        check("a::changed", rate=0.2, old_rate=0.0, layers=3),
        check("a::free", bounds=None, layers=3),
        check("a::nan", growth=["nan", 0.1, -0.1], layers=3, status="marginal"),
    ]
    return page(document(checks, [error("a::error", "message")]))


def examples() -> set[str]:
    """Return the tests of the examples."""
    return {
        node.name
        for path in (ROOT / "examples").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def shown(text: str) -> set[str]:
    """Return the tests of a page."""
    return {name.partition("[")[0] for name in re.findall(r'data-id="[^"]*::(\w+)', text)}


def test_the_sample_is_current() -> None:
    sample = SAMPLE.read_text(encoding="utf-8")
    assert assets(sample) == assets(of_every_kind()), REMEDY
    assert {
        part for part in parts(of_every_kind()) if part[0] in {"main", "figure", "table", "section", "details"}
    } <= (parts(sample) | {("details", "check unasserted"), ("details", "check marginal")}), REMEDY
    assert shown(sample) == examples(), REMEDY
    assert len(sample) < LARGEST


def test_an_outdated_sample_is_caught() -> None:
    sample = of_every_kind()
    assert len(assets(sample)) == 2 and len(parts(sample)) > 60
    assert assets(sample.replace("--mono:", "--code:")) != assets(sample)
    assert parts(sample.replace('class="chart"', 'class="graph"')) != parts(sample)
    assert shown(sample) == {"held", "failed", "changed", "free", "nan", "error"}
    assert "test_gpt2_is_as_recorded" in examples()
