"""The page of a session, and the panel of one check. Importing this module without jinja2 raises an error that says so."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from ...records.text import format_number, visible
from .axes import number
from .content import STATUSES, Content, Status, Trouble, content, troubles

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
except ImportError as error:
    msg = f"HTML needs the package jinja2, which cannot be imported: {error}. Install it: pip install 'pytest-trainability[html]'"
    raise ImportError(msg) from None

__all__ = ["page", "panel"]

PLAIN_SIZE = 500_000
"""Number of characters of checks that are written as they are. Those of further checks are compressed until they are opened."""
LARGEST_SIZE = 14_000_000
"""Number of characters of all checks above which the last ones leave details out."""
RESERVED_SIZE = 9_000
"""Number of characters that are kept for each check that leaves details out."""
MOST_OPEN = 3
"""Number of failed checks above which none is open at first. A single check is always open."""
DIGITS = 4


def page(document: Mapping[str, Any]) -> str:
    """Return a session as one self-contained HTML file.

    The file loads nothing from a network, and its policy forbids the browser to.

    Args:
        document: The JSON report of the session.
    """
    environment = _environment()
    checks = [content(check, order) for order, check in enumerate(document["checks"])]
    errors = troubles(document["errors"], len(checks))
    listed: list[Content | Trouble] = [*checks, *errors]
    listed.sort(key=lambda one: list(STATUSES).index(one.status.key))
    script = _asset("script.js")
    return environment.get_template("page.html.j2").render(
        document=document,
        verdict=_verdict(document["summary"]),
        counts=list(_counts(document["summary"])),
        facts=list(_facts(document)),
        shortfall=_shortfall(document["summary"]),
        rows=[_safe(row) for row in _rows(environment, listed)],
        baselines=list(_baseline_lines(document["baselines"])),
        shards=list(_shard_lines(document["shards"])),
        style=_safe(_asset("check.css")),
        page_style=_safe(_asset("page.css")),
        script=_safe(script),
        script_hash=_safe(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
    )


def panel(check: Mapping[str, Any]) -> str:
    """Return one check as a fragment of HTML for a notebook. Its style applies to itself alone; it needs no script.

    Args:
        check: A check of the JSON report.
    """
    template = _environment().get_template("panel.html.j2")
    return template.render(one=content(check), is_short=False, style=_safe(_asset("check.css")))


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        finalize=_finalized,
        loader=PackageLoader(__package__, "templates"),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["number"] = lambda value: format_number(number(value), DIGITS)
    return environment


def _finalized(value: object) -> object:
    """Return a value as templates write it: control characters of a text escaped. Markup of templates stays as it is."""
    if type(value) is not str or (value.isprintable() and "::" not in value and "##" not in value):
        return value
    return visible(value)


def _asset(name: str) -> str:
    """Return the text of a file of this package."""
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _safe(text: str) -> str:
    """Return a text that was written by the templates, or belongs to them, as markup."""
    return Markup(text)


# The verdict bar -----------------------------------------------------------------------------------------------------


def _verdict(summary: Mapping[str, Any]) -> str:
    """Return the verdict of a session as a sentence.

    >>> names = ["held", "marginal", "nothing asserted", "failed", "expected failure", "not measured"]
    >>> (
    ...     _verdict(dict(zip(names, [8, 1, 0, 3, 0, 2]), checks=12)),
    ...     _verdict(dict(zip(names, [2, 0, 1, 0, 0, 0]), checks=3)),
    ... )
    ('3 of 12 checks failed, 2 could not be measured', '2 of 3 checks hold, 1 asserts nothing')
    """
    total, failed, errors = summary["checks"], summary["failed"], summary["not measured"]
    holding, silent, expected = (
        summary["held"] + summary["marginal"],
        summary["nothing asserted"],
        summary["expected failure"],
    )
    plural = "s" if total > 1 else ""
    if not total:
        parts = []
    elif failed:
        parts = [f"{failed} of {total} check{plural} failed"]
    elif holding == total:
        parts = [f"All {total} checks hold" if total > 1 else "The check holds"]
    else:
        parts = [f"{holding} of {total} check{plural} hold{'' if total > 1 else 's'}"]
    if not failed:
        parts += [f"{silent} assert{'s' if silent == 1 else ''} nothing"] if silent else []
        parts += [f"{expected} fail{'s' if expected == 1 else ''} as expected"] if expected else []
    parts += [f"{errors} could not be measured"] if errors else []
    return ", ".join(parts) or "Nothing was measured"


def _counts(summary: Mapping[str, Any]) -> Iterator[tuple[Status, int]]:
    yield from ((status, summary[key]) for key, status in STATUSES.items() if summary[key])


def _shortfall(summary: Mapping[str, Any]) -> str:
    if summary["measured"] >= summary["required"]:
        return ""
    return f"{summary['measured']} measured, {summary['required']} required: too few"


def _facts(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of the conditions of a session."""
    yield "measured in", f"{number(document['summary']['seconds']):.1f} s"
    for name, value in document["environment"].items():
        text = ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
        if text:
            yield name.replace("_", " "), text


def _shard_lines(shards: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each session of which the report was merged."""
    for shard in shards:
        environment = shard["environment"]
        versions = [f"{name} {environment[name]}" for name in ("python", "torch", "platform") if environment[name]]
        yield ", ".join([shard["created"], *versions, *environment["devices"]])


def _baseline_lines(summary: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield lines on the changes that the session made to the baselines, and on problems that it found."""
    if summary is None:
        return
    for file, recorded, updated in summary["written"]:
        counts = [f"{count} {what}" for count, what in ((recorded, "recorded"), (updated, "updated")) if count]
        yield f"{' and '.join(counts)} in {file}: commit it"
    yield from (f"not recorded, because the test did not pass: {test}" for test in summary["withheld"])
    removed = "removed: " if summary["pruned"] else ""
    for file, entry, renamed in summary["unused"]:
        hint = f"; it has the same numbers as {renamed}: renamed?" if renamed else ""
        yield f"{removed}no test uses {entry} in {file}{hint}"
    yield from (f"{removed}no test module for {file}" for file in summary["forgotten"])
    if summary["stale"]:
        yield f"recorded with torch {', '.join(summary['stale'])}: --trainability-baseline=update records them again"
    yield from (f"nothing pruned: {text}" for text in summary["partial"])
    yield from summary["errors"]


# The list of checks --------------------------------------------------------------------------------------------------


def _rows(environment: Environment, listed: Sequence[Content | Trouble]) -> Iterator[str]:
    failed = sum(one.status.is_red for one in listed)
    check, row, error = (environment.get_template(f"{name}.html.j2") for name in ("check", "row", "error"))
    plain_left, left, is_short = PLAIN_SIZE, LARGEST_SIZE - RESERVED_SIZE * len(listed), False
    for one in listed:
        if isinstance(one, Trouble):
            yield error.render(one=one)
            continue
        body = check.render(one=one, is_short=is_short)
        packed = "" if len(body) <= plain_left else _packed(body)
        if len(packed or body) > left and not is_short:
            # The most important checks come first: from here on, all are short.
            is_short = True
            body = check.render(one=one, is_short=True)
            packed = _packed(body)
        left -= 0 if is_short else len(packed or body)
        plain_left -= 0 if packed else len(body)
        yield row.render(
            one=one,
            body="" if packed else _safe(body),
            packed=packed,
            is_short=is_short,
            is_open=len(listed) == 1 or (one.status.is_red and failed <= MOST_OPEN),
            words=" ".join(_words(one)),
            fails=" ".join(bound.verdict["measure"] for bound in one.bounds if not bound.verdict["holds"]),
        )


def _packed(text: str) -> str:
    """Return a text compressed, in base64. The same text has the same result."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode("ascii")


def _words(one: Content) -> Iterator[str]:
    """Yield the words that ``is:`` finds a check by."""
    yield one.status.word
    if not one.status.is_red:
        yield "passing"
    if one.check["baseline"] and one.check["baseline"]["changes"]:
        yield "changed"
