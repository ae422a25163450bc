"""Results outside of a session: data frames, plots, tables of HTML and plain numbers, where their packages are installed."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from pkgutil import resolve_name
from typing import Any

from ..errors import UsageError
from ..records.estimates import Estimate
from ..records.text import visible

__all__ = ["frame_of", "html_table", "new_axes", "plain_estimate", "plain_number"]


def new_axes(given: Any) -> Any:
    """Return axes of matplotlib: those that were given, or new ones.

    Raises:
        UsageError: matplotlib is not installed.
    """
    return _optional("matplotlib.pyplot", "plot()").subplots()[1] if given is None else given


def frame_of(rows: Iterable[Sequence[Any]], columns: Sequence[str]) -> Any:
    """Return rows as a pandas data frame.

    Raises:
        UsageError: pandas is not installed.
    """
    return _optional("pandas", "to_frame()").DataFrame(list(rows), columns=list(columns))


def _optional(module: str, what: str) -> Any:
    """Return a module of a package that this one does not require.

    Raises:
        UsageError: The package is not installed.
    """
    try:
        return resolve_name(module)
    except ImportError as error:
        package = module.partition(".")[0]
        msg = f"{what} needs {package}, which cannot be imported: {error}. Install it: pip install {package}."
        raise UsageError(msg) from None


def html_table(caption: str, rows: Iterable[Sequence[str]]) -> str:
    """Return a table of HTML. All texts are escaped.

    >>> html_table("a < b", [["", "x"]])
    '<table><caption>a &lt; b</caption><tr><td></td><td>x</td></tr></table>'
    """
    lines = ("".join(f"<td>{html.escape(visible(cell))}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption>{html.escape(visible(caption))}</caption>{body}</table>"


def plain_estimate(value: Estimate) -> dict[str, Any]:
    """Return mean, interval and values of an estimate as JSON has them."""
    numbers = {"mean": value.mean, "low": value.low, "high": value.high}
    return {
        **{key: plain_number(number) for key, number in numbers.items()},
        "values": [plain_number(number) for number in value.values],
    }


def plain_number(value: float) -> float | str:
    """Return a number, or the word for one that JSON does not have.

    >>> plain_number(0.5), plain_number(float("inf"))
    (0.5, 'inf')
    """
    return float(value) if math.isfinite(value) else str(float(value))
