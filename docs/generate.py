"""Generate two files from the declarations of the measures: their typed attributes, and the index of their pages.

    python docs/generate.py            # or: make generated
    python docs/generate.py --check    # lists outdated files and exits with 1

``pytest_trainability/measures/attributes.py`` gets one annotation per measure, according to its kind.
``docs/measures/index.md`` gets one row per measure, with the question from its page, in a table for each family. It also gets a
table of costs, which ``python benchmarks/measures.py --record`` writes to ``benchmarks/costs.json``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from rewriting import write_or_check

from pytest_trainability.measures import FAMILIES, Measure, declared_measures

ROOT = Path(__file__).parents[1]
ATTRIBUTES = ROOT / "pytest_trainability" / "measures" / "attributes.py"
PAGES = ROOT / "docs" / "measures"
INDEX = PAGES / "index.md"
COSTS = ROOT / "benchmarks" / "costs.json"
TYPES = {"scalar": "Estimate", "spectrum": "Spectrum", "profile": "Profile", "names": "Names"}

INTRODUCTION = """# Measures

A chain $x_0 → x_1 → … → x_L$ has the step Jacobians $J_l = ∂x_l/∂x_{l-1}$. The backward pass carries a cotangent
$u_{l-1} = J_l^⊤ u_l$ from the last state to the first. Logarithms are natural: 1 nat is a factor of e. Values are averaged over
trajectories first (over samples, if samples do not interact) and then over seeds.

Every measure is an attribute of a measurement and a name for a bound. Measures that are requested together share one run.
Quantities that no requested measure needs are not computed. Each page gives the definition, the assumptions, when the measure
misleads, its cost and its source.
"""

TREE = """
```{toctree}
:hidden:
:glob:

*
```
"""


def family_of(measure: Measure) -> str:
    """Return the family that declares a measure."""
    return measure.read.__module__.split(".")[-2]


def attributes() -> str:
    """Return the text of the module of typed attributes."""
    lines = "\n".join(f"        {m.name}: {TYPES[m.kind]}" for m in declared_measures())
    return f'''"""The measures as typed attributes, for type checkers and editors.

Written by ``make generated`` from the declarations of the measures; do not edit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..records.estimates import Estimate, Names, Profile, Spectrum

__all__ = ["Attributes"]


class Attributes:
    """One attribute per measure, by its kind."""

    if TYPE_CHECKING:
{lines}
'''


def question_of(name: str) -> str:
    """Return the question at the beginning of a measure's page.

    Raises:
        SystemExit: There is no page, or it does not begin with a title and a question.
    """
    page = PAGES / f"{name}.md"
    found = re.match(r"# .+\n\n\*(.+\?)\*\n", page.read_text(encoding="utf-8")) if page.is_file() else None
    if found is None:
        sys.exit(f"{page.relative_to(ROOT)} must begin with a title and a question in italics: *How large is …?*")
    return found[1]


def tables() -> Iterator[str]:
    """Yield a heading and a table for each family."""
    for family in FAMILIES:
        title = (import_module(f"pytest_trainability.measures.{family}").__doc__ or family).strip().rstrip(".")
        yield f"\n## {title}\n\n| measure | question |\n|---|---|"
        yield from (
            f"| [`{m.name}`]({m.name}.md) | {question_of(m.name)} |"
            for m in declared_measures()
            if family_of(m) == family
        )


def costs() -> Iterator[str]:
    """Yield the table of costs."""
    recorded = json.loads(COSTS.read_text(encoding="utf-8"))
    yield f"\n## Costs\n\n{recorded['conditions']}\n"
    yield "| measure | " + " | ".join(recorded["models"]) + " |"
    yield "|---|" + "---|" * len(recorded["models"])
    for m in declared_measures():
        row = recorded["costs"].get(m.name, ["not measured yet"] * len(recorded["models"]))
        cells = ("–" if cost is None else cost if isinstance(cost, str) else f"{cost:.2g}" for cost in row)
        yield f"| `{m.name}` | " + " | ".join(cells) + " |"


def index() -> str:
    """Return the text of the index of pages."""
    return "\n".join([INTRODUCTION.rstrip("\n"), *tables(), *costs(), TREE.rstrip("\n")]) + "\n"


def main() -> int:
    """Write the files, or check whether they are up to date."""
    return write_or_check(__doc__, {ATTRIBUTES: attributes(), INDEX: index()}, ROOT)


if __name__ == "__main__":
    sys.exit(main())
