"""Operations of the forward code: the rows that a baseline stores, by step of the chain, and their comparison.

A row is a text with the names of the operations in program order, such as ``"LayerNorm, Addmm, Gelu, Addmm, Add"``. Steps of
equal rows whose names differ by numbers share one.

In one environment, unchanged code repeats its operations. In another one (device, platform, data type or version of torch),
PyTorch splits or fuses operations differently, and a coarser form of the rows is compared. Attention may be fused or written out
in any environment.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from zlib import crc32

from ..records.names import folded, in_order_of
from ..records.reports import BaselineChange
from .text_changes import text_by_name, text_changes, times

__all__ = ["OPERATIONS", "VARIES", "is_beyond_chance", "operation_changes", "operation_rows"]

OPERATIONS = "operations"
"""Name of the comparison in reports."""
VARIES = "varies between seeds"
"""Row of a step whose operations are not the same on every seed, such as one that chooses experts."""
LONGEST_ROW = 600
"""Number of characters from which a row holds the number of each operation, and a digest of their order."""
LONGEST_PERIOD = 16
"""Largest number of operations that are recognized as a repeated sequence."""
MOST_OPERATIONS = 2000
"""Number of operations of a row up to which they are compared one by one."""
MOST_SHOWN = 6
"""Number of operations that a difference names."""

_ITEM = re.compile(r"(?:\(([^()]*)\)|([^,()×]+?))(?: ×(\d{1,6}))?(?:, |$)")
_MOVES = frozenset({"T", "Transpose", "Permute", "Movedim", "ToCopy"})
_COARSE = {
    **dict.fromkeys(("Addmm", "Mm", "Bmm", "Baddbmm", "Addbmm", "Addmv", "Mv", "Dot", "Linear"), "Product"),
    # Dropout on a CPU is a product with a mask.
    **dict.fromkeys(("Dropout", "Div"), "Mul"),
    **dict.fromkeys(("MaskedFill", "Where"), "Add"),
}
_FUSED = "ScaledDotProductAttention"
_MOVE = "|".join(sorted(_MOVES))
_ATTENTION = re.compile(
    rf"(?<!\S)(?:(?P<scaled>(?:(?:Mul|Div|{_MOVE}) )*)(?:Bmm|Baddbmm|Product) "
    rf"(?P<scores>(?:(?:Mul|Div|Add|MaskedFill|Where|{_MOVE}) )*)Softmax(?:\[-1\])? "
    rf"(?:(?:Mul|Div|Dropout|{_MOVE}) )*(?:Bmm|Product) "
    rf"|(?:(?:{_MOVE}) )*{_FUSED} )"
)
"""Attention: fused; or scaled queries and keys, their product, a mask, the softmax, dropout, and the product with the values."""
_AXIS = re.compile(r"\[-?\d+\]")
"""Dimension along which an operation works, counted from the last one."""
_BIAS = re.compile(r"(?<!\S)Product Add ")


# Rows -----------------------------------------------------------------------------------------------------------------
def operation_rows(seeds: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """Return the rows of a baseline.

    >>> blocks = {f"blocks.{i}": ("LayerNorm", "Addmm", "Gelu", "Addmm", "Gelu") for i in range(12)}
    >>> operation_rows([blocks, blocks])
    {'blocks.{0-11}': 'LayerNorm, (Addmm, Gelu) ×2'}

    Args:
        seeds: For each seed, the names of the operations by step.

    Returns:
        Rows by pattern (see :mod:`pytest_trainability.records.names`), in the order of the steps.
    """
    names = list(dict.fromkeys(name for seed in seeds for name in seed))
    by_row: dict[str, list[str]] = {}
    for name in names:
        known = {tuple(seed[name]) if name in seed else None for seed in seeds}
        alone = known.pop()
        by_row.setdefault(VARIES if known or alone is None else _row(alone), []).append(name)
    return in_order_of(names, {pattern: row for row, steps in by_row.items() for pattern in folded(steps)})


def _row(names: Sequence[str]) -> str:
    # An older baseline has no axes: length and order are those without them.
    plain = [_AXIS.sub("", name) for name in names]
    is_short = len(names) <= MOST_OPERATIONS and 0 < len(", ".join(_items(plain))) <= LONGEST_ROW
    if names and not is_short:
        counts = [times(name, count) for name, count in Counter(names).items()]
        return ", ".join([*counts, f"order {crc32(' '.join(plain).encode()):08x}"])
    return ", ".join(_items(names))


def _items(names: Sequence[str]) -> Iterator[str]:
    """Yield operations in order, and sequences that are repeated once with their number."""
    start = 0
    while start < len(names):
        repeats = {period: _repeats(names, start, period) for period in range(1, LONGEST_PERIOD + 1)}
        # The sequence that shortens the text most; the shortest among equals.
        period = max(repeats, key=lambda p: (p * (repeats[p] - 1), -p))
        count = repeats[period]
        if count == 1:
            period = 1
        text = ", ".join(names[start : start + period])
        yield times(text if period == 1 else f"({text})", count)
        start += period * count


def _repeats(names: Sequence[str], start: int, period: int) -> int:
    first, count = names[start : start + period], 1
    while names[start + count * period : start + (count + 1) * period] == first and len(first) == period:
        count += 1
    return count


def _operations(row: str) -> list[str]:
    """Return the operations of a row, one by one; a long repetition stays one item."""
    found: list[str] = []
    for group, name, count in _ITEM.findall(row):
        names, number = (group or name).split(", "), int(count or 1)
        if len(found) + number * len(names) <= MOST_OPERATIONS:
            found += names * number
        else:
            found.append(times(group or name, number))
    return found


# Comparison -----------------------------------------------------------------------------------------------------------
def operation_changes(
    old: Mapping[str, str], new: Mapping[str, str], *, same_environment: bool
) -> Iterator[BaselineChange]:
    """Yield the steps whose operations have changed, the first one first. Steps of one side only are left out.

    Args:
        old: Rows of the baseline.
        new: Rows now.
        same_environment: Whether unchanged code repeats its operations.
    """
    before, after = text_by_name(old), text_by_name(new)
    texts: dict[tuple[str, str], tuple[str, str]] = {}
    changed: dict[tuple[str, str], list[str]] = {}
    for name, row in after.items():
        pair = before.get(name, VARIES), row
        if pair[0] == row or VARIES in pair:
            continue
        if pair not in texts:
            texts[pair] = _difference(*pair, same_environment=same_environment)
        if any(texts[pair]):
            changed.setdefault(texts[pair], []).append(name)
    yield from text_changes(OPERATIONS, changed, after)


def is_beyond_chance(old: Mapping[str, str], new: Mapping[str, str], seeds: tuple[int, int], error: float) -> bool:
    """Return whether chance cannot explain other operations on other draws.

    Operations may depend on the draws, as those of dropped layers and of chosen experts do. Two lists of seeds that each agree on
    a different outcome have a probability of at most ``2 (m/(m+n))^m (n/(m+n))^n``.

    Args:
        old: Rows of the baseline.
        new: Rows now.
        seeds: Number of seeds on both sides, m and n.
        error: Probability of a false alarm.
    """
    if VARIES in {*old.values(), *new.values()}:
        return False
    total = sum(seeds)
    return 2 * (seeds[0] / total) ** seeds[0] * (seeds[1] / total) ** seeds[1] <= error


def _difference(old: str, new: str, *, same_environment: bool) -> tuple[str, str]:
    """Return the operations that are gone and those that are new, or both orders; two empty texts if nothing has changed."""
    before, after = _with_axes_of_both(_operations(old), _operations(new))
    if not same_environment:
        before, after = _coarse(before), _coarse(after)
    plain = _FUSED in {*before, *after}
    reduced = _with_one_attention(before, after, plain=plain)
    if reduced[0] == reduced[1]:
        return "", ""
    if plain:
        before, after = reduced
    if sorted(before) == sorted(after):
        first = next(i for i, pair in enumerate(zip(before, after)) if pair[0] != pair[1])
        last = next(i for i, pair in enumerate(zip(reversed(before), reversed(after))) if pair[0] != pair[1])
        return tuple(_shown(side[first : len(side) - last]) for side in (before, after))  # type: ignore[return-value]
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    different = [(a, b, c, d) for tag, a, b, c, d in matcher.get_opcodes() if tag != "equal"]
    return (
        _shown(name for a, b, _, _ in different for name in before[a:b]),
        _shown(name for _, _, c, d in different for name in after[c:d]),
    )


def _with_axes_of_both(before: list[str], after: list[str]) -> tuple[list[str], list[str]]:
    """Return both lists without the axes of operations that have none on some side, as in an older baseline."""
    names = {*before, *after}
    without = {name for name in names if _AXIS.search(name) and _AXIS.sub("", name) in names}
    bare = {_AXIS.sub("", name) for name in without}

    def plain(name: str) -> str:
        operation = _AXIS.sub("", name)
        return operation if operation in bare else name

    return [plain(name) for name in before], [plain(name) for name in after]


def _shown(names: Iterable[str]) -> str:
    """Return the first of some operations as text, such as ``Softmax(dim=-1)``; empty for none."""
    items = [_AXIS.sub(lambda match: f"(dim={match[0][1:-1]})", item) for item in _items(list(names))]
    return ", ".join(items[:MOST_SHOWN]) + (", …" if len(items) > MOST_SHOWN else "")


def _coarse(names: Iterable[str]) -> list[str]:
    """Return operations as they are in every environment: a product and its bias, for instance, may be one operation or two."""
    return _BIAS.sub("Product ", "".join(f"{_COARSE.get(name, name)} " for name in names if name not in _MOVES)).split()


def _with_one_attention(before: list[str], after: list[str], *, plain: bool) -> tuple[list[str], list[str]]:
    """Return both lists with one name for attention, if they compute it in two ways.

    Args:
        before: Operations of the baseline.
        after: Operations now.
        plain: Whether the name says nothing on scale and mask, which are arguments of a fused operation.
    """
    texts = [" ".join([*names, ""]) for names in (before, after)]
    found = [[match[0] for match in _ATTENTION.finditer(text)] for text in texts]
    if found[0] == found[1]:
        return before, after

    def name_of(match: re.Match[str]) -> str:
        scores = match["scores"] or ""
        is_scaled = not {"Mul", "Div"}.isdisjoint(f"{match['scaled'] or ''}{scores}".split())
        is_masked = not {"Add", "MaskedFill", "Where"}.isdisjoint(scores.split())
        return _FUSED + (" " if plain else f":{is_scaled:d}{is_masked:d} ")

    one, other = (_ATTENTION.sub(name_of, text).split() for text in texts)
    return one, other
