"""A session as Markdown: for the summary of a job, and pieces for a comment. All foreign text stands in code."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence

from ..records.session import NOT_MEASURED, CheckOutcome, ErrorRecord, SessionRecord
from ..records.text import visible
from .explain import bound_text, explain_lines, failure_lines

__all__ = ["block", "cell", "code", "folded", "markdown_page", "verdict_line"]

LARGEST = 1_000_000
"""Largest size of a page in bytes. The summary of a job may have 1 MiB, with what other steps write."""
MARKS: dict[str, str] = {
    "held": "✔",
    "marginal": "✔ marginal",
    "nothing asserted": "○ nothing asserted",
    "failed": "✘ failed",
    "expected failure": "x expected to fail",
    NOT_MEASURED: "! not measured",
}
"""What a table shows for a status."""
_ORDER: tuple[str, ...] = (
    "failed",
    NOT_MEASURED,
    "marginal",
    "nothing asserted",
    "expected failure",
    "held",
)
MOST_LINES = 20
"""Number of lines on baselines."""
_WORDS: dict[str, str] = {
    NOT_MEASURED: "could not be measured",
    "expected failure": "expected to fail",
    "nothing asserted": "without an assertion",
}
WIDTH = 100
"""Columns of explanations."""


def code(text: str) -> str:
    """Return a text as inline code, whatever backticks it contains.

    >>> code("a"), code("a`b"), code("`")
    ('`a`', '``a`b``', '`` ` ``')

    Mentions, references to issues and links in code are plain text.
    """
    text = visible(text) or " "
    ticks = "`"
    while ticks in text:
        ticks += "`"
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def cell(text: str) -> str:
    r"""Return a text as inline code in a table, where a bar would end the cell, also in code.

    >>> cell("a|b")
    '`a\\|b`'
    """
    return code(text).replace("|", "\\|")


def block(lines: Iterable[str]) -> str:
    """Return lines as a block of code, whatever they contain."""
    text = "\n".join(map(visible, lines))
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def folded(title: str, body: str) -> str:
    """Return a body that is shown when its title is clicked. The title is shown as code."""
    return f"<details><summary><code>{html.escape(visible(title))}</code></summary>\n\n{body}\n\n</details>"


def verdict_line(session: SessionRecord) -> str:
    """Return the numbers of checks by status in one sentence, the worst ones first.

    Args:
        session: The session.
    """
    by_status = session.counts
    found = [f"{by_status[status]} {_WORDS.get(status, status)}" for status in _ORDER if by_status[status]]
    return ", ".join(found) if found else "nothing was measured"


def markdown_page(session: SessionRecord, *, largest: int = LARGEST) -> str:
    """Return a session as a page of Markdown: the verdict, a table, and the explanations of failures.

    Args:
        session: The session.
        largest: Largest size in bytes. What does not fit is left out and counted.
    """
    head = [f"## {'✘' if session.is_bad else '✔'} trainability: {verdict_line(session)}", ""]
    rows = sorted(_rows(session), key=lambda row: _ORDER.index(row[0]))
    # Explanations get at least half of the room.
    table, room = _fitting([row for _, row in rows], largest // 2, "rows")
    head += ["| | test | model | steps | log gain |", "|---|---|---|---|---|", *table, ""] if rows else []
    details, _ = _fitting(list(_details(session)), largest // 2 + room - 4_000, "explanations")
    return "\n".join([*head, *details, *_of_baselines(session), *_of_environment(session)]).rstrip("\n") + "\n"


def _fitting(parts: Sequence[str], room: int, what: str) -> tuple[list[str], int]:
    """Return the first parts that fit into a number of bytes, with a line that counts the rest, and the room that is left."""
    found: list[str] = []
    for part in parts:
        size = len(part.encode("utf-8")) + 1
        if size > room:
            found += ["", f"and {len(parts) - len(found)} more {what} that do not fit here"]
            break
        room -= size
        found.append(part)
    return found, room


def _rows(session: SessionRecord) -> Iterator[tuple[str, str]]:
    for check in session.checks:
        record = check.record
        gain = record.log_gain_text if record.along else "–"
        cells = [cell(title(check)), cell(record.model), cell(record.steps), cell(gain)]
        yield check.status, f"| {MARKS[check.status]} | {' | '.join(cells)} |"
    for error in session.errors:
        yield error.status, f"| {MARKS[error.status]} | {cell(error.test)} | {cell(error.error)} | | |"


def title(check: CheckOutcome) -> str:
    """Return the test and the name of a measurement within it."""
    record = check.record
    return f"{record.test} ({record.name})" if record.name else record.test


def _details(session: SessionRecord) -> Iterator[str]:
    for check in session.checks:
        if check.status == "failed":
            lines = [*failure_lines(check, WIDTH), *explain_lines(check.record, width=WIDTH)]
            yield folded(title(check), block(lines)) + "\n"
    for error in session.errors:
        yield folded(error.test, block(error_lines(error))) + "\n"
    for check in session.checks:
        if check.status == "marginal":
            marginal = (verdict for verdict in check.record.verdicts if verdict.marginal)
            lines = [f"{verdict.measure} {verdict.value_text}, {bound_text(verdict)}" for verdict in marginal]
            yield folded(f"{title(check)}: marginal", block(lines)) + "\n"
        if check.status != "failed" and check.record.cautions:
            yield folded(f"{title(check)}: note", block(check.record.cautions)) + "\n"


def error_lines(error: ErrorRecord) -> list[str]:
    """Return the message of an error, which may have several lines."""
    return f"{error.error}: {error.message}".split("\n")


def _of_baselines(session: SessionRecord) -> list[str]:
    found = session.baselines
    if found is None:
        return []
    lines = [f"- {recorded + updated} entries written to {code(file)}" for file, recorded, updated in found.written]
    lines += [f"- no test uses {code(entry)} in {code(file)}" for file, entry, _ in found.unused]
    lines += [f"- {code(error)}" for error in found.errors]
    return ["**Baselines**", "", *lines[:MOST_LINES], ""] if lines else []


def _of_environment(session: SessionRecord) -> list[str]:
    known = session.environment
    parts = [f"{name} {known[name]}" for name in ("python", "torch", "pytest_trainability") if known.get(name)]
    parts += [known["platform"]] if known.get("platform") else []
    return [f"<sub>{code(', '.join(parts)[:300])}</sub>"] if parts else []
