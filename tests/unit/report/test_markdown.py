"""Markdown of a session: nothing foreign outside of code, and a limited size."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from reported import HOSTILE, broken, check, session, verdict, whole

from pytest_trainability.records.reports import BaselineSummary
from pytest_trainability.report.markdown import block, cell, code, folded, markdown_page, verdict_line


def prose(page: str) -> str:
    """Return a page without its code, as GitHub finds it: fenced blocks, inline code, and code in HTML."""
    page = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", page)
    page = re.sub(r"<summary><code>[^<>]*</code></summary>", "", page)
    return re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", page)


@pytest.mark.parametrize("text", ["a", "`", "``", "a`b", "a|b", "", " ", HOSTILE, "x" * 1000, "```\n# head"])
def test_code_is_one_piece_whatever_it_contains(text: str) -> None:
    assert prose(code(text)) == ""
    assert "\n" not in code(text)
    assert prose(f"{block([text, 'b'])}\n").strip() == ""


def test_a_bar_does_not_end_a_cell() -> None:
    assert re.findall(r"(?<!\\)\|", f"| {cell(HOSTILE)} |") == ["|", "|"]


def test_a_title_is_escaped() -> None:
    assert "<img" not in folded(HOSTILE, "body")
    assert folded("a", "b") == "<details><summary><code>a</code></summary>\n\nb\n\n</details>"


def test_a_hostile_session_has_no_markup_of_its_own() -> None:
    found = markdown_page(whole())
    rest = prose(found)
    for piece in ("@", "img", "alert", "::error", "##[", "#1", "[l]", "\x1b", "\r"):
        assert piece not in rest, piece
    rows = [line for line in found.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(whole().checks) + len(whole().errors)
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows)


def test_the_verdict_comes_first_and_what_has_failed_before_the_rest() -> None:
    page = markdown_page(whole())
    assert page.startswith("## ✘ trainability: 3 failed, 1 could not be measured, 1 marginal, 1 without an assertion, ")
    marks = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert marks[:4] == ["✘ failed"] * 3 + ["! not measured"]
    assert marks[-1] == "✔"


def test_a_green_session_says_so() -> None:
    page = markdown_page(session(check("passed", verdict())))
    assert page.startswith("## ✔ trainability: 1 held\n")
    assert "<details>" not in page
    assert verdict_line(session()) == "nothing was measured"


@pytest.mark.parametrize("largest", [10_000, 100_000])
def test_a_page_keeps_to_its_size_and_counts_what_is_left_out(largest: int) -> None:
    many = session(*(broken(f"tests/test_a.py::test_{number}[é{'x' * 80}]") for number in range(1000)))
    page = markdown_page(many, largest=largest)
    assert largest / 2 < len(page.encode("utf-8")) <= largest
    assert re.search(r"^and \d+ more rows that do not fit here$", page, re.MULTILINE)
    assert page.count("<details>") == page.count("</details>") > 0
    shown = len(re.findall(r"^\| ✘", page, re.MULTILINE))
    assert f"and {1000 - shown} more rows" in page


def test_changes_of_baselines_are_listed() -> None:
    summary = BaselineSummary(written=(("a|b.json", 2, 1),), unused=(("a.json", "test_b", ""),), errors=("no",))
    page = markdown_page(replace(session(check()), baselines=summary))
    assert "- 3 entries written to `a|b.json`" in page
    assert "- no test uses `test_b` in `a.json`" in page
