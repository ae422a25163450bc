"""What commands share: output that any terminal can print, and files that are written as a whole."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import pytest

from pytest_trainability import ReportError
from pytest_trainability.commands.arguments import declared, emit, say, write
from pytest_trainability.commands.tolerances import add_tolerances


def test_help_ends_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    command = declared(parser.add_subparsers(), "show", "Show it.", "show report.json", lambda options: 0)
    add_tolerances(command)
    with pytest.raises(SystemExit):
        parser.parse_args(["show", "--help"])
    assert capsys.readouterr().out.endswith("example:\n  python -m pytest_trainability show report.json\n")
    assert parser.parse_args(["show"]).run(None) == 0


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "a → b\n"), ("ascii", "a -> b\n")])
def test_a_terminal_without_unicode_gets_ascii(monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str) -> None:
    for printed in (lambda: say("a → b"), lambda: emit("a → b\n")):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        printed()
        sys.stdout.flush()
        assert raw.getvalue().decode(encoding) == shown


def test_lines_are_escaped_and_texts_for_programs_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    say("\x1b[31m ::error::no")
    emit("a\nb | `::`\n")
    assert capsys.readouterr().out == "\\x1b[31m \\x3a:error::no\na\nb | `::`\n"


def test_what_cannot_be_written_is_an_error_in_one_line(tmp_path: Path) -> None:
    write(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"
    for path, message in ((tmp_path, "not a regular file"), (tmp_path / "a" / "b", "could not be written")):
        with pytest.raises(ReportError, match=message) as caught:
            write(path, "text")
        assert "\n" not in str(caught.value)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    write(tmp_path / "link", "other")
    assert (tmp_path / "a").read_text() == "other"
    assert (tmp_path / "link").is_symlink()
