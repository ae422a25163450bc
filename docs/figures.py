"""Copy the figures of docs/faults.md into the README and into the pages that cite them.

    python docs/figures.py            # or: make generated
    python docs/figures.py --check    # lists outdated files and exits with 1

The benchmarks write docs/faults.md. Here nothing is measured.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from rewriting import write_or_check

ROOT = Path(__file__).parents[1]
FAULTS = ROOT / "docs" / "faults.md"
OURS = "pytest-trainability"

SUMS = {
    "found by preset or lint, without configuration": "mistakes found by presets, without configuration",
    "found by the baseline of the twin": "… by the baseline of the healthy model",
    "found by preset, lint or baseline": "… by either of them",
    "place right, of what is found": "the report names the right module or parameter",
    "cause right, of what is found": "… and the right cause",
}
"""Rows of docs/faults.md, and what the README calls them."""
COLUMNS = {
    "found": "found",
    "false alarms on twins": "flagged although healthy: twins",
    "told from the twin": "told from its healthy twin",
    "false alarms on other healthy models": "flagged although healthy: other models",
}
"""Columns of the table of other packages, and what the other pages call them."""


def between(text: str, mark: str) -> str:
    """Return what stands between two comments.

    Raises:
        SystemExit: The comments are missing.
    """
    found = re.search(rf"<!-- {mark} -->\n(.*?)<!-- end of {mark} -->", text, re.DOTALL)
    if found is None:
        sys.exit(f"the comments <!-- {mark} --> and <!-- end of {mark} --> are missing")
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the lines of tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def result(faults: str, name: str) -> str:
    """Return the result of all faults in a row, as in ``82 of 126``.

    Raises:
        SystemExit: There is no such row.
    """
    for cells in rows(between(faults, "results")):
        if cells[0] == name:
            return cells[-1].partition("(")[2].rstrip(")") or cells[-1]
    return sys.exit(f"docs/faults.md has no row {name!r}")


def flagged(faults: str) -> str:
    """Return how many healthy models a preset flags.

    Raises:
        SystemExit: The line is missing.
    """
    found = re.search(r"healthy models flagged by a preset: (\d+ of \d+)", faults)
    return found[1] if found else sys.exit("docs/faults.md does not say how many healthy models a preset flags")


def sums(faults: str) -> str:
    """Return the table of what is found."""
    lines = [f"| {words} | {result(faults, name)} |" for name, words in SUMS.items()]
    return "\n".join(["| | |", "|---|---|", *lines, f"| healthy models flagged by a preset | {flagged(faults)} |"])


def packages(faults: str) -> str:
    """Return the table of other packages.

    Raises:
        SystemExit: A column is missing.
    """
    head, _, *others = rows(between(faults, "competitors"))
    names = [re.sub(r" \(\d+\)$", "", name) for name in head]
    if missing := [name for name in COLUMNS if name not in names]:
        sys.exit(f"the table of other packages in docs/faults.md has no column {missing[0]!r}")
    chosen = [names.index(name) for name in COLUMNS]
    numbers = [re.sub(r".*(\(\d+\))$", r"\1", head[index]) for index in chosen]
    titles = [f"{words} {number}" for words, number in zip(COLUMNS.values(), numbers)]
    lines = [[f"**{cells[0]}**" if cells[0] == OURS else cells[0], *(cells[i] for i in chosen)] for cells in others]
    table = [["package", *titles], ["---"] * (len(titles) + 1), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def missed(faults: str) -> str:
    """Return the list of what was missed, without the names where there are many."""
    lines = re.findall(r"^- (.+?) \((\d+)\): (.*)$", between(faults, "results"), re.MULTILINE)
    named = [(kind, number, names if 0 < int(number) <= 5 else "") for kind, number, names in lines]
    return "\n".join(
        ["| | mistakes | |", "|---|---|---|", *(f"| {kind} | {number} | {names} |" for kind, number, names in named)]
    )


def kinds_of_tests(faults: str) -> str:
    """Return how many mistakes each kind of test can find, from the list of all faults.

    Raises:
        SystemExit: The list has no column on baselines.
    """
    head, _, *scored = rows(between(faults, "results").partition("### All faults")[2])
    if "baseline" not in head:
        sys.exit("the list of all faults in docs/faults.md has no column 'baseline'")
    column = head.index("baseline")
    found = {
        "initial values: any test of standard deviations, at best": {"initial values"},
        "classes of modules: any comparison of `print(model)`, at best": {"modules"},
        "gradient norms of parameters": {"gradient_norm"},
        "… or the growth of gradients along depth": {"gradient_norm", "log_gain", "growth_rate"},
        "… or anything that a baseline records": {*re.findall(r"`(.+?)`", " ".join(cells[column] for cells in scored))},
    }
    numbers = {
        words: sum(bool(names & {*re.findall(r"`(.+?)`", cells[column])}) for cells in scored)
        for words, names in found.items()
    }
    lines = [f"| {words} | {number} of {len(scored)} |" for words, number in numbers.items()]
    return "\n".join(["| compared with the healthy model | mistakes that show |", "|---|---|", *lines])


FIGURES: dict[str, dict[str, Callable[[str], str]]] = {
    "README.md": {"sums": sums, "packages": packages},
    "docs/comparison.md": {"packages": packages, "kinds": kinds_of_tests},
    "docs/limits.md": {"sums": sums, "missed": missed},
}
"""What is copied into each page, by the name of the comments around it."""


def with_figures(text: str, page: str, faults: str) -> str:
    """Return the text of a page with the present figures."""
    for mark, figures in FIGURES[page].items():
        old = f"<!-- {mark} -->\n{between(text, mark)}<!-- end of {mark} -->"
        text = text.replace(old, f"<!-- {mark} -->\n\n{figures(faults)}\n\n<!-- end of {mark} -->")
    return text


def main() -> int:
    """Write the pages, or check whether they are up to date."""
    faults = FAULTS.read_text(encoding="utf-8")
    old = {page: (ROOT / page).read_text(encoding="utf-8") for page in FIGURES}
    return write_or_check(__doc__, {ROOT / page: with_figures(text, page, faults) for page, text in old.items()}, ROOT)


if __name__ == "__main__":
    sys.exit(main())
