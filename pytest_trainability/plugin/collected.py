"""The tests and modules that a session has collected, and the options that leave tests out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .collection import MARKER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["COLLECTED", "Collected", "narrowing_options", "node_id", "send_collected", "without_group"]

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
    """Test modules that could be imported, tests that measure, and the tests among them that were selected to run."""

    def __init__(self) -> None:
        self.modules: set[Path] = set()
        self.measuring: dict[str, Path] = {}
        """Module of every test that measures, by node id, including deselected tests."""
        self.selected: set[str] = set()

    def add_module(self, path: Path) -> None:
        """Note a module that could be imported."""
        self.modules.add(path)

    def add_test(self, item: pytest.Item) -> None:
        """Note a test if it measures."""
        if item.get_closest_marker(MARKER) is not None:
            self.measuring[item.nodeid] = item.path

    def select(self, items: Sequence[pytest.Item]) -> None:
        """Note the tests that are left after all plugins have deselected tests."""
        self.selected = {node_id(item) for item in items} & self.measuring.keys()

    def to_plain(self) -> dict[str, Any]:
        """Return plain data for the xdist controller, which collects nothing; modules need a folder of baselines."""
        from ..checks.baseline_files import FOLDER

        return {
            "modules": [str(path) for path in self.modules if (path.parent / FOLDER).is_dir()],
            "measuring": {test: str(path) for test, path in self.measuring.items()},
            "selected": sorted(self.selected),
        }

    def read_worker(self, node: Any) -> None:
        """Take over the collection of an xdist worker. A crashed worker sends nothing, but all workers collect the same tests."""
        plain: Mapping[str, Any] | None = getattr(node, "workeroutput", {}).get(_OUTPUT)
        if plain:
            self.modules |= {Path(path) for path in plain["modules"]}
            self.measuring.update({test: Path(path) for test, path in plain["measuring"].items()})
            self.selected |= set(plain["selected"])


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


def narrowing_options(config: pytest.Config) -> list[str]:
    """Return the options of this session that leave out some tests of a module."""
    given = [option for option, name in _NARROWING.items() if config.getoption(name, None)]
    return [*given, *(["a node id"] if any("::" in str(argument) for argument in config.args) else [])]
