"""The text of a session in each format of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ReportError
from ..records.session import SessionRecord
from .document import document, rendered
from .findings import findings, gitlab_text, sarif_text
from .markdown import markdown_page

__all__ = ["html_text", "html_writer", "report_text"]


def report_text(kind: str, session: SessionRecord, prefix: str = "") -> str:
    """Return the text of a report.

    Args:
        kind: ``"json"``, ``"html"``, ``"markdown"``, ``"gitlab"`` or ``"sarif"``.
        session: The session.
        prefix: Path of the session's root below the root of the repository; empty if they are the same.

    Raises:
        ReportError: The page needs a package that is not installed.
    """
    if kind == "gitlab":
        return gitlab_text(findings(session, prefix))
    if kind == "sarif":
        return sarif_text(findings(session, prefix), str(session.environment.get("pytest_trainability", "")))
    if kind == "markdown":
        return markdown_page(session)
    found = document(session)
    return html_text(found) if kind == "html" else rendered(found)


def html_text(found: Mapping[str, Any]) -> str:
    """Return a report as a page.

    Args:
        found: A report, as :func:`~pytest_trainability.report.document.document` returns it.

    Raises:
        ReportError: The page needs a package that is not installed.
    """
    return html_writer()(found)


def html_writer() -> Callable[[Mapping[str, Any]], str]:
    """Return the function that writes a page.

    Raises:
        ReportError: It needs a package that is not installed.
    """
    try:
        from .html import page  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ReportError(str(error)) from None
    found: Callable[[Mapping[str, Any]], str] = page
    return found
