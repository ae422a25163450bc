"""Scored faults: found, place right, cause right, cure right; and false alarms on healthy models.

    python benchmarks/faults.py                      # everything, in about an hour on one core
    python benchmarks/faults.py --untrained          # without training: a quarter of an hour
    python benchmarks/faults.py root-of-zero ...     # some of the faults, by name
    python benchmarks/faults.py --unseen C D         # those of groups C and D only
    python benchmarks/faults.py --save FILE          # continue from the results in a file, and add to them
    python benchmarks/faults.py --save FILE --record # write docs/faults.md from the results
    python benchmarks/faults.py --tiny               # checks in a few seconds that it runs

The faults and the healthy models are those of ``tests/faults``. Each fault declares what a report on it ought to say. It can be
found by the preset of its family, of which the measures that return names are the lint; by the contract that was written for
the healthy twin; and by the baseline of the twin, on the same seeds. If no preset finds it, the bounds that the pages of other
measures recommend are tried.

A cure is right if it brings back what had failed on two other seeds, and the cured model trains no worse than the twin. Fault,
twin and cured model are trained on a task that can be learned, for the same number of steps at each of three learning
rates; the best rate counts for each. The loss is the mean over the last fifth of the steps. A model trains worse if its loss
exceeds its twin's by more than 0.1 nats on both seeds.

A hash of its name puts each fault into half A, which may be looked at when thresholds are chosen, or into half B. Groups C
and D hold faults by someone who had not seen the code, on which no threshold may be chosen before they have been scored.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

from torchvision_for_cpu import declare_torchvision_operators

declare_torchvision_operators()

from faults import HEALTHY, MORE_HEALTHY, SCORED, UNSEEN, Case, changed, flagged, group, measured
from faults.pages import write_between
from faults.scoring import OF_BASELINES, Score, breaks_contract, score, with_cures_tried, with_training

from pytest_trainability.measurement import Measurement

PAGE = ROOT / "docs" / "faults.md"
OTHERS = range(4, 8)
"""Seeds of the second baseline of a healthy model."""
UNTRAINED = {
    "a parameter of torch.empty",  # Differs from run to run: it holds the previous content of the memory.
    "product-of-a-parameter",  # The second step raises: the graph of the product is gone.
}
"""Faults that are not trained."""
ALL = (*SCORED, *UNSEEN)
GROUPS = {
    "A": "A",
    "B": "B",
    "C": "C: written by someone who had not seen the code",
    "D": "D: a second list by someone who had not seen the code",
}
"""Groups of faults, and their columns."""
TINY = ("layer-of-small-weights", "causal-leak")


@dataclass(frozen=True)
class Alarm:
    """What was said about a healthy model."""

    name: str
    is_twin: bool
    preset: list[str]
    baseline: list[str]
    """Changes from the baseline of other seeds of the same model."""


@cache
def measured_twin(case: Case) -> Measurement:
    return measured(case, OF_BASELINES, bounds={})


def alarm(case: Case, *, is_twin: bool) -> Alarm:
    found = flagged(case, measured(case, OF_BASELINES))
    moved = changed(measured_twin(case), measured(case, OTHERS, bounds={}))
    return Alarm(case.id, is_twin, list(found), list(moved))


def twins_of_faults(faults: Iterable[Case]) -> list[Case]:
    """Return the healthy twins of faults that are not in the lists of healthy models."""
    listed = {case.id for case in (*HEALTHY, *MORE_HEALTHY)}
    twins = {case.twin.id: case.twin for case in faults if case.twin is not None}
    return [twin for name, twin in twins.items() if name not in listed]


# Saved results ----------------------------------------------------------------------------------------------------


class Results:
    """Scores and alarms, each a line of a file, so that a run can be continued."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.scores: dict[str, Score] = {}
        self.alarms: dict[str, Alarm] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else ():
            found = json.loads(line)
            if "half" in found:
                self.scores[found["name"]] = Score(**found)
            else:
                self.alarms[found["name"]] = Alarm(**found)

    def add(self, found: Score | Alarm) -> None:
        """Keep a result, and write it to the file."""
        if isinstance(found, Score):
            self.scores[found.name] = found
        else:
            self.alarms[found.name] = found
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(found), ensure_ascii=False) + "\n")


# Sums -------------------------------------------------------------------------------------------------------------

Column = Callable[[Score], bool | None]
"""Whether something is right; None where there is nothing to judge."""


def found_without(s: Score) -> bool:
    """Return whether the fault is found without configuration or reference."""
    return bool(s.preset)


def found_at_all(s: Score) -> bool:
    return bool(s.preset or s.baseline)


SUMS: tuple[tuple[str, Column, str], ...] = (
    ("found by preset or lint, without configuration", lambda s: found_without(s) if s.visible else None, "0.60"),
    ("… by lint alone", lambda s: bool(s.lint) if s.visible else None, ""),
    ("found by the contract of the twin", lambda s: s.contract if s.visible else None, ""),
    ("found by the baseline of the twin", lambda s: bool(s.baseline) if s.visible else None, ""),
    ("found by preset, lint or baseline", lambda s: found_at_all(s) if s.visible else None, "0.97"),
    (
        "found by these, the contract or a recommended bound",
        lambda s: found_at_all(s) or bool(s.contract or s.asked) if s.visible else None,
        "",
    ),
    ("place right, of what preset or lint find", lambda s: s.place if s.preset and s.visible else None, ""),
    ("place right, of what is found", lambda s: s.place if s.visible else None, "0.90"),
    ("cause right, of what preset or lint find", lambda s: s.cause if s.preset and s.visible else None, ""),
    ("cause right, of what is found", lambda s: s.cause if s.visible else None, "0.80"),
    (
        "cure offered, of what preset or lint find and has one",
        lambda s: bool(s.cures) if s.has_cure and s.preset else None,
        "",
    ),
    ("… brings the measure back on other seeds", lambda s: s.back, ""),
    ("… and trains no worse than the twin", lambda s: None if s.back is None else bool(s.trains), "0.70"),
    (
        "the same, of all visible faults that have a cure",
        lambda s: bool(s.trains) if s.has_cure and s.visible else None,
        "",
    ),
    ("trains worse than the twin", lambda s: s.worse, ""),
    ("found, of those that train worse", lambda s: found_at_all(s) if s.worse else None, ""),
)


def ratio(scores: Iterable[Score], column: Column) -> str:
    judged = [found for s in scores if (found := column(s)) is not None]
    return f"{sum(judged) / len(judged):.2f} ({sum(judged)} of {len(judged)})" if judged else "–"


def sums(scores: Sequence[Score]) -> Iterator[str]:
    """Yield a table of all sums, for each group and together."""
    groups = {title: [s for s in scores if s.half == name] for name, title in GROUPS.items()}
    yield f"| | target | {' | '.join(f'{title} ({len(part)} faults)' for title, part in groups.items())} | all |"
    yield f"|---|---|{'---|' * len(groups)}---|"
    for name, column, target in SUMS:
        cells = [ratio(part, column) for part in (*groups.values(), scores)]
        yield f"| {name} | {target} | {' | '.join(cells)} |"


def alarm_sums(alarms: Sequence[Alarm]) -> Iterator[str]:
    for is_twin, what in ((False, "healthy models"), (True, "healthy twins of faults")):
        some = [a for a in alarms if a.is_twin == is_twin]
        for kind in ("preset", "baseline"):
            raised = {a.name: getattr(a, kind) for a in some if getattr(a, kind)}
            names = "; ".join(f"{name} ({', '.join(flags)})" for name, flags in raised.items())
            by = "a preset" if kind == "preset" else "a baseline of other seeds of the same model"
            yield f"- {what} flagged by {by}: {len(raised)} of {len(some)}{': ' + names if names else ''}"


def misses(scores: Sequence[Score]) -> Iterator[str]:
    """Yield the names of the faults on which something was missed, by kind."""
    kinds: tuple[tuple[str, Column], ...] = (
        ("found by nothing", lambda s: s.visible and not (found_at_all(s) or s.contract or s.asked)),
        (
            "found by a recommended bound or a contract only",
            lambda s: s.visible and not found_at_all(s) and bool(s.contract or s.asked),
        ),
        ("wrong or no place", lambda s: s.visible and s.place is False),
        ("wrong or no cause", lambda s: s.visible and s.cause is False),
        ("no cure found", lambda s: s.has_cure and bool(s.preset) and not s.cures),
        ("cure does not hold on other seeds", lambda s: s.back is False and bool(s.cures)),
        ("cured model trains worse", lambda s: bool(s.back) and s.trains is False),
    )
    for kind, missed in kinds:
        names = [f"`{s.name}`" for s in scores if missed(s)]
        yield f"- {kind} ({len(names)}): {', '.join(names) or '–'}"


# The table --------------------------------------------------------------------------------------------------------

MARKS = {True: "yes", False: "no", None: ""}


def row(s: Score) -> str:
    names = [", ".join(f"`{name}`" for name in names) or "–" for names in (s.preset, s.baseline)]
    cure = None if s.back is None else bool(s.trains)
    others = "contract" if s.contract else ""
    others = ", ".join(filter(None, (others, *(f"`{name}`" for name in s.asked))))
    marks = [MARKS[value] for value in (s.place, s.cause, cure, s.worse)]
    cells = (s.name, s.half, names[0], names[1], others, *marks, f"{s.seconds:.1f}")
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| fault | group | preset or lint | baseline | else | place | cause | cure | trains worse | seconds |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def run_scores(cases: Sequence[Case], results: Results, *, train: bool, steps: int | None = None) -> None:
    """Score faults as far as they are not scored yet, first without training."""
    for case in cases:
        if case.id not in results.scores:
            results.add(score(case, twin_of=measured_twin, half=group(case)))
            print(row(results.scores[case.id]), flush=True)
    for case in cases if train else ():
        found = results.scores[case.id]
        if found.back is None and found.has_cure and found.preset:
            results.add(with_cures_tried(case, found, steps=steps))
            print(row(results.scores[case.id]), flush=True)
    for case in cases:
        found = results.scores[case.id]
        if found.contract is None:
            results.add(replace(found, contract=breaks_contract(case)))
    for case in cases if train else ():
        found = results.scores[case.id]
        if found.worse is None and case.id not in UNTRAINED:
            results.add(with_training(case, found, steps=steps))
            print(row(results.scores[case.id]), flush=True)


def run_healthy(results: Results, cases: Sequence[tuple[Case, bool]]) -> None:
    for case, is_twin in cases:
        if case.id not in results.alarms:
            results.add(alarm(case, is_twin=is_twin))


def report(results: Results) -> str:
    scores = [results.scores[case.id] for case in ALL if case.id in results.scores]
    lines = [*sums(scores), "", *alarm_sums([*results.alarms.values()]), "", *misses(scores)]
    return "\n".join(lines)


def record(results: Results) -> None:
    """Write the results into the page."""
    rows = [row(results.scores[case.id]) for case in ALL if case.id in results.scores]
    found = "\n".join([report(results), "", "### All faults", "", HEAD, *rows])
    write_between(PAGE, "results", found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="names of faults; default: all, and the healthy models"
    )
    parser.add_argument("--untrained", action="store_true", help="do not train")
    parser.add_argument("--save", type=Path, help="file of results, which is continued")
    parser.add_argument(
        "--unseen", nargs="+", choices=("C", "D"), help="score the faults of these groups and their twins only"
    )
    parser.add_argument("--healthy", action="store_true", help="judge the healthy models only")
    parser.add_argument("--record", action="store_true", help="write the saved results to docs/faults.md")
    parser.add_argument("--tiny", action="store_true", help="two faults, five steps: checks that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results, began = Results(given.save), time.process_time()
    if given.record:
        record(results)
        return 0
    names = TINY if given.tiny else given.names
    faults = [case for case in ALL if not given.unseen or case.unseen in given.unseen]
    cases = [] if given.healthy else [case for case in faults if not names or case.id in names]
    run_scores(cases, results, train=not given.untrained, steps=5 if given.tiny else None)
    if given.tiny:
        run_healthy(results, [(case, False) for case in HEALTHY if case.id == "shallow tanh network"])
    elif not names:
        healthy = () if given.unseen else (*HEALTHY, *MORE_HEALTHY)
        run_healthy(results, [*((c, False) for c in healthy), *((c, True) for c in twins_of_faults(faults))])
    print(f"\n{report(results)}\n{time.process_time() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
