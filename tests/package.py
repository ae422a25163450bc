"""Check the wheel: its files, its installation into an empty environment, and tests of the plugin there, away from the sources.

    python tests/package.py dist/*.whl

The environment gets what the metadata of the wheel requires, with the versions of ``constraints.txt``, and nothing else but
the tools of the tests. The tests are copied to a folder from which the sources cannot be imported.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pytest_trainability"
PAGES = ROOT / "docs" / "measures"
"""Pages of the measures, which a wheel holds inside the package."""
TOOLS = ("jsonschema",)
"""What the tests import that the plugin does not need."""
TESTS = (
    "tests/plugin/test_html_report.py",
    "tests/plugin/test_matrix.py::test_without_xdist_installed_the_verdicts_are_the_same",
    "tests/unit/commands",
    "tests/unit/report/test_schema.py",
)
"""The page with its templates, sessions without further plugins, the commands, and the schema."""


def sources() -> set[str]:
    """Return the files of the package, relative to the folder of the package."""
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    pages = {f"{PACKAGE.name}/measures/pages/{path.name}" for path in PAGES.iterdir()}
    return pages | {path.relative_to(ROOT).as_posix() for path in files}


def differences(wheel: Path) -> list[str]:
    """Return what a wheel lacks, and what it should not hold."""
    with ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = sources()
    return [f"missing in the wheel: {name}" for name in sorted(expected - found)] + [
        f"not a file of the package: {name}" for name in sorted(found - expected)
    ]


def install(wheel: Path, folder: Path) -> Path:
    """Install a wheel into an empty environment, and return its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    # Python compiles what the tests import, which is a small part of what is installed.
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")
    constraints = ROOT / "constraints.txt"
    subprocess.run([*pip, "--constraint", constraints, f"{wheel.resolve()}[html]", *TOOLS], check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    return python


def copy_tests(folder: Path) -> None:
    """Copy the tests, the pages that they compare, their helper among the examples, and the configuration of pytest."""
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PAGES, folder / "docs" / "measures")
    (folder / "examples").mkdir()
    for name in ("examples/torchvision_for_cpu.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)


def run(python: Path, folder: Path, tests: Sequence[str]) -> int:
    """Run tests in a folder, and return the exit status."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHON"))}
    variables |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    where = "import pytest_trainability; print('installed as', pytest_trainability.__path__[0])"
    script = python.with_name("pytest-trainability")
    for command in ([python, "-c", where], [script, "explain", "log_gain"], [python, "-m", "pytest", "-q", *tests]):
        status = subprocess.run(command, cwd=folder, env=variables, check=False).returncode
        if status:
            return status
    return 0


def main() -> int:
    """Check a wheel. The exit status is 0 if it holds every file and the tests pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("tests", nargs="*", default=TESTS, help=f"default: {' '.join(TESTS)}")
    given = parser.parse_args()
    if found := differences(given.wheel):
        print("\n".join(found))
        return 1
    with TemporaryDirectory() as away:
        folder = Path(away)
        python = install(given.wheel, folder / "environment")
        copy_tests(folder)
        return run(python, folder, given.tests)


if __name__ == "__main__":
    sys.exit(main())
