"""Numbers and names as text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence

from .names import alike, and_more, common_form

__all__ = [
    "as_code",
    "as_toml",
    "exp_or_infinity",
    "format_finite",
    "format_names",
    "format_number",
    "format_spread",
    "format_value",
    "short_repr",
    "short_text",
    "visible",
]

LONGEST = 200
"""Number of characters to which the text of a user's value is shortened in an error message."""


def format_number(value: float, digits: int = 3) -> str:
    """Return a number as text with a few significant digits.

    >>> format_number(0.012345), format_number(3.14159e-9), format_number(-14.4042)
    ('0.0123', '3.14e-09', '-14.4')
    """
    if not math.isfinite(value):
        return str(value)
    return f"{value + 0.0:.{digits}g}"


def exp_or_infinity(value: float) -> float:
    """Return the exponential of a number; infinity where it would overflow, and for NaN.

    >>> exp_or_infinity(0.0), exp_or_infinity(800.0)
    (1.0, inf)
    """
    return math.exp(value) if value < 700 else math.inf


def format_names(names: Sequence[str], most: int = 2) -> str:
    """Return the first few names of a list as text. Names that differ by numbers only are one, with their number.

    >>> format_names(["a", "b", "c"]), format_names(["blocks.0.w", "blocks.1.w", "head.w"])
    ('a, b, …', 'blocks.*.w (2), head.w')
    """
    groups = alike(names, str)
    return ", ".join(map(_group_text, groups[:most])) + (", …" if len(groups) > most else "")


def _group_text(names: Sequence[str]) -> str:
    """Return the text of names that are alike: with stars, or the first one and a number if their remarks differ."""
    remarks = {name.partition(": ")[2] for name in names}
    if len(names) == 1 or len(remarks) > 1:
        return names[0] + and_more(names)
    _, colon, remark = names[0].partition(": ")
    return f"{common_form([name.partition(': ')[0] for name in names])}{colon}{remark} ({len(names)})"


# At the start of a line, or anywhere in it: commands of GitHub Actions, Azure Pipelines and TeamCity.
_COMMANDS = re.compile(r"(?<!\S)::|##(?=\w*\[)")
_BROKEN_COMMANDS = {"::": r"\x3a:", "##": r"#\x23"}


def visible(text: str) -> str:
    r"""Escape what a terminal or the log of a CI service would execute. Names may come from an untrusted file or model.

    >>> print(visible("\x1b[31m"), visible("::error::no"), visible("##[error]no"), visible("test_a.py::test_b"))
    \x1b[31m \x3a:error::no #\x23[error]no test_a.py::test_b

    Returns:
        One line. Control characters are escaped, also line breaks, and so is the beginning of a workflow command: ``##[``, and
        ``::`` at the beginning of a word, because a line may be broken before it. Escaping again changes nothing.
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return _COMMANDS.sub(lambda match: _BROKEN_COMMANDS[match[0]], text)


def short_repr(value: object) -> str:
    """Return the ``repr`` of a user's value for an error message, shortened. A value whose ``repr`` raises is named by its class.

    >>> short_repr([1, "a"]), short_repr("x" * 1000)[:12]
    ("[1, 'a']", "'xxxxxxxxxxx")
    """
    return _shortened(repr, value)


def short_text(value: object) -> str:
    """Return the ``str`` of a user's value in the same way.

    >>> short_text(ValueError("no such file"))
    'no such file'
    """
    return _shortened(str, value)


def _shortened(write: Callable[[object], str], value: object) -> str:
    try:
        text = write(value)
    except Exception:
        return f"a value of class {type(value).__name__} that cannot be shown"
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"


def as_code(value: object) -> str:
    """Return a value as Python code whose texts have double quotes, as formatters of code write them.

    >>> print(as_code("cnn"), as_code({"log_gain": 0.5, "devices": ["cpu"]}), as_code(("it's", 'a "b"')))
    "cnn" {"log_gain": 0.5, "devices": ["cpu"]} ("it's", 'a "b"')
    """
    if type(value) is str:
        return f'"{repr(value)[1:-1]}"' if '"' not in value and "'" not in value else repr(value)
    if type(value) is dict:
        return f"{{{', '.join(f'{as_code(key)}: {as_code(item)}' for key, item in value.items())}}}"
    if type(value) is list:
        return f"[{', '.join(map(as_code, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(as_code, value))}{',' * (len(value) == 1)})"
    return repr(value)


def as_toml(text: str) -> str:
    """Return a text as a value of TOML, without escapes where it has double quotes only.

    >>> print(as_toml("within(3)"), as_toml('within(3, excluding="*.bias")'))
    "within(3)" 'within(3, excluding="*.bias")'
    """
    is_literal = '"' in text and "'" not in text and text.isprintable()
    return f"'{text}'" if is_literal else json.dumps(text, ensure_ascii=False)


def format_finite(values: Iterable[float | None]) -> str:
    """Return how many of the values over seeds are finite, as text; empty if all or none are. None is no value.

    >>> format_finite([1.5, math.nan, math.nan]), format_finite([1.5, 2.5]), format_finite([math.inf])
    ('finite on 1 of 3 seeds', '', '')
    """
    known = [value for value in values if value is not None]
    finite = sum(map(math.isfinite, known))
    return f"finite on {finite} of {len(known)} seeds" if 0 < finite < len(known) else ""


def format_spread(mean: float, spread: float, *, unit: str = "", scale: str = "linear", finite: str = "") -> str:
    """Return a mean with the spread between seeds as text, in the form of :func:`format_value`.

    Args:
        mean: Mean over seeds.
        spread: Standard deviation between seeds, of the logarithms if ``scale`` is ``"log"``; NaN if it is not known.
        unit: Unit of both.
        scale: ``"log"`` if the spread is a ratio.
        finite: Text of :func:`format_finite`. It replaces a mean that is NaN.

    >>> format_spread(-14.41, 0.12, unit="nats"), format_spread(3e-9, 0.4, scale="log")
    ('-14.41 ± 0.12 nats', '3.00e-09 ×/÷ 1.5')
    """
    if scale == "log":
        factor = exp_or_infinity(spread)
        low, high = mean / factor, mean * factor
    else:
        low, high = mean - spread, mean + spread
    return format_value(mean, low, high, unit=unit, scale=scale, finite=finite)


def format_value(
    mean: float, low: float, high: float, *, unit: str = "", scale: str = "linear", finite: str = ""
) -> str:
    """Return a mean with a symmetric range as text: ``-14.4 ± 0.3 nats``, or ``3e-09 ×/÷ 1.5`` for a log-scale measure.

    Args:
        mean: Mean over seeds.
        low: Lower end of the range.
        high: Upper end of the range.
        unit: Unit of the three.
        scale: ``"log"`` if the range is a ratio.
        finite: Text of :func:`format_finite`. It replaces a mean that is NaN.

    >>> format_value(-14.41, -14.7, -14.12, unit="nats"), format_value(3e-9, 2e-9, 4.5e-9, scale="log")
    ('-14.41 ± 0.29 nats', '3.00e-09 ×/÷ 1.5')
    >>> format_value(math.nan, math.nan, math.nan, finite="finite on 1 of 8 seeds")
    'finite on 1 of 8 seeds'
    """
    if finite and math.isnan(mean):
        return finite
    sign = "+" if unit.startswith("nats") and not math.isnan(mean) else ""
    half = (high - low) / 2
    if not (math.isfinite(half) and math.isfinite(mean)) or half <= 0:
        parts = [f"{mean:{sign}.4g}", unit]
    elif scale == "log":
        parts = [
            f"{mean:.3g}" if mean >= 1e-3 else f"{mean:.2e}",
            f"×/÷ {_factor(math.sqrt(high / low))}" if low > 0 else "",
            unit,
        ]
    else:
        decimals = 1 - math.floor(math.log10(half))
        if 0 <= decimals <= 6:
            parts = [f"{mean:{sign}.{decimals}f} ± {half:.{decimals}f}", unit]
        else:
            parts = [f"{mean:{sign}.3g} ± {half:.2g}", unit]
    return " ".join(part for part in parts if part)


def _factor(ratio: float) -> str:
    return f"{ratio:.3g}" if ratio < 1.095 else f"{ratio:.2g}"
