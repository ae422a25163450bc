"""The text of a session in each format of a file."""

from __future__ import annotations

from ..records.session import SessionRecord
from .document import document, rendered

__all__ = ["report_text"]


def report_text(kind: str, session: SessionRecord) -> str:
    """Return the text of a report.

    Args:
        kind: ``"json"``.
        session: The session.
    """
    return rendered(document(session))
