"""Progress of long measurements: a line on a terminal, now and then a line in CI, and nothing in a pipe.

A measurement runs in one long call, while pytest captures the output. A thread therefore writes to a duplicate of the descriptor
of the terminal. Workers of xdist have no terminal. Each writes its line to a file, and the controller shows them all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import pytest

__all__ = ["PROGRESS", "Progress"]

AFTER = 2.0
"""Seconds after which a measurement is shown."""
TICK = 0.25
"""Seconds between two looks at what is going on."""
EVERY_LINE, EVERY_LINE_IN_CI = 10.0, 60.0
"""Seconds between two lines where the output of the tests is not captured, and in CI."""
_FOLDER = "trainability_progress"
_ERASE = "\r\x1b[K"


class Screen(Protocol):
    """A place that shows one line of progress."""

    def show(self, text: str, seconds: float) -> None:
        """Show a text, after some seconds of measurement."""

    def clear(self) -> None:
        """Leave no trace of the last text where something else will be written."""


class Progress:
    """Shows what is measured, in one process or in workers of xdist."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._lock = threading.RLock()
        self._screen: Screen | None = None
        self._text: dict[str, str] = {}
        """Parts of the line: model, seed and what is computed now; empty while nothing is measured."""
        self._began: float | None = None
        """When the first measurement of the present test began."""
        self._is_paused = False
        """Whether a debugger reads from the terminal."""
        self._stop: Callable[[], None] = lambda: None
        self._folder: Path | None = None
        """Folder for the lines of the workers, in their controller."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Find the place for the line, before output is captured."""
        self._screen = _screen(self._config)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Give a worker the folder for its line, and show the lines of all workers."""
        if self._screen is not None:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="trainability-"))
                self._began = time.monotonic()
                self._run(self._show_workers)
            node.workerinput[_FOLDER] = str(self._folder)

    def watch(self, model: str, part: str, text: str) -> None:
        """Note what a measurement does.

        Args:
            model: Name of the model.
            part: ``"seed"``, ``"now"`` or ``"end"``.
            text: Number of the seed, or what is computed.
        """
        if self._screen is None:
            return
        with self._lock:
            if part == "end":
                self._text = {}
                self._screen.clear()
                return
            if self._began is None:
                self._began = time.monotonic()
                self._run(self._show)
            self._text = {**self._text, "model": model or "model", part: text}

    def finish(self) -> None:
        """Forget the measurements of a test that has ended."""
        if self._folder is None and self._began is not None:
            self._stop()
            self._began = None

    def _run(self, look: Callable[[], None]) -> None:
        """Look regularly, in a thread, until :meth:`finish`."""
        ended = threading.Event()

        def loop() -> None:
            while not ended.wait(TICK):
                with self._lock, suppress(OSError):
                    if not ended.is_set():
                        look()

        thread = threading.Thread(target=loop, name="trainability-progress", daemon=True)
        thread.start()

        def stop() -> None:
            ended.set()
            thread.join()

        self._stop = stop

    def _show(self) -> None:
        assert self._screen is not None
        seconds = time.monotonic() - (self._began or 0.0)
        if self._text and seconds >= AFTER and not self._is_paused:
            seed, now = self._text.get("seed", "1"), self._text.get("now", "")
            self._screen.show(f"{self._text['model']}: seed {seed}, {now} ({seconds:.0f} s)", seconds)

    def _show_workers(self) -> None:
        assert self._screen is not None
        assert self._folder is not None
        texts = []
        for file in sorted(self._folder.iterdir()):
            with suppress(OSError):
                texts.append(f"[{file.name}] {file.read_text(encoding='utf-8')}")
        if texts:
            self._screen.show(" ".join(texts), time.monotonic() - (self._began or 0.0))
        else:
            self._screen.clear()

    @contextmanager
    def _hidden(self) -> Generator[None, None, None]:
        """Clear the line while pytest writes; only a controller shows one meanwhile."""
        if self._folder is None or self._screen is None:
            yield
            return
        with self._lock:
            self._screen.clear()
            yield

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logstart(self) -> Generator[None, None, None]:
        """Let pytest write the name of a test."""
        with self._hidden():
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self) -> Generator[None, None, None]:
        """Let pytest write the outcome of a test."""
        with self._hidden():
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True, optionalhook=True)
    def pytest_testnodedown(self) -> Generator[None, None, None]:
        """Let xdist write that a worker is gone."""
        with self._hidden():
            return (yield)

    def pytest_enter_pdb(self) -> None:
        """Leave the terminal to the debugger."""
        self.watch("", "end", "")
        self._is_paused = True

    def pytest_leave_pdb(self) -> None:
        """Go on after the debugger."""
        self._is_paused = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Stop."""
        self._stop()
        if self._screen is not None:
            self._screen.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._screen = None


PROGRESS = pytest.StashKey[Progress]()


def _screen(config: pytest.Config) -> Screen | None:
    """Return the place for the line of this session; None in a pipe."""
    folder = getattr(config, "workerinput", {}).get(_FOLDER)
    if folder is not None:
        return _File(Path(folder, config.workerinput["workerid"]))  # type: ignore[attr-defined]
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return None
    try:
        descriptor = os.dup(reporter._tw._file.fileno())
    except (OSError, ValueError, AttributeError):
        return None
    is_terminal = os.isatty(descriptor) and os.name == "posix" and os.environ.get("TERM") != "dumb"
    if is_terminal and not _tests_write(config):
        return _StatusLine(reporter, descriptor)
    if is_terminal:
        return _Lines(reporter, descriptor, EVERY_LINE, first=0.0)
    if any(os.environ.get(name) for name in ("CI", "BUILD_NUMBER")):
        return _Lines(reporter, descriptor, EVERY_LINE_IN_CI, first=EVERY_LINE_IN_CI)
    os.close(descriptor)
    return None


def _tests_write(config: pytest.Config) -> bool:
    """Return whether tests write to the terminal while they run, by themselves or by live logging."""
    live = config.getini("log_cli") or config.option.log_cli_level is not None
    return bool(live) or config.option.capture in {"no", "tee-sys"}


class _Terminal:
    """Writes to the terminal of a session, past the capturing of output."""

    def __init__(self, reporter: Any, descriptor: int) -> None:
        self._writer, self._descriptor = reporter._tw, descriptor

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)

    def _shown(self, text: str) -> str:
        from ..report.layout import cut_right, shown_in

        return cut_right(shown_in(text, self._encoding), self._writer.fullwidth - 1)

    @property
    def _encoding(self) -> str:
        return getattr(self._writer._file, "encoding", None) or "ascii"

    def _write(self, text: str) -> None:
        with suppress(OSError):
            os.write(self._descriptor, text.encode(self._encoding, "replace"))


class _StatusLine(_Terminal):
    """A line below the one that pytest is writing. It is removed before pytest writes on."""

    def __init__(self, reporter: Any, descriptor: int) -> None:
        super().__init__(reporter, descriptor)
        self._text = ""

    def show(self, text: str, seconds: float) -> None:
        """Show a text in place of the last one."""
        text = self._shown(text)
        if text != self._text:
            self._write((_ERASE if self._text else "\n") + text)
            self._text = text

    def clear(self) -> None:
        """Remove the line, and return to where pytest writes."""
        if self._text:
            column = self._writer.width_of_current_line % self._writer.fullwidth
            self._write(f"{_ERASE}\x1b[A\x1b[{column + 1}G")
            self._text = ""


class _Lines(_Terminal):
    """Whole lines, now and then, that stay."""

    def __init__(self, reporter: Any, descriptor: int, every: float, *, first: float) -> None:
        super().__init__(reporter, descriptor)
        self._every, self._first, self._last = every, first, -every

    def show(self, text: str, seconds: float) -> None:
        """Write a text, unless the last one is recent."""
        now = time.monotonic()
        if seconds >= self._first and now - self._last >= self._every:
            self._last = now
            break_before = "\n" if self._writer.width_of_current_line else ""
            self._write(f"{break_before}trainability: {self._shown(text)}\n")

    def clear(self) -> None:
        """Keep the lines."""


class _File:
    """A file that holds the line of a worker of xdist while it measures."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def show(self, text: str, seconds: float) -> None:
        """Replace the text in the file."""
        with suppress(OSError):
            self._path.write_text(text, encoding="utf-8")

    def clear(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
