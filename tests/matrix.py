"""Run the tests of the plugin in every supported configuration, and print the results.

    python tests/matrix.py                  # all rows, half an hour on two cores
    python tests/matrix.py --quick          # whole sessions only
    python tests/matrix.py oldest xunit1    # rows by name, or all rows of an environment

The environments are made in ``build/matrix``, and are made again if their requirements change. Remove the folder to install newer
versions. The output of pytest and a JUnit file of each row are written next to them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "matrix"
TESTS = ("tests/plugin", "tests/guards")
QUICK = ("tests/plugin/test_matrix.py", "tests/plugin/test_sessions.py", "tests/guards/test_lazy_loading.py")

NEIGHBOURS = (
    "pytest-benchmark",
    "syrupy",
    "hypothesis",
    "pytest-cov",
    "pytest-rerunfailures",
    "pytest-timeout",
    "pytest-randomly",
    "pytest-torch",
)
# Packages of each environment, in addition to the plugin and its requirements.
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "newest": ("pytest", "pytest-xdist"),
    "no-xdist": ("pytest",),
    "oldest": ("pytest==8.0.*", "pytest-xdist==3.6.*"),
    "neighbours": ("pytest", "pytest-xdist", *NEIGHBOURS),
}


@dataclass(frozen=True)
class Row:
    """One run of the tests: an environment and options of pytest."""

    name: str
    environment: str
    options: tuple[str, ...] = ()


ROWS = (
    Row("plain", "newest"),
    Row("n2", "newest", ("-n", "2")),
    Row("n0", "newest", ("-n", "0")),
    Row("p-no-xdist", "newest", ("-p", "no:xdist")),
    Row("p-no-cacheprovider", "newest", ("-p", "no:cacheprovider")),
    Row("p-no-terminal", "newest", ("-p", "no:terminal")),
    Row("w-error", "newest", ("-W", "error")),
    Row("xunit1", "newest", ("-o", "junit_family=xunit1")),
    Row("xunit2", "newest", ("-o", "junit_family=xunit2")),
    Row("no-xdist", "no-xdist"),
    Row("oldest", "oldest", ("-n", "2")),
    Row("neighbours", "neighbours", ("-n", "2")),
)


@dataclass(frozen=True)
class Result:
    """The result of a row."""

    status: int
    passed: int
    failed: int
    skipped: int
    seconds: float
    names: tuple[str, ...]
    """Names of the failed tests."""


def python_of(name: str) -> Path:
    """Return the interpreter of an environment."""
    return BUILD / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def create(name: str) -> None:
    """Create an environment, unless it exists with the same requirements."""
    # pytest and xdist are not pinned here, because the rows differ in their versions.
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("pytest")]
    required = "\n".join([*ENVIRONMENTS[name], *pins, (ROOT / "pyproject.toml").read_text()])
    stamp = BUILD / name / "required.txt"
    if stamp.exists() and stamp.read_text() == required:
        return
    print(f"creating {BUILD / name}", flush=True)
    venv.create(BUILD / name, clear=True, with_pip=True)
    constraints = BUILD / name / "constraints.txt"
    constraints.write_text("\n".join(pins) + "\n")
    pip = (python_of(name), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, "--constraint", constraints, "--editable", ROOT, *ENVIRONMENTS[name]], check=True)
    stamp.write_text(required)


def version_of_pytest(name: str) -> str:
    """Return the version of pytest in an environment."""
    code = "from importlib.metadata import version; print(version('pytest'))"
    return subprocess.run([python_of(name), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def run(row: Row, tests: tuple[str, ...]) -> Result:
    """Run the tests of one row. The output of pytest is written into a file."""
    report, log = BUILD / f"{row.name}.xml", BUILD / f"{row.name}.log"
    report.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHONPATH"))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    options = row.options
    if "no:terminal" in options:
        # pyproject.toml adds -ra, an option of the terminal.
        options += ("-o", "addopts=--strict-markers --strict-config --doctest-modules")
    start = time.perf_counter()
    with log.open("w") as file:
        done = subprocess.run(
            [python_of(row.environment), "-m", "pytest", *tests, *options, f"--junitxml={report}"],
            check=False,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return read(report, done.returncode, time.perf_counter() - start)


def read(report: Path, status: int, seconds: float) -> Result:
    """Read the JUnit file of a row, which also exists without a terminal."""
    if not report.exists():
        return Result(status, 0, 0, 0, seconds, ("no test ran",))
    cases = list(ElementTree.parse(report).iter("testcase"))
    red = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    names = tuple(f"{case.get('classname')}.{case.get('name')}" for case in red)
    return Result(status, len(cases) - len(red) - skipped, len(red), skipped, seconds, names)


HEAD = (
    f"{'name':<20}{'environment':<13}{'pytest':<9}{'options':<25}{'passed':>7}{'failed':>7}{'skipped':>8}{'seconds':>9}"
)


def line(row: Row, result: Result) -> str:
    """Return a row of the table, followed by the names of the failed tests."""
    text = (
        f"{row.name:<20}{row.environment:<13}{version_of_pytest(row.environment):<9}{' '.join(row.options):<25}"
        f"{result.passed:>7}{result.failed:>7}{result.skipped:>8}{result.seconds:>9.0f}"
    )
    if result.status:
        text += f"   exit status {result.status}, see {(BUILD / row.name).relative_to(ROOT)}.log"
    return "\n".join([text, *(f"    {re.sub(r'^tests.', '', name)}" for name in result.names)])


def main() -> int:
    """Run the requested rows. The exit status is 1 if one of them failed."""
    names = sorted({row.name for row in ROWS} | set(ENVIRONMENTS))
    parser = argparse.ArgumentParser(description="Run the tests of the plugin in every supported configuration.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows or environments: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(names)):
        parser.error(f"unknown rows: {', '.join(unknown)}. Rows and environments: {', '.join(names)}.")
    rows = [row for row in ROWS if not given.names or {row.name, row.environment} & set(given.names)]
    for name in dict.fromkeys(row.environment for row in rows):
        create(name)
    print(HEAD, flush=True)
    failed = False
    for row in rows:
        result = run(row, QUICK if given.quick else TESTS)
        print(line(row, result), flush=True)
        failed = failed or result.status != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
