"""Constants in the code of modules: the rows that a baseline stores, and their comparison.

A row is a text with the calls of PyTorch functions that are given constants, such as ``"mean(dim=-1); softmax(dim=-1)"``. They
explain a change that numbers show, and are no change by themselves: two constants may cancel, and code may be written in other
words. A call may be followed by the inner modules that read its result, as ``"ne(0) read by layers.*.attention as mask"``. They
are said where a call has changed, and are not compared.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from ..records.names import folded, in_order_of
from ..records.reports import BaselineChange
from .text_changes import text_by_name, text_changes, times

__all__ = ["SETTINGS", "setting_changes", "setting_rows"]

SETTINGS = "settings"
"""Name of the comparison in reports."""
LONGEST_ROW = 2000
"""Number of characters from which a row is :data:`OMITTED`. A module with as many calls is seldom written by hand."""
OMITTED = "…"
"""Row of a module with too many calls, which are not compared."""
MOST_SHOWN = 4
"""Number of calls that a difference names."""
_SEPARATOR, _READ_BY = "; ", " read by "
_ARGUMENT = re.compile(r"(?:[^,()]|\((?:[^()]|\([^()]*\))*\))+")
_READERS = re.compile(rf"{_READ_BY}.*?(?=(?: ×\d+)?(?:{_SEPARATOR}|$))")
_COUNT = re.compile(r"(.+) ×(\d{1,6})")


def setting_rows(seeds: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """Return the rows of a baseline.

    >>> norms = {f"norms.{i}": ("layer_norm((64), eps=1e-05)",) for i in range(12)}
    >>> setting_rows([norms, norms])
    {'norms.{0-11}': 'layer_norm((64), eps=1e-05)'}

    Args:
        seeds: For each seed, the calls by module, in program order. A call that some seed lacks is left out.

    Returns:
        Rows by pattern (see :mod:`pytest_trainability.records.names`), in the order of the modules.
    """
    by_row: dict[str, list[str]] = {}
    for name, calls in seeds[0].items():
        counts = Counter(calls)
        for seed in seeds[1:]:
            counts &= Counter(seed.get(name, ()))
        row = _SEPARATOR.join(times(call, counts[call]) for call in dict.fromkeys(calls) if counts[call])
        if len(row) > LONGEST_ROW:
            row = _READERS.sub("", row)
        if row:
            by_row.setdefault(row if len(row) <= LONGEST_ROW else OMITTED, []).append(name)
    return in_order_of(seeds[0], {pattern: row for row, names in by_row.items() for pattern in folded(names)})


def setting_changes(
    old: Mapping[str, str], new: Mapping[str, str], *, but: Collection[str] = (), shared: Collection[str] = ()
) -> Iterator[BaselineChange]:
    """Yield the modules whose code passes other constants.

    Args:
        old: Rows of the baseline.
        new: Rows now.
        but: Modules of another class, whose constants are those of other code.
        shared: Modules of both sides. One that has no row on one side passes no constants there.
    """
    before, after = text_by_name(old), text_by_name(new)
    changed: dict[tuple[str, str], list[str]] = {}
    for name in dict.fromkeys([*before, *after]):
        rows = before.get(name, ""), after.get(name, "")
        is_compared = name not in but and (all(rows) or name in shared) and OMITTED not in rows
        if is_compared and any(texts := _difference(*rows)):
            changed.setdefault(texts, []).append(name)
    yield from text_changes(SETTINGS, changed, {**before, **after})


def _difference(old: str, new: str) -> tuple[str, str]:
    """Return the calls that are gone and those that are new, without the named arguments that a call has on both sides.

    >>> _difference("mean(norm, dim=1, keepdim=True)", "mean(norm, dim=0, keepdim=True)")
    ('mean(norm, dim=1)', 'mean(norm, dim=0)')
    """
    (before, readers), (after, new_readers) = _calls(old), _calls(new)
    gone, fresh = list((before - after).items()), list((after - before).items())
    texts: tuple[list[str], list[str]] = ([], [])
    for call, count in gone:
        other = next((item for item in fresh if item[1] == count and _function(item[0]) == _function(call)), None)
        if other is None:
            texts[0].append(times(call, count))
            continue
        fresh.remove(other)
        for text, pair in zip(texts, _without_shared(call, other[0])):
            text.append(times(pair, count))
    texts[1].extend(times(*item) for item in fresh)
    read = [new_readers[call] for call in after - before if call in new_readers]
    read_before = [readers[call] for call in before - after if call in readers]
    is_there = bool(texts[1])
    return _shown(texts[0], [] if is_there else read_before), _shown(texts[1], read or read_before if is_there else [])


def _function(call: str) -> str:
    return call.partition("(")[0]


def _without_shared(call: str, other: str) -> tuple[str, str]:
    """Return two calls of a function without the named arguments that both have."""
    texts = (text.partition("(")[2].removesuffix(")") for text in (call, other))
    parts = [[part.strip() for part in _ARGUMENT.findall(text)] for text in texts]
    shared = {part for part in parts[0] if part in parts[1] and "=" in part}
    shown = (", ".join(part for part in side if part not in shared) for side in parts)
    one, two = (f"{_function(call)}({text})" for text in shown)
    return one, two


def _calls(row: str) -> tuple[Counter[str], dict[str, str]]:
    """Return the number of each call, and what reads the results of those that something is known to read."""
    found, readers = Counter[str](), {}
    for item in row.split(_SEPARATOR) if row else ():
        match = _COUNT.fullmatch(item)
        call, _, reader = (match[1] if match else item).partition(_READ_BY)
        found[call] += int(match[2]) if match else 1
        if reader:
            readers[call] = reader
    return found, readers


def _shown(items: Sequence[str], readers: Sequence[str]) -> str:
    more = ", …" if len(items) > MOST_SHOWN else ""
    read = f" ({_READ_BY.strip()} {readers[0]})" if readers else ""
    return f"{', '.join(items[:MOST_SHOWN])}{more}{read}"
