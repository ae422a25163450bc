"""The environment of a session, as reports show it: versions and machine."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["environment", "now"]

_PACKAGES = ("pytest", "torch", "numpy")


def environment(command: str, devices: Iterable[str]) -> dict[str, Any]:
    """Return versions, machine and command line.

    Args:
        command: The command line.
        devices: Devices of the measurements.
    """
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "pytest_trainability": _version("pytest-trainability"),
        "platform": f"{sys.platform} {platform.machine()}",
        "processor": _processor(),
        "devices": sorted(set(devices)),
        "command": command,
        "threads": os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count() or ""),
    }


def now() -> str:
    """Return date and time, such as ``2026-11-30T03:50:00+00:00``."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    """Return the name of the processor; empty where the system does not say."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        found = None
    return found[1].strip() if found else ""
