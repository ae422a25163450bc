"""The lock of a baseline file: a file next to it, which exists while it is held.

All sessions that can write the baseline find the same lock, whatever their user, container or folder for temporary files. Nobody
else can put anything in its place or hold it: that takes the right to write the folder.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import BaselineError

__all__ = ["lock_path", "locked"]

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PAUSE = 0.02
"""Seconds between two attempts to get a lock."""

# A link is not followed, and Windows removes the file when its holder ends in any way.
_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_TEMPORARY", 0)


def lock_path(path: Path) -> Path:
    """Return the path of the lock of a baseline file."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def locked(path: Path, *, patience: float) -> Iterator[None]:
    """Hold the lock of a baseline file. Its folder exists meanwhile; afterwards it is removed if it is empty.

    Args:
        path: The baseline file.
        patience: Seconds to wait for another session that holds the lock.

    Raises:
        BaselineError: Another session holds the lock for too long, or something else is at its path.
    """
    lock, last = lock_path(path), time.monotonic() + patience
    while (handle := _attempt(lock)) is None:
        if time.monotonic() > last:
            msg = (
                f"{path}: the baseline could not be written. Another session has held the lock {lock} for {patience:.0f} "
                "seconds. Run again when that session has ended. If there is none, remove the lock."
            )
            raise BaselineError(msg)
        time.sleep(PAUSE)
    try:
        yield
    finally:
        # The name is removed while the lock is held. Whoever waits notices that and makes a new file.
        if _is_at(handle, lock):
            with suppress(OSError):
                lock.unlink()
        os.close(handle)
        with suppress(OSError):
            path.parent.rmdir()


def _attempt(lock: Path) -> int | None:
    """Return a handle that holds the lock; None if another process holds it."""
    lock.parent.mkdir(exist_ok=True)
    handle, created = _open(lock)
    if handle is None:
        return None
    if _hold(handle, created=created) and _is_at(handle, lock):
        return handle
    os.close(handle)
    return None


def _open(lock: Path) -> tuple[int | None, bool]:
    """Open the file of a lock; return its handle, None if another process holds it, and whether the file is new."""
    try:
        return os.open(lock, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600), True
    except FileNotFoundError:
        # Another process has removed the folder.
        return None, False
    except PermissionError:
        if fcntl is not None:
            raise
        # Windows is about to remove the file.
        return None, False
    except FileExistsError:
        if fcntl is None:
            return None, False
    return _open_existing(lock), False


def _open_existing(lock: Path) -> int | None:
    """Open the file of a lock that another process holds, or has left when it was killed.

    Returns:
        The handle. None if the lock was released, or is that of another user.

    Raises:
        BaselineError: Something else is at this path.
    """
    try:
        if not stat.S_ISREG(lock.lstat().st_mode):
            msg = (
                f"{lock}: the lock of a baseline must be a regular file, which exists while a session writes the baseline. Move "
                "away the link, folder or device at this path."
            )
            raise BaselineError(msg)
        return os.open(lock, _FLAGS)
    except (FileNotFoundError, PermissionError):
        return None


def _hold(handle: int, *, created: bool) -> bool:
    """Lock an open file; return whether that was possible."""
    if fcntl is None:
        return created
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no such locks. There the existence of the file is the lock.
        return created
    return True


def _is_at(handle: int, lock: Path) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(handle), lock.lstat())
    except FileNotFoundError:
        return False
