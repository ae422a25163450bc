"""Files of the documentation that scripts write: writing them, or checking whether they are up to date."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

__all__ = ["write_or_check"]


def write_or_check(description: str | None, texts: Mapping[Path, str], root: Path) -> int:
    """Write the files that have changed, or with ``--check`` list them only.

    Args:
        description: What the script does, for its help.
        texts: What each file must hold.
        root: Folder that the printed names are relative to.

    Returns:
        Exit status: 1 if a file is outdated and ``--check`` was given.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is outdated")
    check = parser.parse_args().check
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if not check:
            path.write_text(texts[path], encoding="utf-8")
        print(f"{path.relative_to(root)} {'is outdated: run make generated' if check else 'written'}")
    return 1 if stale and check else 0
