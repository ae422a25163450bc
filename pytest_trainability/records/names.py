"""Names that differ by numbers only, folded into patterns such as ``blocks.{0-11}.proj.weight``."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import TypeAlias, TypeVar

__all__ = [
    "MOST_NAMES",
    "alike",
    "and_more",
    "expanded",
    "folded",
    "in_order_of",
    "number_of_names",
    "of_form",
    "template",
    "with_stars",
]

MOST_NAMES = 10**6
"""Largest number of names that a pattern may stand for."""

_Value = TypeVar("_Value")
_Part: TypeAlias = "str | frozenset[int]"
_NUMBERS = re.compile(r"\{(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\}")
_DIGITS = re.compile(r"[\d.+-]+")
_SEPARATORS = re.compile(r"([.\[\]])")
"""Dots between the names of modules, and brackets around the number of a call, as in ``cell[3]``."""


def folded(names: Iterable[str]) -> dict[str, list[str]]:
    """Return patterns that stand for names, with the names of each, in the order of the first name of each.

    Names are folded if they differ in one part only, and that part is a number between dots or in brackets.

    >>> list(folded(["blocks.0.w", "blocks.1.w", "blocks.3.w", "head.w"])), list(folded(["cell[0]", "cell[1]"]))
    (['blocks.{0-1,3}.w', 'head.w'], ['cell[{0-1}]'])
    """
    groups = {tuple(map(_part, _SEPARATORS.split(name))): [name] for name in names}
    for place in range(max((len(parts) for parts in groups), default=0)):
        groups = _merged(groups, place)
    return {"".join(map(_written, parts)): members for parts, members in groups.items()}


_ANY: frozenset[int] = frozenset()
"""Stands in a key for the numbers that are merged. No part is an empty set."""


def _merged(groups: Mapping[tuple[_Part, ...], list[str]], place: int) -> dict[tuple[_Part, ...], list[str]]:
    """Merge the groups that differ in the numbers at one place only, counted from the end."""
    merged: dict[tuple[_Part, ...], tuple[frozenset[int], list[str]]] = {}
    for parts, members in groups.items():
        index = len(parts) - 1 - place
        numbers = parts[index] if index >= 0 else ""
        key = parts if isinstance(numbers, str) else (*parts[:index], _ANY, *parts[index + 1 :])
        known, others = merged.get(key, (_ANY, []))
        merged[key] = known | (_ANY if isinstance(numbers, str) else numbers), [*others, *members]
    return {
        tuple(numbers if part == _ANY else part for part in key): members for key, (numbers, members) in merged.items()
    }


def expanded(pattern: str) -> list[str]:
    """Return the names that a pattern of :func:`folded` stands for.

    >>> expanded("blocks.{0-1,3}.w")
    ['blocks.0.w', 'blocks.1.w', 'blocks.3.w']

    Raises:
        ValueError: The pattern stands for more than ``MOST_NAMES`` names, or a number has thousands of digits.
    """
    if number_of_names(pattern) > MOST_NAMES:
        msg = f"{pattern!r} stands for more than {MOST_NAMES} names"
        raise ValueError(msg)
    return ["".join(parts) for parts in product(*map(_choices, _SEPARATORS.split(pattern)))]


def number_of_names(pattern: str) -> int:
    """Return the number of names that a pattern stands for, without writing them out.

    >>> number_of_names("blocks.{0-11}.w"), number_of_names("a.{0-99999999}.{0-9}"), number_of_names("head")
    (12, 1000000000, 1)

    Raises:
        ValueError: A number has thousands of digits.
    """
    # The length of a range has to fit into 64 bits.
    numbers = ([max(span.stop - span.start, 0) for span in _spans(part)] for part in _SEPARATORS.split(pattern))
    return math.prod(sum(sizes) or 1 for sizes in numbers)


def in_order_of(names: Iterable[str], by_pattern: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return values by pattern, in the order of the first name that each pattern stands for.

    >>> in_order_of(["a.0", "b", "a.1"], {"b": 1, "a.{0-1}": 2})
    {'a.{0-1}': 2, 'b': 1}
    """
    places = {name: place for place, name in enumerate(names)}
    return dict(sorted(by_pattern.items(), key=lambda item: min(places[name] for name in expanded(item[0]))))


def template(name: str) -> str:
    """Return a name, or a pattern, with ``*`` for each part that is a number or a set of numbers.

    >>> template("blocks.3.w"), template("blocks.{0-11}.w"), template("cell[3]")
    ('blocks.*.w', 'blocks.*.w', 'cell[*]')
    """
    parts = map(_part, _SEPARATORS.split(name))
    return "".join("*" if isinstance(part, frozenset) or _NUMBERS.fullmatch(part) else part for part in parts)


def with_stars(names: Collection[str], known: Iterable[str]) -> list[tuple[str, int, int]]:
    """Return short forms of names for a report: ``*`` for the numbers of names that differ by them.

    >>> with_stars(["blocks.0.w", "blocks.1.w", "head.w"], ["blocks.0.w", "blocks.1.w", "blocks.2.w", "head.w"])
    [('blocks.*.w', 2, 3), ('head.w', 1, 1)]

    Args:
        names: The names.
        known: All names of the same kind, those above among them.

    Returns:
        For each form, how many of the names have it, and how many of the known ones. A single name stands as it is.
    """
    counts, totals = Counter(map(template, names)), Counter(map(template, known))
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(template(name), name)
    return [
        (form if counts[form] > 1 else first[form], counts[form], totals[form] if counts[form] > 1 else 1)
        for form in first
    ]


def of_form(form: str, names: Iterable[str]) -> list[str]:
    """Return the names of one short form of :func:`with_stars`, folded.

    >>> of_form("blocks.*.w", ["blocks.0.w", "blocks.2.w", "head.w"])
    ['blocks.{0,2}.w']
    """
    return list(folded(name for name in names if template(name) == template(form)))


def alike(items: Iterable[_Value], text_of: Callable[[_Value], str]) -> list[list[_Value]]:
    """Return items in groups whose names differ by numbers only, in the order of the first item of each.

    >>> alike(["blocks.0.w: 3", "head.w", "blocks.1.w: 4"], str)
    [['blocks.0.w: 3', 'blocks.1.w: 4'], ['head.w']]

    Names that are nothing but a number, such as those of the layers of a ``Sequential``, stay apart.

    Args:
        items: The items.
        text_of: Returns the name of an item. A remark may follow it after a colon; numbers in it do not count.
    """
    groups: dict[tuple[str, str], list[_Value]] = {}
    for item in items:
        name, _, remark = text_of(item).partition(": ")
        form = template(name)
        groups.setdefault((name if form == "*" else form, _DIGITS.sub("", remark)), []).append(item)
    return list(groups.values())


def and_more(names: Sequence[str]) -> str:
    """Return how many names follow the first one of a group of :func:`alike`, as text; empty for none.

    >>> and_more(["blocks.3.w", "blocks.0.w", "blocks.7.w"])
    ' and 2 more blocks.*.w'
    """
    return f" and {len(names) - 1} more {template(names[0].partition(': ')[0])}" if len(names) > 1 else ""


def _part(text: str) -> _Part:
    return frozenset({int(text)}) if text.isascii() and text.isdecimal() and str(int(text)) == text else text


def _written(part: _Part) -> str:
    if isinstance(part, str):
        return part
    numbers = sorted(part)
    return str(numbers[0]) if len(numbers) == 1 else "{" + ",".join(_ranges(numbers)) + "}"


def _ranges(numbers: Sequence[int]) -> Iterator[str]:
    """Yield sorted numbers as ranges: ``0-11``, ``13``."""
    start = previous = numbers[0]
    for number in [*numbers[1:], None]:
        if number != previous + 1:
            yield str(start) if start == previous else f"{start}-{previous}"
            start = number if number is not None else start
        previous = number if number is not None else previous


def _choices(part: str) -> Sequence[str]:
    return [str(number) for span in _spans(part) for number in span] or [part]


def _spans(part: str) -> list[range]:
    """Return the ranges of numbers that a part of a pattern stands for; none if it is not a set of numbers."""
    found = _NUMBERS.fullmatch(part)
    if found is None:
        return []
    ranges = (item.partition("-") for item in found[1].split(","))
    return [range(int(first), int(last or first) + 1) for first, _, last in ranges]
