"""The page as text: complete, escaped, small enough, and without a way out of it."""

from __future__ import annotations

import base64
import gzip
import re
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
from documents import baseline, change, check, document, error, verdict

from pytest_trainability.report.html import page, panel
from pytest_trainability.report.html.content import STATUSES

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror=hacked()>'\"`{{ 7*7 }} "
    "javascript:alert(1) \ud800 \u202e \x00 &lt;"
)


class Reader(HTMLParser):
    """Collects elements and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


def with_text(value: Any, text: str) -> Any:
    """Replace every text of a document, and every key that is a name, but for words that have a meaning."""
    words = {*STATUSES, "depth", "time", "linear", "log", "estimate", "profile", "spectrum", "names", "step", "parameter",
             "exponent", "changed", "moved", "vanished", "new", "nan", "inf", "-inf", ""}  # fmt: skip
    if isinstance(value, dict):
        return {key: with_text(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [with_text(item, text) for item in value]
    return text + value if isinstance(value, str) and value not in words else value


def hostile() -> dict[str, Any]:
    bad = check(
        "test_a.py::test_a", rate=-2.0, layers=3, notes=["a note"], cautions=["a caution"], lists=[["title", "name"]]
    )
    bad["verdicts"][0].update(
        worst=[["h.0", 1.0], ["h.1", 2.0]], where="h.0", names=["x"], remark="r", violations=2, elements=3
    )
    changed = check("test_a.py::test_b", rate=0.1, old_rate=0.0, layers=3, explanation=["a line"])
    changed["baseline"] = baseline("changed", [change("m", 1.0, 2.0, 0.1, kind="new", elements=["e"], element="e")], [])
    summary = {"written": [["f", 1, 1]], "withheld": ["t"], "unused": [["f", "e", "r"]], "forgotten": ["f"], "stale": ["v"],
               "pruned": False, "partial": ["p"], "errors": ["e"]}  # fmt: skip
    shard = {
        "created": "c",
        "tool": "t",
        "environment": {"python": "p", "torch": "t", "platform": "l", "devices": ["d"]},
    }
    found = document([bad, changed], [error("test_a.py::test_c", "message")], baselines=summary, shards=[shard])
    return with_text(found, HOSTILE)


def test_hostile_texts_are_texts():
    reader = read(page(hostile()))
    assert reader.tags.count("script") == 1
    assert {"img", "iframe", "object", "embed", "base", "link"}.isdisjoint(reader.tags)
    assert [name for name, _ in reader.attributes if name.startswith("on")] == []
    links = [value for name, value in reader.attributes if name in {"href", "src", "action", "xlink:href"}]
    assert links and all(value is not None and value.startswith("#q=is:") for value in links)
    assert sum("<script>window.hacked=1</script>" in text for text in reader.texts) > 40, "shown as text"
    assert "49" not in "".join(text for text in reader.texts if "hacked" in text).replace("7*7", "")


def test_a_hostile_page_can_be_written_as_a_file():
    text = page(hostile())
    assert text.encode("utf-8").decode("utf-8") == text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\ud800-\udfff]", text)
    assert "\\u202e" in text and "\\ud800" in text


def test_a_hostile_panel_is_a_fragment_without_a_script():
    reader = read(panel(hostile()["checks"][0]))
    assert reader.tags[:2] == ["div", "style"]
    assert {"script", "img", "html", "body"}.isdisjoint(reader.tags)
    assert [name for name, _ in reader.attributes if name.startswith("on")] == []


def test_the_page_loads_nothing_and_says_so():
    text = page(document([check("a::b")]))
    assert re.findall(r"(?:https?:)?//[\w.]+|@import|url\(", text) == []
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None and "default-src 'none'" in policy[1] and "script-src 'sha256-" in policy[1]


@pytest.mark.parametrize(
    ("counts", "verdict_text"),
    [
        ({"held": 8}, "All 8 checks hold"),
        ({"held": 1}, "The check holds"),
        ({"failed": 1}, "1 of 1 check failed"),
        ({"failed": 2, "held": 3, "nothing asserted": 1}, "2 of 6 checks failed"),
        ({"marginal": 1, "held": 1, "nothing asserted": 2}, "2 of 4 checks hold, 2 assert nothing"),
        ({"nothing asserted": 1}, "0 of 1 check holds, 1 asserts nothing"),
        ({"held": 1, "expected failure": 1}, "1 of 2 checks hold, 1 fails as expected"),
    ],
)
def test_the_verdict_is_a_true_sentence(counts, verdict_text):
    checks = [check(f"a::{key}{k}", status=key, layers=2) for key, count in counts.items() for k in range(count)]
    text = page(document(checks))
    assert f"<h1>{verdict_text}</h1>" in text
    for key, count in counts.items():
        assert f"{count} {key}</a>" in text


def test_an_expected_error_is_an_expected_failure():
    expected = error("a::b", "no loss", expected=True)
    text = page(document([check("a::c", layers=2)], [expected]))
    assert "<h1>The check holds, 1 fails as expected</h1>" in text
    assert 'data-is="expected"' in text
    assert "<h1>1 fails as expected</h1>" in page(document([], [expected]))


def test_errors_alone():
    text = page(document([], [error("test_a.py::test_a", "The model has no loss.\nPass one.")]))
    assert "<h1>1 could not be measured</h1>" in text
    assert "InapplicableError: The model has no loss.</span>" in text
    assert "Nothing was measured" in page(document([]))


def test_too_few_measured_models_are_named():
    found = document([check("a::b", layers=2)])
    found["summary"]["required"] = 3
    assert "1 measured, 3 required: too few" in page(found)


def order(text: str) -> list[str]:
    return re.findall(r'data-id="([^"]+)"', text)


def test_failed_checks_come_first():
    checks = [check(f"a::{key}", status=key, layers=2) for key in reversed(STATUSES) if key != "not measured"]
    text = page(document(checks, [error("a::not measured", "no")]))
    assert order(text) == [f"a::{key}" for key in STATUSES]


def test_failed_checks_are_open_if_they_are_few():
    def opened(count: int, rate: float = -3.0) -> int:
        return page(document([check(f"a::{k}", rate=rate, layers=4) for k in range(count)])).count('" open>\n<summary>')

    assert (opened(1), opened(3), opened(4)) == (1, 3, 0)
    assert (opened(1, rate=0.0), opened(2, rate=0.0)) == (1, 0)


def packed(text: str) -> list[str]:
    return [
        gzip.decompress(base64.b64decode(found)).decode()
        for found in re.findall(r'<script type="text/plain">([^<]+)<', text)
    ]


def test_what_does_not_fit_is_packed_and_then_shortened(monkeypatch):
    module = sys.modules[page.__module__]
    found = document([check(f"a::{k}", layers=3, rate=-9.0 if k == 2 else 0.0) for k in range(4)])
    whole = page(found)
    assert packed(whole) == []
    monkeypatch.setattr(module, "PLAIN_SIZE", 0)
    bodies = packed(page(found))
    assert len(bodies) == 4 and all("<figure" in body and "More profiles" in body for body in bodies)
    monkeypatch.setattr(module, "LARGEST_SIZE", 50_000)
    short = page(found)
    left_out = ["The JSON report has all numbers" in body for body in packed(short)]
    assert left_out[0] is False and left_out[-1] is True and left_out == sorted(left_out)
    assert ["More profiles" not in body for body in packed(short)] == left_out
    assert order(short)[0] == "a::2", "what fails is kept whole"
    assert page(found) == short, "the same every time"


def test_everything_a_check_knows_is_on_the_page():
    one = check(
        "test_a.py::test_a[x]", rate=-2.0, notes=["a note"], cautions=["a caution"], lists=[["title", "one", "two"]]
    )
    one["verdicts"].append(
        verdict("gradient_norm", [1e-9], 1e-6, None, scale="log", where="h.0.mlp.weight", violations=3, elements=25)
    )
    text = page(document([one]))
    for part in (
        "a note",
        "a caution",
        "title (2)",
        "3 of 25 outside, worst h.0.mlp.weight",
        one["reproduce"],
        *one["cause"],
    ):
        assert part in "".join(read(text).texts)
    assert "nn.init.normal_(c_attn.weight, std=0.04)" in text


def test_pictures_have_a_title_and_charts_a_description():
    text = page(document([check("a::b", rate=-2.0)]))
    pictures = re.findall(r'<svg[^>]*role="img"[^>]*>(<title>[^<]+</title>)?(<desc>[^<]+</desc>)?', text)
    assert len(pictures) > 8 and all(title for title, _ in pictures)
    assert sum(bool(description) for _, description in pictures) == text.count("<figure")
    assert len(re.findall(r"<svg(?![^>]*(?:role=|aria-hidden))", text)) == 0


def test_the_panel_is_the_same_as_on_the_page():
    one = check("a::b", rate=-2.0)
    fragment = panel(one)
    body = re.search(r'<div class="body">(.+)</div></article></div>', fragment, re.DOTALL)
    assert body is not None and body[1].strip() in page(document([one]))
