"""Objects that are named by their place."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from pytest_trainability.errors import UsageError
from pytest_trainability.sources.places import imported, search_first


def test_a_place_is_a_module_and_a_name() -> None:
    assert imported("math:sqrt", what="the loss") is math.sqrt
    assert imported("math:sqrt.__name__", what="the loss") == "sqrt"


@pytest.mark.parametrize("place", ["math", "math:", ":sqrt", ""])
def test_another_form_is_refused(place: str) -> None:
    with pytest.raises(UsageError, match=r"^the loss must be given as MODULE:NAME"):
        imported(place, what="the loss")


def test_the_nearest_name_is_given() -> None:
    with pytest.raises(UsageError, match=r"there is no 'sqtr'\. Nearest: sqrt"):
        imported("math:sqtr", what="the loss")


def test_the_error_of_a_module_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_that_raises.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"raised ZeroDivisionError: division by zero"):
        imported("module_that_raises:a", what="the loss")
    (tmp_path / "module_that_exits.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UsageError, match=r"raised SystemExit: 3"):
        imported("module_that_exits:a", what="the loss")
    with pytest.raises(UsageError, match=r"raised ModuleNotFoundError"):
        imported("no_such_module_here:a", what="the loss")


def test_the_name_of_a_file_is_refused_with_that_of_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "named_as_file.py").write_text("a = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"the name of the module, without \.py: named_as_file:a$"):
        imported("named_as_file.py:a", what="the model")


def test_modules_of_a_folder_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    for folder in (tmp_path, tmp_path / "below"):
        (folder / "module_in_two_folders.py").write_text(f"place = {str(folder)!r}\n")
    place = "module_in_two_folders:place"
    search_first(tmp_path / "below", [place])
    search_first(tmp_path / "below", [place])
    assert imported(place, what="the model") == str(tmp_path / "below")
    assert sys.path.count(str(tmp_path / "below")) == 1
    search_first(tmp_path / "below", [place, "8x3", "module_that_is_nowhere:a"])
    with pytest.raises(
        UsageError, match=r"one module 'module_in_two_folders'.*below.* has been imported before\. Rename"
    ):
        search_first(tmp_path, [place])
    del sys.modules["module_in_two_folders"]
