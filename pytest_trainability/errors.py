"""The errors of the package. Each message states what is wrong, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .records.text import visible

__all__ = [
    "BaselineError",
    "BoundError",
    "CutError",
    "InapplicableError",
    "ModelError",
    "ReportError",
    "TrainabilityError",
    "TrainabilityFailure",
    "UsageError",
]


class TrainabilityError(Exception):
    """Base class of the errors that the package raises on purpose. A failed check is not one of them."""

    key: str = ""
    """What the error is about, such as ``model`` or ``inputs``, where texts name what is measured; empty if unknown."""

    def __str__(self) -> str:
        return _escaped(super().__str__())


class UsageError(TrainabilityError, ValueError):
    """An argument, an option or a setting is invalid."""


class BoundError(UsageError):
    """A bound is invalid: its measure is unknown, or it is not a closed interval of numbers."""


class InapplicableError(UsageError):
    """A measure is not defined for this model or run, such as a loss for a model that is run without one."""


class ModelError(TrainabilityError):
    """The model, its inputs or its loss raised an error, or returned nothing that can be measured."""


class CutError(TrainabilityError):
    """The autograd graph cannot be cut into the requested steps."""


class BaselineError(TrainabilityError):
    """A baseline file cannot be read or written. The file is left unchanged."""


class ReportError(TrainabilityError):
    """The file of a report cannot be read or written, or is no report. Nothing is overwritten."""


class TrainabilityFailure(AssertionError):
    """A check failed: a bound does not hold, or a measurement differs from its baseline.

    The first line of the message is the shortest true sentence about it. The others list every bound that does not hold.

    Args:
        message: The message.
        check: Name of the measurement within its test; None where the failure belongs to no record of a session.
    """

    __module__ = "pytest_trainability"

    def __init__(self, message: str = "", *, check: str | None = None) -> None:
        super().__init__(message)
        self.check = check

    def __str__(self) -> str:
        return _escaped(super().__str__())


@contextmanager
def concerning(key: str) -> Iterator[None]:
    """Note what an error is about, unless it is known already.

    Args:
        key: Such as ``model`` or ``inputs``.

    Raises:
        TrainabilityError: The error.
    """
    try:
        yield
    except TrainabilityError as error:
        error.key = error.key or key
        raise


def _escaped(message: str) -> str:
    """Escape each line of a message: it may contain names from a file or a model, or the message of another error."""
    return "\n".join(map(visible, message.split("\n")))
