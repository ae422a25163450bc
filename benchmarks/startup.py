"""Time that the plugin adds to a pytest session that measures nothing: sessions with and without it alternate.

python benchmarks/startup.py
python benchmarks/startup.py --tiny    # one round: checks that the benchmark runs
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="one round: checks that the benchmark runs")
    rounds = 1 if parser.parse_args().tiny else ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_nothing.py").write_text("def test_nothing():\n    pass\n")
        sessions = {
            "without": ["-p", "no:trainability"],
            "with": [],
        }
        took: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(rounds):
            for name, options in sessions.items():
                command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, folder]
                began = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, cwd=folder)
                took[name].append(time.perf_counter() - began)
    differences = [a - b for a, b in zip(took["with"], took["without"])]
    print(f"pytest without the plugin {1000 * statistics.median(took['without']):.0f} ms")
    print(f"with it, median of the differences {1000 * statistics.median(differences):+.1f} ms ({rounds} rounds)")


if __name__ == "__main__":
    main()
