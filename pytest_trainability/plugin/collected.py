"""The tests and files that a session has collected, and the options that leave tests out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .collection import MARKER
from .paths import from_text, to_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "BASELINE_FILE",
    "COLLECTED",
    "Collected",
    "narrowing_options",
    "node_id",
    "send_collected",
    "without_group",
    "without_parameters",
]

BASELINE_FILE = pytest.StashKey[Path]()
"""The file with the baselines of a test, where that is not the one of its module."""
_OUTPUT = "trainability_collected"
_NARROWING = {
    "-k": "keyword",
    "-m": "markexpr",
    "--deselect": "deselect",
    "--lf": "lf",
    "--sw": "stepwise",
    "--sw-skip": "stepwise_skip",
}


class Collected:
    """Files of tests that could be collected, their tests, and the measuring tests that were selected to run."""

    def __init__(self) -> None:
        self.files: dict[Path, set[bool]] = {}
        """Kinds of tests that were collected from each file: Python tests (False), and doctests or tables (True)."""
        self.tests: dict[str, Path] = {}
        """File of every test by node id, including deselected tests. Any of them may take the fixture while it runs."""
        self.named: dict[Path, set[Path]] = {}
        """Files of baselines that the tests of a file name."""
        self.measuring: set[str] = set()
        """Tests that are known to measure."""
        self.selected: set[str] = set()

    def add_file(self, collector: pytest.Collector, *, complete: bool) -> None:
        """Note a file whose tests could be collected. A class in it that could not be collected makes it incomplete."""
        if not complete:
            self.files.pop(collector.path, None)
        elif isinstance(collector, pytest.Module):
            self.files.setdefault(collector.path, set()).add(_is_doctest(collector))

    def add_test(self, item: pytest.Item) -> None:
        """Note a test, and whether it is known to measure."""
        self.tests[item.nodeid] = item.path
        if (named := item.stash.get(BASELINE_FILE, None)) is not None:
            self.named.setdefault(item.path, set()).add(named)
        if item.get_closest_marker(MARKER) is not None:
            self.measuring.add(item.nodeid)

    def select(self, items: Sequence[pytest.Item]) -> None:
        """Note the tests that are left after all plugins have deselected tests."""
        self.selected = {node_id(item) for item in items} & self.measuring

    def to_plain(self) -> dict[str, Any]:
        """Return plain data for the xdist controller, which collects nothing; files need a folder of baselines."""
        from ..checks.baseline_files import FOLDER

        folders = {folder for folder in {path.parent for path in self.files} if (folder / FOLDER).is_dir()}
        files = {path: kinds for path, kinds in self.files.items() if path.parent in folders or path in self.named}
        return {
            "files": {to_text(path): sorted(kinds) for path, kinds in files.items()},
            "tests": {test: to_text(path) for test, path in self.tests.items() if path in files},
            "named": {to_text(path): sorted(map(to_text, named)) for path, named in self.named.items()},
            "measuring": sorted(self.measuring),
            "selected": sorted(self.selected),
        }

    def read_worker(self, node: Any) -> None:
        """Take over the collection of an xdist worker. A crashed worker sends nothing, but all workers collect the same tests."""
        plain: Mapping[str, Any] | None = getattr(node, "workeroutput", {}).get(_OUTPUT)
        if plain:
            self.files |= {from_text(path): set(kinds) for path, kinds in plain["files"].items()}
            self.tests |= {test: from_text(path) for test, path in plain["tests"].items()}
            self.named |= {from_text(path): set(map(from_text, named)) for path, named in plain["named"].items()}
            self.measuring |= set(plain["measuring"])
            self.selected |= set(plain["selected"])


def _is_doctest(collector: pytest.Collector) -> bool:
    """Whether a collector reads doctests, from a module or from a text file, or tests that are tables: all but Python tests."""
    return type(collector).__name__ in {"DoctestModule", "DoctestTextfile", "GateFile"}


COLLECTED = pytest.StashKey[Collected]()


def send_collected(config: pytest.Config) -> None:
    """In a worker of xdist, send the collected tests to the controller."""
    if hasattr(config, "workeroutput"):
        config.workeroutput[_OUTPUT] = config.stash[COLLECTED].to_plain()


def node_id(item: pytest.Item) -> str:
    """Return the node id of a test, the same in a worker of xdist as in the controller."""
    return without_group(item.nodeid, grouped=item.config.getoption("loadgroup", default=False))


def without_group(nodeid: str, *, grouped: bool) -> str:
    """Remove the group that ``--dist loadgroup`` appends to node ids in the workers, with pytest before 9.2."""
    return nodeid.rpartition("@")[0] if grouped and nodeid.rfind("@") > nodeid.rfind("]") else nodeid


def without_parameters(test: str) -> str:
    """Return the name of a test without its parameters: ``test_a`` for ``test_a[3]``."""
    return test.partition("[")[0]


def narrowing_options(config: pytest.Config) -> list[str]:
    """Return the options of this session that leave out some tests of a module."""
    given = [option for option, name in _NARROWING.items() if config.getoption(name, None)]
    return [*given, *(["a node id"] if any("::" in str(argument) for argument in config.args) else [])]
