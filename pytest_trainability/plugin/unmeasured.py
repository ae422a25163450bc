"""Exceptions of tests: measurements that could not be made, and what pytest shows of them."""

from __future__ import annotations

from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import Any

import pytest

from .collected import node_id
from .collection import MARKER
from .paths import relative_path

__all__ = ["ERROR_LINE", "NOT_MEASURED", "cause_in_user_code", "error_of", "explained_checks", "shorten_summary"]

ERROR_LINE = pytest.StashKey[int]()
"""Line of an error in the file of its test, counted from 1, where it is not the line of the test."""
NOT_MEASURED = pytest.StashKey["list[BaseException]"]()
"""Exceptions that calls of the fixture have raised, other than failed checks. The test may expect some of them."""


def cause_in_user_code(error: BaseException) -> BaseException | None:
    """Return the cause of an error if its traceback shows more than this package and PyTorch's engine; else None.

    The message of the error quotes its cause. Frames that a user has not written do not help: the traceback begins after those
    of this package.
    """
    cause = error.__cause__
    if cause is None or cause.__traceback__ is None:
        return None
    shown: TracebackType | None = cause.__traceback__
    while shown is not None and _is_internal(Path(shown.tb_frame.f_code.co_filename)):
        shown = shown.tb_next
    files = (Path(frame.f_code.co_filename) for frame, _ in walk_tb(shown))
    return cause.with_traceback(shown) if any(not _is_internal(file) for file in files) else None


def _is_internal(file: Path) -> bool:
    """Whether a file belongs to this package or to the engine of autograd."""
    package = Path(__file__).parents[1]
    return file.is_relative_to(package) or file.parts[-3:-1] == ("torch", "autograd")


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
    line_of_test = 0 if line is None else line + 1
    found: dict[str, Any] = plain(
        ErrorRecord(
            test=node_id(item),
            error=type(error).__name__,
            message=str(error),
            file=relative_path(item.path, item.config.rootpath),
            line=item.stash.get(ERROR_LINE, line_of_test),
        )
    )
    return found


def explained_checks(error: BaseException) -> list[str]:
    """Return the names of the measurements whose failures the traceback of an exception explains, with those that led to it.

    Args:
        error: The exception that ended a phase of a test.
    """
    from ..errors import TrainabilityFailure

    found: list[str] = []
    known: set[int] = set()
    shown: BaseException | None = error
    while shown is not None and id(shown) not in known:
        known.add(id(shown))
        if isinstance(shown, TrainabilityFailure) and shown.check is not None:
            found.append(shown.check)
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)
    return found


def shorten_summary(report: pytest.TestReport, error: BaseException) -> None:
    """Let pytest's summary line begin with the first line of an error of this package, instead of the path of its class.

    The message stands whole in the traceback. With ``-vv``, and in CI, pytest would print it again in its summary.

    Args:
        report: The report of the phase that the error has ended.
        error: The error.
    """
    from ..errors import TrainabilityError, TrainabilityFailure

    place = getattr(report.longrepr, "reprcrash", None)
    if place is None or not isinstance(error, (TrainabilityError, TrainabilityFailure)):
        return
    first = str(error).split("\n", 1)[0]
    place.message = first if isinstance(error, TrainabilityFailure) else f"{type(error).__name__}: {first}"
