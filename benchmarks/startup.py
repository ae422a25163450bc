"""What loading the plugin adds to a pytest session that measures nothing, measured in turns with and without it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 30


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_nothing.py").write_text("def test_nothing():\n    pass\n")
        sessions = {
            "without": ["-p", "no:trainability"],
            "with": [],
        }
        took: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(ROUNDS):
            for name, options in sessions.items():
                command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, folder]
                began = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, cwd=folder)
                took[name].append(time.perf_counter() - began)
    differences = [a - b for a, b in zip(took["with"], took["without"])]
    print(f"pytest without the plugin {1000 * statistics.median(took['without']):.0f} ms")
    print(f"with it, median of the differences {1000 * statistics.median(differences):+.1f} ms ({ROUNDS} rounds)")


if __name__ == "__main__":
    main()
