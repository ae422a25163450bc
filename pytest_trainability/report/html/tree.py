"""The module tree of a check, with repeated blocks folded, and badges at the modules that are at fault."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...records.names import folded, template
from .tables import expand

__all__ = ["Badge", "Node", "faults", "first_outside", "tree"]

MOST_PLACES = 200_000
"""Number of names above which modules are no longer told apart."""
_FROM_OUTPUT = re.compile(r"(\d{1,9}) of \d+ steps from the output$")
_CALL = re.compile(r"\[\d+\]$")
_LIST = re.compile(r"\{((?:[\d-]+,){2})(?:[\d-]+,){2,}([\d-]+)\}")
"""A list of at least five numbers or ranges in a pattern of names."""
_WORDS = re.compile(r"[\w.\[\]{}*-]*\w[\w.\[\]{}*-]*")
_FIRST = re.compile(r"^[^\W\d]\S*")
"""The first word of a line, unless it is a number."""
_PARENTHESES = re.compile(r"\(([^()]*)\)")
_DOTTED = re.compile(r"[^\W\d]\w*\.[\w.\[\]{}*,-]+")


@dataclass(frozen=True, slots=True)
class Badge:
    """What is at fault in a module."""

    kind: str
    """``outside``, ``violation``, ``changed`` or ``cause``."""
    text: str


@dataclass(frozen=True, slots=True)
class Node:
    """A module, or several that are alike."""

    name: str
    """Its name without that of the module around it."""
    path: str
    kind: str
    count: int
    steps: tuple[int, ...]
    """Places of its steps on the chain."""
    badges: tuple[Badge, ...]
    children: tuple[Node, ...]

    @property
    def short(self) -> str:
        """Its name with long lists of numbers shortened: ``{0,2,…,38}``."""
        return _LIST.sub(r"{\1…,\2}", self.name)

    @property
    def leads_to_fault(self) -> bool:
        """Whether a module inside it has a badge."""
        return any(child.badges or child.leads_to_fault for child in self.children)

    @property
    def ranges(self) -> str:
        """Places of its steps as ranges, such as ``0-11``."""
        return ",".join(f"{first}-{last}" if first != last else f"{first}" for first, last in _runs(self.steps))


def _runs(places: Iterable[int]) -> Iterator[tuple[int, int]]:
    start = previous = None
    for place in places:
        if start is None or previous is None or place != previous + 1:
            if start is not None and previous is not None:
                yield start, previous
            start = place
        previous = place
    if start is not None and previous is not None:
        yield start, previous


@dataclass(frozen=True, slots=True)
class _Places:
    """Which module of the tree a name belongs to."""

    exact: dict[str, str] = field(default_factory=dict)
    """Path of the node by the name of a module."""

    def of(self, name: str) -> str | None:
        """Return the path of the module of a step or parameter: of that name, or of the nearest one around it."""
        found = _CALL.sub("", name)
        while found:
            if found in self.exact:
                return self.exact[found]
            found = found.rpartition(".")[0]
        return self.exact.get("")


def tree(
    modules: Sequence[Mapping[str, Any]], steps: Sequence[str], badges: Iterable[tuple[str, Badge]]
) -> tuple[Node, ...]:
    """Return the module tree.

    Args:
        modules: The list ``modules`` of a check. Without any, the steps stand for the modules.
        steps: Names of the steps, in program order.
        badges: Names of what is at fault, with a badge.
    """
    rows = [(one["name"], one["kind"], one["count"]) for one in modules]
    rows = rows or [(pattern, "", len(names)) for pattern, names in folded(map(_called, steps)).items()]
    places = _Places()
    for path, _, _ in rows:
        names = expand(path) if len(places.exact) < MOST_PLACES else [path]
        places.exact.update(dict.fromkeys([path, *names], path))
    of_steps: dict[str, list[int]] = {}
    for place, name in enumerate(steps):
        of_steps.setdefault(places.of(name) or "", []).append(place)
    of_badges: dict[str, dict[Badge, None]] = {}
    for name, badge in badges:
        of_badges.setdefault(_place_of_pattern(places, name), {})[badge] = None
    inside: dict[str | None, list[tuple[str, str, int]]] = {}
    for row in rows:
        inside.setdefault(_parent(places, row[0]), []).append(row)
    return tuple(_nodes(None, inside, of_steps, of_badges))


def _called(step: str) -> str:
    return _CALL.sub("", step)


def _place_of_pattern(places: _Places, name: str) -> str:
    return places.of(name) or places.of(expand(name)[0]) or ""


def _parent(places: _Places, path: str) -> str | None:
    """Return the path of the module around a module; None for an outermost one."""
    if not path:
        return None
    for name in dict.fromkeys([path, expand(path)[0]]):
        around = name.rpartition(".")[0]
        while around:
            if around in places.exact and places.exact[around] != path:
                return places.exact[around]
            around = around.rpartition(".")[0]
    return "" if "" in places.exact else None


def _nodes(
    parent: str | None,
    inside: Mapping[str | None, Sequence[tuple[str, str, int]]],
    of_steps: Mapping[str, Sequence[int]],
    of_badges: Mapping[str, Iterable[Badge]],
) -> Iterator[Node]:
    for path, kind, count in inside.get(parent, ()):
        name = path.removeprefix(f"{parent}.") if parent else path
        yield Node(
            name,
            path,
            kind,
            count,
            tuple(of_steps.get(path, ())),
            tuple(of_badges.get(path, ())),
            tuple(_nodes(path, inside, of_steps, of_badges)),
        )


def first_outside(check: Mapping[str, Any]) -> int | None:
    """Return the place of the step at which the accumulated log gain leaves its bound; None if it does not.

    Args:
        check: A check of the document.
    """
    found, steps = _FROM_OUTPUT.search(check["leaves_band"]), check["steps"]["names"]
    place = len(steps) - int(found[1]) if found else -1
    return place if 0 <= place < len(steps) else None


def faults(check: Mapping[str, Any]) -> Iterator[tuple[str, Badge]]:
    """Yield the names of what is at fault in a check, with a badge.

    Args:
        check: A check of the document.
    """
    steps, outside = check["steps"]["names"], first_outside(check)
    if outside is not None:
        yield steps[outside], Badge("outside", f"leaves the bound at {steps[outside]}")
    for verdict in check["verdicts"]:
        if not verdict["holds"]:
            names = [verdict["where"], *(name for name, _ in verdict["worst"]), *verdict["names"]]
            yield from ((name, Badge("violation", verdict["measure"])) for name in names if name)
    baseline = check["baseline"]
    for change in baseline["changes"] if baseline and baseline["status"] == "changed" else ():
        names = [change["element"], *change["elements"]]
        yield from ((name, Badge("changed", change["measure"])) for name in names if name)
    words = _named(check["cause"])
    for module in check["modules"]:
        path = module["name"]
        if not words.isdisjoint((path, template(path), *expand(path))):
            yield path, Badge("cause", "likely cause")


def _named(lines: Iterable[str]) -> set[str]:
    """Return the words of the lines on the likely cause that may name modules.

    >>> sorted(_named(["19 × Sigmoid (1, 3, …) have slopes of rms 0.244", "h.0 alone contributes 3 of 6 nats"]))
    ['1', '3', 'h.0']
    """
    texts = [text for line in lines for text in (*_FIRST.findall(line), *_PARENTHESES.findall(line))]
    words = {word.strip(".,") for text in texts for word in _WORDS.findall(text)}
    return words | {word.strip(".,") for line in lines for word in _DOTTED.findall(line)}
