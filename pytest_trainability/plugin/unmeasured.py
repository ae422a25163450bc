"""Measurements that could not be made: tests that raised an error of this package, or one of the model while it was measured."""

from __future__ import annotations

from typing import Any

import pytest

from .collected import node_id
from .collection import MARKER
from .paths import relative_path

__all__ = ["NOT_MEASURED", "error_of"]

NOT_MEASURED = pytest.StashKey["list[BaseException]"]()
"""Exceptions that calls of the fixture have raised, other than failed checks. The test may expect some of them."""


def error_of(item: pytest.Item, call: pytest.CallInfo[None]) -> dict[str, Any] | None:
    """Return the record of the error by which a test could not measure, as plain data; None if there is no such error.

    A baseline that cannot be read is no such error: the numbers were measured.

    Args:
        item: The test.
        call: A phase of the test that has ended.
    """
    if call.excinfo is None or item.get_closest_marker(MARKER) is None:
        return None
    from ..errors import BaselineError, TrainabilityError

    error = call.excinfo.value
    is_ours = isinstance(error, TrainabilityError) and not isinstance(error, BaselineError)
    if not is_ours and not any(error is raised for raised in item.stash.get(NOT_MEASURED, [])):
        return None
    from ..records.reports import plain
    from ..records.session import ErrorRecord

    line = item.location[1]
    found: dict[str, Any] = plain(
        ErrorRecord(
            test=node_id(item),
            error=type(error).__name__,
            message=str(error),
            file=relative_path(item.path, item.config.rootpath),
            line=0 if line is None else line + 1,
        )
    )
    return found
