"""Files that are replaced as a whole. tests/unit/checks/test_baseline_files.py kills writers at each of their steps."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pytest_trainability.checks.atomic_files import replace_file


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    for text in ("first\n", "second ✔\n"):
        replace_file(path, text)
        assert path.read_bytes() == text.encode()
    assert [p.name for p in tmp_path.iterdir()] == ["page.md"]


def test_an_empty_text_removes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    replace_file(path, "")
    path.write_text("old", encoding="utf-8")
    replace_file(path, "")
    assert not path.exists()


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".page.md.abc.tmp").write_text("half", encoding="utf-8")
    (tmp_path / ".other.md.abc.tmp").write_text("half", encoding="utf-8")
    replace_file(tmp_path / "page.md", "text")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.md.abc.tmp", "page.md"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits")
def test_permissions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("old", encoding="utf-8")
    path.chmod(0o640)
    replace_file(path, "new")
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.md"
    path.write_text("old", encoding="utf-8")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.md"]
