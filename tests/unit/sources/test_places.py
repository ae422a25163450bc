"""Objects that are named by their place."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pytest_trainability.errors import UsageError
from pytest_trainability.sources.places import imported


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
    with pytest.raises(UsageError, match=r"raised ModuleNotFoundError"):
        imported("no_such_module_here:a", what="the loss")
