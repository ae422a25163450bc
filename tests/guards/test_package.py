"""The distributions hold what they must, and say of the project what is true."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
from package import ROOT, TESTS, differences, sources

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with every file of the package."""
    path = tmp_path / "pytest_trainability-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in sources():
            archive.writestr(name, "")
        archive.writestr("pytest_trainability-1.dist-info/RECORD", "")
    return path


def without(wheel: Path, end: str) -> Path:
    """Return a copy of a wheel without the files whose names end so."""
    path = wheel.with_name("smaller.whl")
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(path, "w") as smaller:
        for name in whole.namelist():
            if not name.endswith(end):
                smaller.writestr(name, "")
    return path


def test_a_complete_wheel_has_no_differences(wheel: Path) -> None:
    assert differences(wheel) == []


@pytest.mark.parametrize("end", [".html.j2", ".css", ".js", ".schema.json", "py.typed", "/plugin/__init__.py"])
def test_an_omitted_file_is_caught(wheel: Path, end: str) -> None:
    found = differences(without(wheel, end))
    assert found == [f"missing in the wheel: {name}" for name in sorted(sources()) if name.endswith(end)] != []


def test_a_foreign_file_is_caught(wheel: Path) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tests/conftest.py", "")
    assert differences(wheel) == ["not a file of the package: tests/conftest.py"]


def test_the_tests_of_the_wheel_exist() -> None:
    for name in TESTS:
        path, _, function = name.partition("::")
        assert (ROOT / path).exists()
        assert not function or f"def {function}(" in (ROOT / path).read_text("utf-8")


def test_the_classifiers_begin_with_the_oldest_python() -> None:
    versions = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', PROJECT)
    (oldest,) = re.findall(r'requires-python = ">=3\.(\d+)"', PROJECT)
    assert [int(version) for version in versions] == [*range(int(oldest), int(versions[-1]) + 1)]
