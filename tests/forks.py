"""Python files run in separate processes, which are copies of one that has loaded PyTorch and this package.

Loading them takes two seconds, most of what many of these files take.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

Run: TypeAlias = Callable[..., "subprocess.CompletedProcess[str]"]
"""Runs a file with options, as ``python FILE OPTIONS`` does."""

SERVER = """
import builtins, gc, json, os, signal, sys

import torch
import pytest_trainability.measurement

def execute(path):
    # As the main module itself: what a file sends to other processes is looked up there.
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    names = vars(sys.modules["__main__"])
    initial = {"__name__": "__main__", "__file__": path, "__spec__": None, "__builtins__": builtins}
    names.clear()
    names.update(initial)
    exec(code, names)

gc.freeze()
for line in sys.stdin:
    words, seconds, *files = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
signal.alarm(seconds)
for number, file in enumerate([os.devnull, *files]):
    os.dup2(os.open(file, os.O_RDWR), number)
sys.argv, sys.path[0] = words, os.path.dirname(words[0])
execute(words[0])
"""


@contextmanager
def forked(patience: int, **environment: str) -> Iterator[Run]:
    """Start the process that is copied, and end it.

    Args:
        patience: Seconds after which a file that still runs is stopped.
        environment: Variables of all files, in addition to those of this process.
    """
    command, variables = [sys.executable, "-c", SERVER], {**os.environ, **environment}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        ) as server,
    ):
        assert server.stdin is not None and server.stdout is not None
        files = [Path(folder, name) for name in ("stdout", "stderr")]

        def run(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
            assert server.stdin is not None and server.stdout is not None
            for file in files:
                file.write_bytes(b"")
            words = [str(path), *options]
            server.stdin.write(json.dumps([words, patience, *map(str, files)]) + "\n")
            server.stdin.flush()
            code = int(server.stdout.readline())
            printed, errors = (file.read_text(encoding="utf-8") for file in files)
            return subprocess.CompletedProcess(words, code, printed, errors)

        yield run
        server.stdin.close()


def started(patience: int, **environment: str) -> Run:
    """Return a function that starts a new interpreter for each file: where processes cannot be copied."""

    def run(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command, variables = [sys.executable, str(path), *options], {**os.environ, **environment}
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=patience)

    return run
