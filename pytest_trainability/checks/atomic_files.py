"""Files that are replaced as a whole, so that a reader never sees a half-written one."""

from __future__ import annotations

import glob
import os
import tempfile
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: Path, text: str) -> None:
    """Replace a file by a text. An empty text removes the file.

    Temporary files of a writer that was killed are removed. Two processes must not replace the same file at once.

    Args:
        path: The file, in a folder that exists.
        text: Its new contents.

    Raises:
        OSError: The file cannot be written. It is unchanged then.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left.unlink(missing_ok=True)
    if not text:
        path.unlink(missing_ok=True)
        return
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """Return the umask of the process. It can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
