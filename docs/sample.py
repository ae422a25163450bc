"""Write the HTML report of the examples, which the documentation shows as the sample."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pytest_trainability.report.html import page

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "docs" / "_static" / "demo.html"


def report_of_the_demo() -> dict[str, Any]:
    """Run the examples, and return their JSON report."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run([sys.executable, ROOT / "examples" / "demo.py", f"--trainability-json={report}"], check=True)
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return found


def sample(report: dict[str, Any]) -> str:
    """Return the page of a report, without what is true of one machine only."""
    environment = {**report["environment"], "command": "make demo", "platform": "", "processor": ""}
    return page({**report, "environment": environment})


def main() -> None:
    """Write the sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", nargs="?", type=Path, help="JSON report of the examples (default: run them).")
    given = parser.parse_args().report
    report = json.loads(given.read_text(encoding="utf-8")) if given else report_of_the_demo()
    SAMPLE.parent.mkdir(exist_ok=True)
    SAMPLE.write_text(sample(report), encoding="utf-8")
    print(f"{SAMPLE.relative_to(ROOT)}: {SAMPLE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
