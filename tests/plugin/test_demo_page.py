"""The page on `make demo` shows what the examples print: an example is run, and its lines are in the page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = "examples/test_1_towers.py::test_sigmoid_tower"
NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]\d+)?")


def lines(text: str) -> list[str]:
    """Return lines without numbers, whose last digits depend on the machine."""
    return [re.sub(r"[▁▂▃▄▅▆▇█]+", "▁", NUMBER.sub("#", " ".join(line.split()))) for line in text.splitlines()]


def test_a_failing_example_prints_the_lines_of_the_page() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:xdist", "--tb=no", EXAMPLE],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    (printed,) = re.findall(rf"^{EXAMPLE}\n.*?(?=^\d+ of )", done.stdout, re.DOTALL | re.MULTILINE)
    page = lines((ROOT / "docs" / "demo.md").read_text(encoding="utf-8"))
    assert "likely cause" in printed and "cure" in printed
    assert [line for line in lines(printed) if line not in page] == [], "run make sample"
