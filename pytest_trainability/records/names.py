"""Names that differ by numbers only, folded into patterns such as ``blocks.{0-11}.proj.weight``."""

from __future__ import annotations

import difflib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import product
from typing import TypeAlias, TypeVar

__all__ = [
    "MOST_NAMES",
    "alike",
    "and_more",
    "common_form",
    "expanded",
    "folded",
    "in_order_of",
    "number_of_names",
    "of_form",
    "template",
    "unmatched",
    "with_stars",
]

MOST_NAMES = 10**6
"""Largest number of names that a pattern may stand for."""
LONGEST_NUMBER = 18
"""Largest number of digits of a number that is folded."""

_Value = TypeVar("_Value")
_Piece: TypeAlias = "str | frozenset[int]"
_SET = r"\{\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\}"
_NUMBERS = re.compile(_SET)
_DIGITS = re.compile(r"[\d.+-]+")
_SEPARATORS = re.compile(r"([.\[\]])")
"""Dots between the names of modules, and brackets around the number of a call, as in ``cell[3]``."""
_PIECES = re.compile(r"([0-9]+)")
_SETS = re.compile(f"({_SET})")
_STARS = re.compile(r"([0-9]+|\*)")


def folded(names: Iterable[str]) -> dict[str, list[str]]:
    """Return patterns that stand for names, with the names of each, in the order of the first name of each.

    Names are folded if they differ in one number only. A number that is no whole part between dots or in brackets, as in
    ``conv1``, must take at least four values: ``conv1`` and ``conv2`` are two layers, and ``cell_0`` to ``cell_17`` are eighteen
    of a kind.

    >>> list(folded(["blocks.0.w", "blocks.1.w", "blocks.3.w", "head.w"])), list(folded(["cell[0]", "cell[1]"]))
    (['blocks.{0-1,3}.w', 'head.w'], ['cell[{0-1}]'])
    >>> list(folded(["conv1.w", "conv2.w"])), list(folded(f"cell_{i}.w" for i in range(4)))
    (['conv1.w', 'conv2.w'], ['cell_{0-3}.w'])
    """
    groups = {tuple(map(_piece, _PIECES.split(name))): [name] for name in names}
    # Every second piece is text.
    for place in range(1, max((len(pieces) for pieces in groups), default=0), 2):
        groups = _merged(groups, place)
    return {"".join(map(_written, pieces)): members for pieces, members in groups.items()}


_ANY: frozenset[int] = frozenset()
"""Stands in a key for the numbers that are merged. No piece is an empty set."""
FEWEST_INSIDE = 4
"""Number of values from which a number inside a part counts members of a kind."""

_Groups: TypeAlias = "dict[tuple[_Piece, ...], list[str]]"


def _merged(groups: _Groups, place: int) -> _Groups:
    """Merge the groups that differ in the numbers at one place only, counted from the end."""
    alike: dict[tuple[_Piece, ...], _Groups] = {}
    for pieces, members in groups.items():
        index = len(pieces) - 1 - place
        is_number = index >= 0 and not isinstance(pieces[index], str)
        key = (*pieces[:index], _ANY, *pieces[index + 1 :]) if is_number else pieces
        alike.setdefault(key, {})[pieces] = members
    merged: _Groups = {}
    for key, found in alike.items():
        index = len(key) - 1 - place
        numbers = (
            _ANY if len(found) == 1 else frozenset(n for pieces in found for n in pieces[index] if isinstance(n, int))
        )
        if numbers and (_is_whole(key, index) or len(numbers) >= FEWEST_INSIDE):
            merged[(*key[:index], numbers, *key[index + 1 :])] = [name for names in found.values() for name in names]
        else:
            merged |= found
    return merged


def _is_whole(pieces: Sequence[_Piece], index: int) -> bool:
    """Whether the number at a place stands alone between dots, or in brackets."""
    before, after = pieces[index - 1], pieces[index + 1]
    assert isinstance(before, str) and isinstance(after, str)
    return before[-1:] in {"", ".", "["} and after[:1] in {"", ".", "[", "]"}


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
    return ["".join(parts) for parts in product(*map(_choices, _SETS.split(pattern)))]


def number_of_names(pattern: str) -> int:
    """Return the number of names that a pattern stands for, without writing them out.

    >>> number_of_names("blocks.{0-11}.w"), number_of_names("a.{0-99999999}.{0-9}"), number_of_names("head")
    (12, 1000000000, 1)

    Raises:
        ValueError: A number has thousands of digits.
    """
    # The length of a range has to fit into 64 bits.
    numbers = ([max(span.stop - span.start, 0) for span in _spans(part)] for part in _SETS.split(pattern))
    return math.prod(sum(sizes) or 1 for sizes in numbers)


def in_order_of(names: Iterable[str], by_pattern: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return values by pattern, in the order of the first name that each pattern stands for.

    >>> in_order_of(["a.0", "b", "a.1"], {"b": 1, "a.{0-1}": 2})
    {'a.{0-1}': 2, 'b': 1}
    """
    places = {name: place for place, name in enumerate(names)}
    return dict(sorted(by_pattern.items(), key=lambda item: min(places[name] for name in expanded(item[0]))))


def template(name: str) -> str:
    """Return a name, or a pattern, with ``*`` for each part that is a number, and for each set of numbers.

    >>> template("blocks.3.w"), template("blocks.{0-11}.cell_{0-5}.w"), template("cell[3]"), template("conv1")
    ('blocks.*.w', 'blocks.*.cell_*.w', 'cell[*]', 'conv1')
    """
    parts = _SEPARATORS.split(_NUMBERS.sub("*", name))
    return "".join("*" if _is_number(part) else part for part in parts)


def common_form(names: Sequence[str]) -> str:
    """Return names that differ by numbers as one, with ``*`` for each number or set of numbers that is not the same in all.

    >>> common_form(["0.1.w", "2.1.w"]), common_form(["h.{0-5}.w", "h.7.w"]), common_form(["h.1.w"])
    ('*.1.w', 'h.*.w', 'h.1.w')
    """
    pieces = zip(*(_STARS.split(_SETS.sub("*", name)) for name in names))
    return "".join(first if {first, *others} == {first} else "*" for first, *others in pieces)


def with_stars(names: Collection[str], known: Iterable[str]) -> list[tuple[str, int, int]]:
    """Return short forms of names for a report: ``*`` for the numbers of names that differ by them.

    >>> with_stars(["blocks.0.w", "blocks.1.w", "head.w"], ["blocks.0.w", "blocks.1.w", "blocks.2.w", "head.w"])
    [('blocks.*.w', 2, 3), ('head.w', 1, 1)]
    >>> with_stars(["0.1.w", "2.1.w"], ["0.0.w", "0.1.w", "1.0.w", "1.1.w", "2.0.w", "2.1.w"])
    [('*.1.w', 2, 3)]

    Args:
        names: The names.
        known: All names of the same kind, those above among them.

    Returns:
        For each form, how many of the names have it, and how many of the known ones. A single name stands as it is.
    """
    forms = _forms(tuple(known))
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[forms.get(name, template(name))].append(name)
    found = {common_form(members): len(members) for members in groups.values()}
    return [(form, count, len(_of(form, forms)) if count > 1 else 1) for form, count in found.items()]


@lru_cache(maxsize=4)
def _forms(names: tuple[str, ...]) -> dict[str, str]:
    """Return each name with ``*`` for the numbers that are folded, and for those that stand alone."""
    return {name: template(pattern) for pattern, members in folded(names).items() for name in members}


def of_form(form: str, names: Iterable[str]) -> list[str]:
    """Return the names of one short form of :func:`with_stars`, folded.

    >>> of_form("blocks.*.w", ["blocks.0.w", "blocks.2.w", "head.w"])
    ['blocks.{0,2}.w']
    """
    return list(folded(_of(form, names)))


def _of(form: str, names: Iterable[str]) -> list[str]:
    literal = re.compile("[0-9]+".join(map(re.escape, form.split("*"))))
    return [name for name in names if name == form or literal.fullmatch(name)]


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
    plain = [name.partition(": ")[0] for name in names]
    return f" and {len(names) - 1} more {common_form(plain)}" if len(names) > 1 else ""


def _piece(text: str) -> _Piece:
    return frozenset({int(text)}) if _is_number(text) else text


def _is_number(text: str) -> bool:
    """Whether a text is a number that can be written again: without leading zeros, and not longer than any index."""
    return text.isascii() and text.isdecimal() and len(text) <= LONGEST_NUMBER and str(int(text)) == text


def _written(piece: _Piece) -> str:
    if isinstance(piece, str):
        return piece
    numbers = sorted(piece)
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
    ranges = (item.partition("-") for item in found[0][1:-1].split(","))
    return [range(int(first), int(last or first) + 1) for first, _, last in ranges]


def unmatched(patterns: Iterable[str], names: Collection[str]) -> str:
    """Return a message on the first pattern that matches no name, with the nearest names; empty if each matches one.

    >>> unmatched(["*.key.bais"], ["a.key.bias", "a.key.weight"])
    "No name matches the pattern '*.key.bais'. Nearest: a.key.bias, a.key.weight."
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = _nearest(pattern, names) or list(names)[:3]
            return (
                f"No name matches the pattern {pattern!r}. Nearest: {', '.join(near) if near else 'there is no name'}."
            )
    return ""


def _nearest(pattern: str, names: Iterable[str]) -> list[str]:
    """Return at most three names whose last parts resemble a pattern."""
    literal = pattern.replace("*", "").strip(".")
    parts = literal.count(".") + 1
    ends: dict[str, str] = {}
    for name in names:
        ends.setdefault(".".join(name.split(".")[-parts:]), name)
    return [ends[end] for end in difflib.get_close_matches(literal, ends, cutoff=0.5)]
