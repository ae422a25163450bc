"""Flags of faults after public reports, with their healthy twins.

    python benchmarks/reported_faults.py              # all, in a few minutes on one core
    python benchmarks/reported_faults.py causal-leak  # some of them, by name
    python benchmarks/reported_faults.py --tiny       # checks in a few seconds that it runs

The models are those of ``tests/faults/reported.py``. Each line shows the bounds of the family's preset that the flawed model
violates on eight seeds, and the measures that differ from the baseline of the healthy twin, on the same seeds and at the
tolerances of the measures. For faults that no preset flags, a bound that separates the twins is checked on both, and the reason
is printed.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults import REPORTED, ReportedFault, changed, flagged, holds, measured

SEEDS = range(8)
TINY = ("second-bias", "softmax-of-one")


@dataclass(frozen=True)
class Row:
    """What is seen of one fault."""

    entry: ReportedFault
    preset: Sequence[str]
    baseline: Sequence[str]
    twin: Sequence[str]
    """Bounds of the preset that the healthy twin violates."""

    def __str__(self) -> str:
        entry = self.entry
        cells = (f"`{entry.slug}`", entry.report, entry.fault, names(self.preset), names(self.baseline))
        return f"| {' | '.join(cells)} |"


def names(measures: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in measures) or "–"


def row(entry: ReportedFault, seeds: range) -> Row:
    flawed, healthy = measured(entry.flawed, seeds), measured(entry.healthy, seeds)
    return Row(
        entry,
        preset=list(flagged(entry.flawed, flawed)),
        baseline=list(changed(healthy, flawed)),
        twin=list(flagged(entry.healthy, healthy)),
    )


def seen_by(entry: ReportedFault, seeds: range) -> str:
    """Return the bound that separates the twins, or an objection where it does not."""
    if entry.bound is None:
        return "no bound"
    name, bound = entry.bound
    healthy, flawed = (holds(case, name, bound, seeds) for case in (entry.healthy, entry.flawed))
    verdict = "" if healthy and not flawed else f", which does not separate the twins: {healthy}, {flawed}"
    return f"`{name}` {bound}{verdict}"


def report(entries: Sequence[ReportedFault], seeds: range = SEEDS) -> None:
    print("| name | report | fault | flagged by the preset | moved from the baseline |")
    print("|---|---|---|---|---|")
    rows = []
    for entry in entries:
        rows.append(row(entry, seeds))
        print(rows[-1], flush=True)
    print("\n| name | bound that separates the twins | why the preset does not flag it |")
    print("|---|---|---|")
    for found in rows:
        if not found.preset:
            print(f"| `{found.entry.slug}` | {seen_by(found.entry, seeds)} | {found.entry.why} |", flush=True)
    print()
    print(summary(rows))


def summary(rows: Sequence[Row]) -> str:
    faults = [row for row in rows if not row.entry.harmless]
    harmless = [row for row in rows if row.entry.harmless]
    preset = sum(bool(row.preset) for row in faults)
    baseline = sum(bool(row.baseline) for row in faults)
    either = sum(bool(row.preset or row.baseline) for row in faults)
    twins = [f"{row.entry.slug} ({', '.join(row.twin)})" for row in rows if row.twin]
    return (
        f"faults flagged by the preset {preset} of {len(faults)}, by the baseline {baseline}, by either {either}; "
        f"harmless changes flagged by the preset {sum(bool(row.preset) for row in harmless)} of {len(harmless)}; "
        f"healthy twins flagged {len(twins)} of {len(rows)}: {', '.join(twins) or '–'}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of the faults; default: all")
    parser.add_argument("--tiny", action="store_true", help="two faults on one seed: checks that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
    wanted = TINY if given.tiny else given.names
    entries = [entry for entry in REPORTED if not wanted or entry.slug in wanted]
    report(entries, range(1) if given.tiny else SEEDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
