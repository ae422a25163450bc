"""``tests/unit`` mirrors the rooms file by file, so that the test of a function is found by its name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pytest_trainability

PACKAGE = Path(pytest_trainability.__file__).parent
UNIT = Path(__file__).parents[1] / "unit"

ELSEWHERE = {
    "__main__": "a line that calls commands, which tests/plugin/test_contracts.py runs as a command",
    "commands/baselines": "tests/plugin/test_baselines.py runs it on folders that sessions have written",
    "commands/contract": "tests/plugin/test_contracts.py runs it on models in files",
    "commands/start": "tests/plugin/test_start.py runs it on models in files, and the tests that it writes",
    "measures/attributes": "generated: tests/guards/test_documented.py",
}
"""Source files without a unit test of their name, and why."""


def mirrored(path: Path) -> str:
    """Return the source file that a unit test is named for, without its suffix; a package is its folder's name."""
    place = path.relative_to(UNIT).parent / path.stem.removeprefix("test_")
    return place.as_posix()


def needs_unit_test(source: str) -> bool:
    """Whether a source file holds a class, or a function that is not a measure; measures have truth tests."""
    found = (node for node in ast.parse(source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
    return any(
        isinstance(node, ast.ClassDef) or not any(ast.unparse(d).startswith("declare(") for d in node.decorator_list)
        for node in found
    )


def sources() -> set[str]:
    """Return the source files that need a unit test; those of the plugin room have sessions in tests/plugin."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).with_suffix("")
        if place.parts[0] == "plugin" or not needs_unit_test(path.read_text(encoding="utf-8")):
            continue
        found.add((place.parent / place.parent.name if place.name == "__init__" else place).as_posix())
    return found - {"./", "."}


SOURCES = sources()
TESTS = sorted(UNIT.rglob("test_*.py"))


@pytest.mark.parametrize("path", [p for p in TESTS if p.parent != UNIT], ids=lambda p: p.relative_to(UNIT).as_posix())
def test_a_unit_test_is_named_for_a_source_file(path: Path) -> None:
    """Files that stand directly in ``tests/unit`` cut across rooms."""
    assert (PACKAGE / f"{mirrored(path)}.py").is_file() or mirrored(path) in SOURCES


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_source_file_has_a_unit_test(name: str) -> None:
    known = {mirrored(path) for path in TESTS}
    assert (name in known) != (name in ELSEWHERE), f"tests/unit/**/test_{Path(name).name}.py must exist, once"


def test_files_with_measures_only_need_no_unit_test() -> None:
    measure = "@declare('scalar')\ndef log_gain(run):\n    return 0.0\n"
    assert not needs_unit_test(measure)
    assert not needs_unit_test("LIMIT = 3\n")
    for other in ("def helper():\n    pass\n", "@cache\ndef helper():\n    pass\n", "class Helper:\n    pass\n"):
        assert needs_unit_test(other)
        assert needs_unit_test(measure + other)
