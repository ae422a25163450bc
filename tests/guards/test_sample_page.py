"""The samples of the documentation are what the package writes: same style and script, same parts, same examples.

The HTML page, the text of the terminal and the picture of the README come from one run of the examples.
"""

from __future__ import annotations

import ast
import base64
import gzip
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
from documents import check, document, error
from scripts import script

from pytest_trainability.report.html import page

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "docs" / "_static" / "demo.html"
TEXT = ROOT / "docs" / "demo.md"
PICTURE = ROOT / "docs" / "_static" / "demo.png"
README = ROOT / "README.md"
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


# The text and the picture -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample() -> ModuleType:
    return script("docs/sample.py")


def blocks(path: Path, language: str) -> list[str]:
    """Return the blocks of a language in a page."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def results(text: str) -> list[str]:
    """Return the log gains of a text, as they are printed."""
    return re.findall(r"  log gain +(\S.*? nats)$", text, re.MULTILINE)


def explained(text: str) -> set[str]:
    """Return the tests that the text explains."""
    return {name.partition("[")[0] for name in re.findall(r"^\S+::(\w+)", text, re.MULTILINE)}


def agree(printed: str, value: float) -> bool:
    """Return whether a log gain is printed of this value."""
    number = printed.split()[0]
    return number == str(value) or abs(float(number) - value) < 10.0 ** -len(number.partition(".")[2])


def test_the_text_is_of_the_same_run() -> None:
    """Every printed log gain is in the page, every failed example is explained, and the last line counts them."""
    (text,) = blocks(TEXT, "text")
    gains = [float(gain) for gain in re.findall(r'data-gain="([^"]+)"', SAMPLE.read_text(encoding="utf-8"))]
    assert [gain for gain in results(text) if not any(agree(gain, known) for known in gains)] == [], "run make sample"
    assert len(results(text)) == len(re.findall(r"^  [✔✘○] ", text, re.MULTILINE)) > 30
    assert explained(text) == {
        f"test_{name}" for name in re.findall(r"broken_on_purpose.*?def test_(\w+)", all_examples(), re.DOTALL)
    }
    held = len(re.findall(r"^  ✔ ", text, re.MULTILINE))
    failed = len(results(text)) - held
    assert f"\n{held} of {len(results(text))} hold, {failed} failed, measured in " in text


def all_examples() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("test_*.py"))


def test_the_readme_begins_with_an_example_and_its_report() -> None:
    code, *_ = blocks(README, "python")
    report, *_ = blocks(README, "text")
    (printed,) = blocks(TEXT, "text")
    assert re.sub(r'    """.*?"""\n', "", all_examples(), flags=re.DOTALL).count(code) == 1
    assert len(code.splitlines()) == 3 and len(report.splitlines()) <= 12
    remaining = iter(printed.splitlines())
    missing = [line for line in report.splitlines() if line not in remaining]
    assert missing == [], "the README's lines must occur in docs/demo.md, in this order"


def test_the_picture_is_of_the_page(sample: ModuleType) -> None:
    png = PICTURE.read_bytes()
    digest = sample.digest(SAMPLE.read_text(encoding="utf-8"))
    assert png.startswith(b"\x89PNG") and len(png) < 300_000
    assert digest.encode() in png, "docs/_static/demo.png is outdated: run python docs/sample.py --picture"
    assert "](docs/_static/demo.png)" in README.read_text(encoding="utf-8")


def test_an_outdated_picture_and_text_are_caught(sample: ModuleType) -> None:
    text = SAMPLE.read_text(encoding="utf-8")
    assert sample.digest(text.replace(" nats must lie in [-1.5, 1.5]", " nats must lie in [-1, 1]")) != sample.digest(
        text
    )
    printed = (
        "a\n==== trainability ====\n  ✔ test_x  1 × Linear  log gain +1.0 nats\n1 of 1 hold, measured in 2.0 s\nrest\n"
    )
    assert sample.section(printed) == printed[2:-5]
    assert (
        sample.with_section("head\n```text\n=\nold\n```\ntail\n", printed)
        == f"head\n```text\n{printed[2:-5]}```\ntail\n"
    )
    assert results(printed) == ["+1.0 nats"]
    with pytest.raises(SystemExit, match="must have a block"):
        sample.with_section("```text\nother\n```\n", printed)


def test_a_comment_leaves_the_picture_readable(sample: ModuleType) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    with image.open(PICTURE) as picture:
        picture.load()
        assert picture.info["Comment"] == sample.digest(SAMPLE.read_text(encoding="utf-8"))
