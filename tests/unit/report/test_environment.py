"""Versions and machine, as reports show them."""

from __future__ import annotations

import platform
from datetime import datetime

import torch

from pytest_trainability.report.environment import environment, now


def test_the_environment_has_versions_and_the_command() -> None:
    found = environment("pytest -q", ["cuda:0", "cpu", "cpu"])
    assert found["command"] == "pytest -q"
    assert found["devices"] == ["cpu", "cuda:0"]
    assert found["python"] == platform.python_version()
    # The metadata of PyTorch on PyPI does not name the build, such as "+cu130".
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert list(found) == [
        "python", "pytest", "torch", "numpy", "pytest_trainability", "platform", "processor", "devices", "command", "threads",
    ]  # fmt: skip


def test_the_date_has_a_time_zone() -> None:
    offset = datetime.fromisoformat(now()).utcoffset()
    assert offset is not None and not offset
