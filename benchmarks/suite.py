"""Cost of a suite: 300 small models in one session of pytest, and 10,000 records in its summary.

    python benchmarks/suite.py                      # a quarter of an hour on one core
    python benchmarks/suite.py --models 60          # a shorter suite
    python benchmarks/suite.py --only summary       # the summary of many records alone
    python benchmarks/suite.py --tiny               # checks in a few seconds that the benchmark runs

The models are perceptrons, residual and convolutional networks, transformers and recurrent networks of several sizes, each
with the preset of its family, its baseline and two seeds. The suite runs three times: with baselines recorded, compared, and
compared under ``-n 2``. Seconds are those of the processors, so that other work on the machine does not count, and belong to
the innermost part: the build of a model inside of a run counts as a build only. What does not shrink under ``-n 2`` is what
the controller does, and what each worker does again: its start and its collection.

The summary is that of sessions whose tests carry the records of one real measurement each, changed to hold, to fail, to lack a
baseline, or to stand in many files. Its growth exponent is the slope of its logarithm over that of the number of records:
1 for linear, 2 for quadratic.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from math import log
from pathlib import Path
from time import process_time
from typing import Any

import torch
from suite_probe import PARTS
from torch import nn

from pytest_trainability.measurement import Context, measure_in
from pytest_trainability.records.reports import CheckRecord
from pytest_trainability.records.session import CheckOutcome, SessionRecord
from pytest_trainability.report.formats import report_text

HERE = Path(__file__).parent
FILES = 10
TINY = 4
"""Number of models of a suite that only shows that the benchmark runs, in one session."""
TESTS = """
import pytest, torch
from torch import nn

class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
    def forward(self, x):
        return x + self.b(torch.nn.functional.gelu(self.a(self.norm(x))))

class Reader(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.lstm, self.head = nn.LSTM(width, width, batch_first=True), nn.Linear(width, 4)
    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])

def mlp(depth, width):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())]
    for layer in layers[::2]:
        nn.init.orthogonal_(layer.weight, 1.1)
    return nn.Sequential(*layers, nn.Linear(width, 4))

def residual(depth, width):
    return nn.Sequential(*[Residual(width) for _ in range(depth)], nn.LayerNorm(width), nn.Linear(width, 4))

def cnn(depth, width):
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))

def transformer(depth, width):
    block = lambda: nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
    return nn.Sequential(*[block() for _ in range(depth)], nn.Linear(width, 4))

def rnn(depth, width):
    return Reader(width)

FAMILIES = {
    "mlp": (mlp, lambda width: torch.randn(8, width), "mlp", {}),
    "residual": (residual, lambda width: torch.randn(8, width), "mlp", {}),
    "cnn": (cnn, lambda width: torch.randn(4, 3, 8, 8), "cnn", {}),
    "transformer": (transformer, lambda width: torch.randn(4, 8, width), "transformer", {}),
    "rnn": (rnn, lambda width: torch.randn(4, 12, width), "rnn", {"steps": "time"}),
}

def case(number):
    preset = list(FAMILIES.values())[number % len(FAMILIES)][2]
    return pytest.param(number, marks=pytest.mark.trainability(preset=preset))

@pytest.mark.parametrize("number", map(case, range(FIRST, LAST)))
def test_model(trainability, number):
    name = list(FAMILIES)[number % len(FAMILIES)]
    build, inputs, preset, options = FAMILIES[name]
    depth, width = 2 + number // 5 % 4, 16 + 8 * (number // 20 % 4)
    result = trainability(lambda: build(depth, width), inputs(width), seeds=2, name=name, **options)
    result.check_baseline()
"""
"""Text of a file of tests. ``FIRST`` and ``LAST`` are numbers of models."""
KINDS = ("holds", "fails", "errors", "files", "recorded", "missing", "unused")
"""What the tests of a summary have in common; ``files``: each ten of them stand in another file."""
REPORTS = ("json", "html", "markdown", "sarif", "gitlab")
SIZES = (2500, 5000, 10000)
SIZES_OF_REPORTS = (250, 500, 1000)
TESTS_OF_A_FILE = 10


# Sessions ---------------------------------------------------------------------------------------------------------


def session(folder: Path, *options: str, statuses: Sequence[int] = (0, 1)) -> dict[str, dict[str, Any]]:
    """Run pytest in a folder.

    Args:
        folder: The folder. Its parent receives the notes.
        options: Options of pytest.
        statuses: Exit statuses that a session may have.

    Returns:
        What the probe has noted, by process.

    Raises:
        SystemExit: The session has ended with another exit status than one of ``statuses``.
    """
    notes = Path(tempfile.mkdtemp(dir=folder.parent))
    path = os.pathsep.join(map(str, (HERE, HERE.parent, os.environ.get("PYTHONPATH", ""))))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**inherited, "PYTHONPATH": path, "SUITE_PROBE": str(notes), "OMP_NUM_THREADS": "1"}
    # Compiled once, as on the machine of a developer.
    environment["PYTHONDONTWRITEBYTECODE"] = ""
    plugins = [part for name in ("suite_probe", "no:cacheprovider", "no:randomly") for part in ("-p", name)]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", *plugins]
    done = subprocess.run(
        [*command, *options, "."], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode not in statuses:
        sys.exit(f"pytest has ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in notes.glob("*.json")}


def total(found: Mapping[str, Any]) -> float:
    return sum(found["seconds"].values())


# The suite --------------------------------------------------------------------------------------------------------


def write_suite(folder: Path, models: int) -> None:
    """Write the files of tests."""
    files = min(FILES, models)
    for number in range(files):
        first, last = models * number // files, models * (number + 1) // files
        text = TESTS.replace("FIRST", str(first)).replace("LAST", str(last))
        Path(folder, f"test_models_{number}.py").write_text(text, encoding="utf-8")


def print_suite(models: int) -> None:
    """Run the suite, and print what a model costs."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "suite")
        folder.mkdir()
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        write_suite(folder, models)
        print(f"{models} models in one session; milliseconds of the processor per model")
        print(f"{'':<26}{'wall':>7}{'all':>7}" + "".join(f"{part:>11}" for part in PARTS))
        kinds = {"baselines recorded": "update", "baselines compared": "check"}
        if models <= TINY:
            kinds = {"baselines recorded": "update"}
        found = {name: session(folder, f"--trainability-baseline={mode}")["main"] for name, mode in kinds.items()}
        for name, one in found.items():
            print_row(name, one, models)
        if models <= TINY:
            return
        print_memory(found["baselines compared"])
        workers = session(folder, "-n", "2")
        for name, one in sorted(workers.items()):
            print_row(f"-n 2: {name}", one, models)
        print_share(found["baselines compared"], workers)


def print_row(name: str, found: Mapping[str, Any], models: int) -> None:
    cells = (
        1000 * seconds / models for seconds in (found["wall"], total(found), *(found["seconds"][p] for p in PARTS))
    )
    widths = (7, 7, *(11 for _ in PARTS))
    print(f"{name:<26}" + "".join(f"{cell:>{width}.1f}" for cell, width in zip(cells, widths)), flush=True)


def print_memory(found: Mapping[str, Any]) -> None:
    thirds = found["tests"] / 3
    shown = {round(tests / thirds): (tests, now, peak) for tests, now, peak in found["memory"]}
    looks = ", ".join(f"{now:.0f} (peak {peak:.0f}) after {tests}" for tests, now, peak in shown.values())
    print(f"memory in MB, by number of models: {looks}")


def print_share(alone: Mapping[str, Any], workers: Mapping[str, Mapping[str, Any]]) -> None:
    """Print which part of the time without workers stays with two of them."""
    again = [one["seconds"]["start"] + one["seconds"]["collection"] for name, one in workers.items() if name != "main"]
    fixed = total(workers["main"]) + statistics.fmean(again)
    importing = [name for name, one in sorted(workers.items()) if one["torch"]]
    print(
        f"does not shrink under -n 2: {fixed:.1f} s of {total(alone):.1f} s ({100 * fixed / total(alone):.0f} %): "
        f"{total(workers['main']):.1f} s of the controller, {statistics.fmean(again):.1f} s of each worker; "
        f"torch is imported by {', '.join(importing)}"
    )


# The summary ------------------------------------------------------------------------------------------------------

ONE = """
import torch
from torch import nn

def test_one(trainability):
    layers = lambda: nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Tanh())])
    result = trainability(layers, torch.randn(4, 8), seeds=2)
    result.check(preset="mlp")
    result.check_baseline()
"""


def print_summary(sizes: Sequence[int], kinds: Sequence[str]) -> None:
    """Print the seconds of the summary by number of records, and its growth exponent."""
    print("\nseconds of the summary by number of records in one session, and growth exponent of the last two sizes")
    print(f"{'tests':<12}{'part':<10}" + "".join(f"{size:>9}" for size in sizes) + f"{'exponent':>10}")
    with tempfile.TemporaryDirectory() as parent:
        sample_session(Path(parent))
        for kind in kinds:
            times: dict[str, list[float]] = {"report": [], "baseline": [], "pytest": []}
            for size in sizes:
                found = summary_session(Path(parent), kind, size)
                for part, seconds in times.items():
                    seconds.append(found["seconds"][part])
            for part, seconds in times.items():
                grown = log(seconds[-1] / seconds[-2]) / log(sizes[-1] / sizes[-2])
                print(f"{kind:<12}{part:<10}" + "".join(f"{s:>9.2f}" for s in seconds) + f"{grown:>10.2f}", flush=True)


def print_reports(sizes: Sequence[int]) -> None:
    """Print the milliseconds per record of each report, and the growth exponent of the last two sizes."""
    records: list[CheckRecord] = []
    context = Context(report=records.append, detailed=True)
    layers = [layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Tanh())]
    measure_in(context, lambda: nn.Sequential(*deepcopy(layers)), torch.randn(4, 8), seeds=1).check(preset="mlp")
    print(f"\n{'report':<22}" + "".join(f"{size:>9}" for size in sizes) + f"{'exponent':>10}   ms per record")
    for kind in REPORTS:
        seconds = []
        for size in sizes:
            named = (replace(records[-1], test=f"test_a.py::test[{number}]") for number in range(size))
            session = SessionRecord(tuple(CheckOutcome(record, "passed") for record in named))
            began = process_time()
            report_text(kind, session, "")
            seconds.append(process_time() - began)
        grown = log(seconds[-1] / seconds[-2]) / log(sizes[-1] / sizes[-2])
        cells = "".join(f"{1000 * s / size:>9.2f}" for s, size in zip(seconds, sizes))
        print(f"{kind:<22}{cells}{grown:>10.2f}", flush=True)


def sample_session(parent: Path) -> None:
    """Measure one model, and keep the record, and the folder of the session with its baseline."""
    folder = parent / "session"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (folder / "test_one.py").write_text(ONE, encoding="utf-8")
    session(folder, f"--suite-save={parent / 'sample.json'}", "--trainability-baseline=update", statuses=(0,))
    (folder / "test_one.py").unlink()
    folder.rename(parent / "kept")


def summary_session(parent: Path, kind: str, size: int) -> Mapping[str, Any]:
    """Run a session of many records, and return the notes of the probe."""
    folder, sample = parent / "session", parent / "sample.json"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(parent / "kept", folder)
    options = ["--trainability-baseline=update"]
    files = max(size // TESTS_OF_A_FILE, 1) if kind == "files" else 1
    for number in range(files):
        text = f"import pytest\n@pytest.mark.parametrize('n', range({size // files}))\ndef test_model(n): pass\n"
        Path(folder, f"test_{number}.py").write_text(text, encoding="utf-8")
    if kind == "unused":
        session(folder, f"--suite-load={sample}", "--suite-kind=recorded", *options)
        options[0] = "--trainability-baseline=check"
    return session(folder, f"--suite-load={sample}", f"--suite-kind={kind}", *options)["main"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--only", choices=["suite", "summary"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="kinds of records of the summary")
    parser.add_argument("--tiny", action="store_true", help="a few models and records: checks that the benchmark runs")
    given = parser.parse_args()
    if given.only != "summary":
        print_suite(TINY if given.tiny else given.models)
    if given.only != "suite":
        print_summary((4, 8) if given.tiny else SIZES, given.kinds[:1] if given.tiny else given.kinds)
        print_reports((2, 4) if given.tiny else SIZES_OF_REPORTS)


if __name__ == "__main__":
    main()
