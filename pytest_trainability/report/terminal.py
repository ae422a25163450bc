"""The terminal section: one line per check, details of failures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..records import CheckRecord
from .explain import bound_text, depth_line, explain_lines, labelled, seeds_text, to_ascii

__all__ = ["Line", "section"]

NARROWEST = 60


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the section and its colour."""

    text: str
    color: Literal["", "red", "green", "yellow"] = ""


def section(
    checks: Sequence[tuple[CheckRecord, bool]], *, width: int = 80, verbosity: int = 0, encoding: str = "utf-8"
) -> list[Line]:
    """Lay out the section.

    Args:
        checks: Records, each with whether its test passed.
        width: Columns of the terminal; lines stay within, but for commands to copy.
        verbosity: Below 0 only failures are listed; above 0 every bound and the course along depth is shown.
        encoding: Of the terminal; where it cannot show the signs, ASCII is used.

    Returns:
        Lines without newlines.
    """
    width = max(width, NARROWEST)
    groups: dict[str, list[tuple[CheckRecord, bool]]] = {}
    for record, passed in checks:
        groups.setdefault(_conditions(record), []).append((record, passed))
    lines: list[Line] = []
    for conditions, members in groups.items():
        shown = [m for m in members if verbosity >= 0 or not _holds(*m)]
        if shown:
            lines.append(Line(conditions))
            lines += _rows(shown, width, verbosity)
    for record, passed in checks:
        if not _holds(record, passed):
            lines += _details(record, width)
    lines.append(_total(checks))
    return [_shown(line, encoding) for line in lines]


def _shown(line: Line, encoding: str) -> Line:
    try:
        line.text.encode(encoding)
    except (UnicodeError, LookupError):
        return Line(to_ascii(line.text), line.color)
    return line


def _holds(record: CheckRecord, passed: bool) -> bool:  # noqa: FBT001
    """A check without bounds of its own is one of plain asserts: its test tells."""
    return record.holds if record.verdicts else passed


def _conditions(record: CheckRecord) -> str:
    return " · ".join((record.device, record.dtype, f"{record.mode} mode", record.frame, seeds_text(record)))


def _rows(members: Sequence[tuple[CheckRecord, bool]], width: int, verbosity: int) -> Iterable[Line]:
    """Align test, steps and log gain in columns."""
    gains = [_gain(record) for record, _ in members]
    gain_width = max(map(len, gains))
    left = width - 4 - gain_width - 2
    steps_width = min(max(len(record.steps) for record, _ in members), max(left // 2 - 1, 12))
    test_width = min(max(len(_title(record)) for record, _ in members), left - steps_width - 2)
    for (record, passed), gain in zip(members, gains):
        good = _holds(record, passed)
        test, steps = _cut_left(_title(record), test_width), _cut_right(record.steps, steps_width)
        text = f"  {'✔' if good else '✘'} {test:<{test_width}}  {steps:<{steps_width}}  {gain:>{gain_width}}"
        marginal = any(verdict.marginal for verdict in record.verdicts)
        yield Line(text, "red" if not good else "yellow" if marginal else "green")
        if verbosity > 0:
            yield from (Line("      " + text) for text in _verbose(record, width - 6))


def _title(record: CheckRecord) -> str:
    return f"{record.test} ({record.name})" if record.name else record.test


def _gain(record: CheckRecord) -> str:
    return f"log gain {record.log_gain_text}"


def _verbose(record: CheckRecord, width: int) -> Iterable[str]:
    for verdict in record.verdicts:
        where = f", worst {verdict.where}" if verdict.where else ""
        yield from labelled(verdict.measure, f"{verdict.value_text}, {bound_text(verdict)}{where}", width)
    yield from labelled("along depth", depth_line(record, width - 18))
    for note in (*record.notes, *([f"not on the chain: {record.left_out}"] if record.left_out else [])):
        yield from labelled("note", note, width)
    yield f"{'took':<14}{record.seconds:.1f} s"


def _details(record: CheckRecord, width: int) -> Iterable[Line]:
    """Repeat what the failed check said; a test that failed in a plain assert says it itself."""
    yield Line("")
    yield Line(_title(record), "red")
    for text in explain_lines(record, width=width - 2):
        yield Line("  " + text)


def _total(checks: Sequence[tuple[CheckRecord, bool]]) -> Line:
    good = sum(_holds(record, passed) for record, passed in checks)
    seconds = math.fsum(record.seconds for record, _ in checks)
    text = f"{good} of {len(checks)} hold, measured in {seconds:.1f} s"
    return Line(text, "green" if good == len(checks) else "red")


def _cut_left(text: str, width: int) -> str:
    """Keep the end, which tells tests apart."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def _cut_right(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
