"""Layout of lines: labels, shortened names, small pictures, and what an encoding can write."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..records.text import visible

__all__ = [
    "BARS",
    "LABEL_WIDTH",
    "SPARKLINE_WIDTH",
    "WORST_NAMED",
    "WORST_SHOWN",
    "cut_left",
    "cut_right",
    "is_encodable",
    "labelled",
    "shown_in",
    "sparkline",
    "to_ascii",
]

WORST_SHOWN, WORST_NAMED = 5, 2
"""Number of elements that a failed comparison lists, and that a line names."""
BARS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 24
LABEL_WIDTH = 15


def cut_left(text: str, width: int) -> str:
    """Shorten a text to its end, in which names differ."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def cut_right(text: str, width: int) -> str:
    """Shorten a text to its beginning."""
    return text if len(text) <= width else text[: width - 1] + "…"


def sparkline(values: Sequence[float], width: int = SPARKLINE_WIDTH) -> str:
    """Return bars between the smallest and the largest value, and ``×`` for values that are not finite.

    The full height is a range of at least one, so that noise does not look like a trend.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "×" * min(len(values), width)
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    low, span = min(finite), max(max(finite) - min(finite), 1.0)
    offset = (span - (max(finite) - low)) / 2
    steps = len(BARS) - 1
    return "".join(
        BARS[round((value - low + offset) / span * steps)] if math.isfinite(value) else "×" for value in values
    )


def labelled(label: str, text: str, width: int = 0) -> list[str]:
    """Return the lines of a text behind a label, wrapped at a width if one is given. A long label gets a separate line."""
    if not text:
        return []
    label, lines = visible(label), [""]
    for word in visible(text).split(" "):
        if width and lines[-1] and len(lines[-1]) + len(word) + 1 > width - LABEL_WIDTH:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    head = [label] if len(label) >= LABEL_WIDTH else []
    return head + [f"{label if i == 0 and not head else '':<{LABEL_WIDTH - 1}} {line}" for i, line in enumerate(lines)]


_ASCII = str.maketrans(
    {"±": "+-", "≥": ">=", "≤": "<=", "×": "x", "÷": "/", "−": "-", "–": "-", "·": "|", "…": "...", "→": "->", "›": ">"}
    | {"✔": "+", "✘": "X", "○": "o"}
    | dict(zip(BARS, "_.-~=+*#"))
)


def shown_in(text: str, encoding: str | None) -> str:
    """Return a line to print: escaped by :func:`visible`, and in ASCII if the encoding is unknown or cannot represent it."""
    text = visible(text)
    # The characters of a sparkline become '#', among others.
    return text if is_encodable(text, encoding) else visible(to_ascii(text))


def is_encodable(text: str, encoding: str | None) -> bool:
    """Return whether an encoding is known and can represent a text; None is ASCII."""
    try:
        text.encode(encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


def to_ascii(text: str) -> str:
    """Replace every character that ASCII lacks by a similar one or an escape."""
    return text.replace("×/÷", "x or /").translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")
