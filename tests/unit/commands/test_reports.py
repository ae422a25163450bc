"""Commands on reports: what they print and write, their exit statuses, and files that are no report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reported import broken, changed, check, session, verdict, whole

from pytest_trainability.commands import CANNOT, DIFFERS, main
from pytest_trainability.records.session import SessionRecord
from pytest_trainability.report.document import document, read_document, rendered

GREEN = session(check("passed", verdict()))
RED = session(broken("tests/test_a.py::test_tower"), created="2026-11-30T05:00:00+00:00")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for name, found in (("green.json", GREEN), ("red.json", RED), ("whole.json", whole())):
        Path(name).write_text(rendered(document(found)), encoding="utf-8")


def shown(capsys: pytest.CaptureFixture[str], status: int, *words: str) -> str:
    assert main(words) == status
    return capsys.readouterr().out


def test_show_prints_the_section_again(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, 0, "show", "green.json")
    assert "✔ test_tower  2 × Linear" in text
    assert "must lie in [-5, 5]" not in text
    assert "must lie in [-5, 5]" in shown(capsys, 0, "show", "green.json", "-v")
    text = shown(capsys, DIFFERS, "show", "red.json")
    assert "✘ test_tower" in text and "likely cause" in text
    assert "--trainability-seeds=0-3 --trainability-device=cpu" in text


def test_show_prints_every_kind_of_check_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, DIFFERS, "show", "whole.json", "-vv")
    assert "could not be measured" in text and "baselines" in text
    assert "\x1b" not in text


def test_show_of_several_reports_shows_them_merged(capsys: pytest.CaptureFixture[str]) -> None:
    assert "✘ test_tower" in shown(capsys, DIFFERS, "show", "green.json", "red.json")
    assert "✔" not in shown(capsys, DIFFERS, "show", "-q", "green.json", "red.json")


def test_an_empty_session_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.json").write_text(rendered(document(SessionRecord())), encoding="utf-8")
    assert shown(capsys, 0, "show", "empty.json") == "nothing was measured\n"


def test_merge_writes_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    shown(capsys, 0, "merge", "green.json", "red.json", "-o", "all.json")
    found = read_document(Path("all.json"))
    assert [c["status"] for c in found["checks"]] == ["failed"]
    assert len(found["shards"]) == 2


def test_compare_prints_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    assert "tests/test_a.py::test_tower: held → failed" in shown(capsys, DIFFERS, "compare", "green.json", "red.json")
    assert "Nothing has changed" in shown(capsys, 0, "compare", "red.json", "red.json")
    moved = json.loads(Path("green.json").read_text(encoding="utf-8"))
    moved["checks"][0]["values"][0]["elements"][0]["values"] = [3, 3, 3, 3]
    Path("moved.json").write_text(json.dumps(moved), encoding="utf-8")
    assert "-1 → +3 nats" in shown(capsys, DIFFERS, "compare", "green.json", "moved.json")
    assert "Nothing" in shown(capsys, 0, "compare", "green.json", "moved.json", "--tolerances=log_gain=9")


def test_comment_prints_or_writes_what_has_changed(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, 0, "comment", "green.json", "red.json")
    assert text.startswith("### ✘ trainability: 1 worse against the target branch")
    assert shown(capsys, 0, "comment", "red.json", "red.json") == ""
    shown(capsys, 0, "comment", "green.json", "red.json", "-o", "comment.md")
    assert Path("comment.md").read_text(encoding="utf-8") == text
    shown(capsys, 0, "comment", "red.json", "red.json", "-o", "comment.md")
    assert not Path("comment.md").exists(), "an earlier comment must not be posted again"


def test_comment_on_one_report_is_about_its_baselines(capsys: pytest.CaptureFixture[str]) -> None:
    Path("base.json").write_text(rendered(document(session(changed(), broken()))), encoding="utf-8")
    text = shown(capsys, 0, "comment", "base.json")
    assert "against the baselines" in text and "test_changed" in text and "test_broken" not in text


@pytest.mark.parametrize(
    "words",
    [
        ["show", "BAD"],
        ["show", "green.json", "BAD"],
        ["html", "BAD", "-o", "kept"],
        ["merge", "green.json", "BAD", "-o", "kept"],
        ["compare", "green.json", "BAD"],
        ["compare", "BAD", "green.json"],
        ["comment", "green.json", "BAD", "-o", "kept"],
        ["comment", "BAD", "-o", "kept"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("kind", ["no report", "newer", "cut short", "missing", "wrong type"])
def test_what_is_no_report_is_refused_in_one_line_and_nothing_is_overwritten(
    capsys: pytest.CaptureFixture[str], words: list[str], kind: str
) -> None:
    found: dict[str, Any] = json.loads(Path("green.json").read_text(encoding="utf-8"))
    texts = {
        "no report": "{}",
        "newer": json.dumps({**found, "version": 2}),
        "cut short": json.dumps(found)[:-9],
        "wrong type": json.dumps({**found, "checks": 3}),
    }
    if kind in texts:
        Path("BAD").write_text(texts[kind], encoding="utf-8")
    Path("kept").write_text("kept", encoding="utf-8")
    assert main(words) == CANNOT
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pytest_trainability: BAD cannot be used as a report: ")
    assert err.count("\n") == 1
    assert Path("kept").read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize("words", [["show", "odd.json"], ["comment", "green.json", "odd.json"]], ids=" ".join)
def test_values_that_contradict_each_other_are_an_error_and_no_traceback(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    found = json.loads(Path("red.json").read_text(encoding="utf-8"))
    found["checks"][0]["verdicts"][0] |= {"marginal": True, "seeds_needed": "nan"}
    Path("odd.json").write_text(json.dumps(found), encoding="utf-8")
    assert main(words) == CANNOT
    assert "its values contradict each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["html", "green.json", "-o", "./green.json"], "-o must name another file than the reports"),
        (["merge", "green.json", "red.json", "-o", "red.json"], "-o must name another file than the reports"),
        (["comment", "green.json", "red.json", "-o", "green.json"], "-o must name another file than the reports"),
        (["merge", "green.json", "-o", "."], "not a regular file"),
        (["compare", "green.json"], "must be followed by a second report"),
        (["comment", "green.json", "green.json", "red.json"], "must get one report or two. Got 3"),
    ],
    ids=" ".join,
)
def test_arguments_that_cannot_be_meant_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    assert main(words) == CANNOT
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before
