"""Progress of long measurements: a line on a terminal, lines in CI, nothing in a pipe; and what Ctrl-C leaves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.pytester import Pytester

pty = pytest.importorskip("pty", reason="terminals of Unix")

SLOW = """
import os, signal, time
from small_nets import images, net

def slow():
    time.sleep(0.3)
    return net()

def test_slow(trainability):
    print("a line of the test")
    trainability(slow, images, seeds=3).check(log_gain=(-99, 99))
"""
AT_ONCE = """
from pytest_trainability.plugin import progress
progress.AFTER, progress.TICK, progress.EVERY_LINE_IN_CI = 0.0, 0.02, 0.3
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]


def on_terminal(project: Pytester, *arguments: str) -> str:
    """Run pytest on a terminal, and return what it writes."""
    project.makeconftest(AT_ONCE)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        command(*arguments), stdin=theirs, stdout=theirs, stderr=theirs, cwd=project.path, env=environment
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    process.wait()
    return written.decode()


def screen(written: str) -> list[str]:
    """Return the lines that a terminal shows in the end."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[\d;]*[A-Za-z]|\r|\n|\x08|[^\x1b\r\n\x08]+", written):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\x1b[K":
            lines[row] = lines[row][:column]
        elif token.endswith("A") and token.startswith("\x1b"):
            row -= int(token[2:-1] or 1)
        elif token.endswith("G") and token.startswith("\x1b"):
            column = int(token[2:-1]) - 1
        elif not token.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            column += len(token)
    return lines


@pytest.mark.parametrize("arguments", [(), ("-v",), ("-n1",)], ids=["captured", "verbose", "xdist"])
def test_a_terminal_shows_the_seed_and_is_left_clean(project: Pytester, arguments: tuple[str, ...]) -> None:
    project.makepyfile(test_slow=SLOW)
    written = on_terminal(project, *arguments)
    assert re.search(r"slow: seed 2 of 3, building and running the model \(\d+ s\)", written)
    shown = "\n".join(screen(written))
    assert "1 passed" in shown
    assert "seed 2 of 3" not in shown
    assert "a line of the test" not in shown
    assert re.search(r"^test_slow.py(::test_slow)? .*\[100%\]|^\[gw0\].*PASSED|^\. +\[100%\]", shown, re.MULTILINE)


def test_uncaptured_output_is_not_overwritten(project: Pytester) -> None:
    project.makepyfile(test_slow=SLOW)
    written = on_terminal(project, "-s")
    assert "\ntrainability: slow: seed 1 of 3" in written.replace("\r", "")
    shown = screen(written)
    assert any(line.endswith("a line of the test") for line in shown)


@pytest.mark.parametrize("arguments", [(), ("-n1",)], ids=["alone", "xdist"])
@pytest.mark.parametrize("ci", [True, False])
def test_a_pipe_shows_nothing_and_ci_whole_lines(
    project: Pytester, monkeypatch: pytest.MonkeyPatch, ci: bool, arguments: tuple[str, ...]
) -> None:
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    if ci:
        monkeypatch.setenv("CI", "true")
    project.makepyfile(test_slow=SLOW)
    project.makeconftest(AT_ONCE)
    result = project.runpytest_subprocess(*arguments)
    result.assert_outcomes(passed=1)
    lines = [line for line in result.outlines if "seed" in line and " of 3" in line]
    assert bool(lines) == ci
    assert all(re.match(r"trainability: (\[gw0\] )?slow: seed \d of 3, .* s\)$", line) for line in lines)
    assert "\x1b" not in result.stdout.str()


def test_ctrl_c_keeps_the_seeds_that_were_drawn(project: Pytester) -> None:
    project.makepyfile(
        test_it="""
import os, signal
from small_nets import images, net

count = 0

def interrupted():
    global count
    count += 1
    if count == 3:
        # A job in the background ignores the signal.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)
    return net()

def test_first(trainability):
    trainability(net, images, seeds=2).check(log_gain=(-99, 99))

def test_interrupted(trainability):
    trainability(interrupted, images, seeds=4).check(log_gain=(-1, 1))
"""
    )
    result = project.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.re_match_lines(
        [
            r"  ✔ test_first +6 × Linear +log gain .*",
            r"  ○ test_interrupted +6 × Linear +log gain -\S+ ± \S+ nats",
            r" +note +interrupted after 2 of 4 seeds: no bound was judged",
            r"1 of 2 hold, 1 asserts nothing, .*",
        ]
    )
