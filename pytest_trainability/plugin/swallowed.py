"""Failed checks whose exception does not reach the test: it was raised in a thread, or something in the test has caught it."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType

    from ..records.reports import CheckRecord

__all__ = ["UNEXPECTED", "Unexpected", "refuse_swallowed"]


class Unexpected:
    """The failed checks of a test that the test does not expect by ``pytest.raises`` or ``assertRaises``."""

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}
        self._unexpected: dict[str, set[str]] = {}

    def note(self, key: str, record: CheckRecord) -> None:
        """Note the checks of a measurement that have just failed, before their exception is raised."""
        known = self._known.setdefault(key, set())
        new = _failed(record) - known
        known |= new
        if new and not _failure_is_expected():
            self._unexpected.setdefault(key, set()).update(new)

    def left(self, records: Mapping[str, CheckRecord]) -> list[str]:
        """Return what has failed and was not repeated with success, such as ``log_gain of Tower``."""
        found = ((self._unexpected.get(key, set()) & _failed(record), record) for key, record in records.items())
        return [f"{check} of {record.name or record.model}" for checks, record in found for check in sorted(checks)]


UNEXPECTED = pytest.StashKey[Unexpected]()


def _failed(record: CheckRecord) -> set[str]:
    """Return the measures whose bounds do not hold, and the baseline if that does not hold."""
    failed = {verdict.measure for verdict in record.verdicts if not verdict.holds}
    return failed | ({"the baseline"} if record.baseline is not None and not record.baseline.holds else set())


_EXPECTED_EXCEPTIONS = {
    "RaisesExc": "expected_exceptions",  # pytest.raises since pytest 8.4
    "RaisesContext": "expected_exception",  # pytest.raises before
    "_AssertRaisesContext": "expected",  # unittest
}
"""Attribute of the expected exceptions by the class of a context."""


def _failure_is_expected() -> bool:
    """Whether a context is open that expects a failed check, or a call of ``pytest.raises`` is running that does."""
    return any(map(_includes_failures, (*_of_open_contexts(), *_of_running_calls())))


def _of_open_contexts() -> Iterator[Any]:
    """Yield what the open contexts of ``pytest.raises`` and ``assertRaises`` expect."""
    # An object refers to its class. To look at every object of the process in Python would take a tenth of a second.
    classes = _context_classes()
    referrers = gc.get_referrers(*classes)
    for found in referrers:
        if type(found) in classes and _is_open(found):
            yield getattr(found, _EXPECTED_EXCEPTIONS[type(found).__name__], ())


def _of_running_calls() -> Iterator[Any]:
    """Yield what the running calls ``pytest.raises(expected, function, ...)`` expect. Before pytest 8.4 they open no context."""
    for thread in sys._current_frames().values():
        frame: FrameType | None = thread
        while frame is not None:
            if frame.f_code is pytest.raises.__code__:
                yield frame.f_locals["expected_exception"]
            frame = frame.f_back


def _context_classes() -> list[type]:
    """Return the classes of the contexts of ``pytest.raises`` and, if it is loaded, of ``assertRaises``."""
    unittest = sys.modules.get("unittest")
    of_unittest = [type(unittest.TestCase().assertRaises(KeyError))] if unittest is not None else []  # noqa: PT027
    return [type(pytest.raises(KeyError)), *of_unittest]


def _is_open(context: Any) -> bool:
    """Whether a context has been entered, and has not caught an exception yet."""
    if type(context).__name__ == "_AssertRaisesContext":
        return not hasattr(context, "exception")
    # pytest makes this object when the context is entered, and fills it when an exception arrives: until then it has no type.
    info = getattr(context, "excinfo", None)
    try:
        return info is not None and info.type is None
    except AssertionError:
        return True


def _includes_failures(expected: Any) -> bool:
    """Whether an exception, or one of several, is the one of a failed check or a class that it derives from."""
    from ..errors import TrainabilityFailure

    classes = expected if isinstance(expected, tuple) else (expected,)
    return any(isinstance(found, type) and issubclass(TrainabilityFailure, found) for found in classes)


def refuse_swallowed(item: pytest.Item, records: dict[str, CheckRecord]) -> None:
    """Fail a test, or its teardown, that would pass although one of its checks has failed."""
    left = item.stash[UNEXPECTED].left(records) if UNEXPECTED in item.stash else []
    item.stash[UNEXPECTED] = Unexpected()
    if left:
        from ..records.text import visible

        pytest.fail(
            f"a check that fails must fail its test. This test has passed, although {visible(', '.join(left))} failed: the "
            "failure was raised in a thread, or caught by try or contextlib.suppress. Use pytest.raises for a failure that is "
            "expected.",
            pytrace=False,
        )
