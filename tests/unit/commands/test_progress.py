"""The line that says what a slow command does, on a terminal and in a file."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from pytest_trainability.commands import main
from pytest_trainability.commands.progress import StatusLine, status_line

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the line is for POSIX terminals")
ERASE = "\r\x1b[K"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal. A real one would have to be read while it is written."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make the stream of errors a terminal of 40 columns. No fixture can: pytest replaces the stream after the setup."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_each_text_replaces_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    with status_line("building nets:a") as line:
        line.watch("a", "seed", "1 of 4")
        line.watch("a", "now", "log gain")
        line.watch("a", "end", "")
        line.watch("a", "seed", "2 of 4")
    shown = ["", "building nets:a", "a: seed 1 of 4, ", "a: seed 1 of 4, log gain", "", "a: seed 2 of 4, ", ""]
    assert stream.getvalue().split(ERASE) == shown


def test_the_line_is_shorter_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    StatusLine(sys.stderr).show("x" * 50)
    assert len(stream.getvalue().removeprefix(ERASE)) == 39


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_elsewhere_nothing_is_written(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    monkeypatch.setenv("TERM", "dumb" if stream.isatty() else "xterm")
    line = StatusLine(stream)
    line.show("text")
    line.watch("a", "now", "text")
    line.watch("a", "end", "")
    line.clear()
    assert stream.getvalue() == ""


def test_look_says_what_it_does_and_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    (tmp_path / "shown_nets.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(4, 4)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    main(["look", "shown_nets:build", "--input", "2x4", "--seeds", "2"])
    shown = stream.getvalue().split(ERASE)
    assert shown[:2] == ["", "building shown_nets:build"] and shown[-1] == ""
    assert any(text.startswith("build: seed 2 of 2, ") for text in shown)
