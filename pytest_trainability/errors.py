"""The errors of the package: what must hold, what came and where, what to do."""

from __future__ import annotations

__all__ = [
    "BaselineError",
    "BoundError",
    "CutError",
    "InapplicableError",
    "ModelError",
    "TrainabilityError",
    "TrainabilityFailure",
    "UsageError",
]


class TrainabilityError(Exception):
    """Base of every error that the package raises on purpose."""


class UsageError(TrainabilityError, ValueError):
    """An argument, option or setting that cannot be used as given."""


class BoundError(UsageError):
    """A bound that names no measure, or is no closed interval of numbers."""


class InapplicableError(UsageError):
    """A measure that has no answer for this model or this run, such as a loss's where there is none."""


class ModelError(TrainabilityError):
    """The model, its inputs or its loss did not run, or gave nothing that can be measured."""


class CutError(TrainabilityError):
    """The autograd graph cannot be taken apart into steps as asked."""


class BaselineError(TrainabilityError):
    """A baseline file that cannot be read or written; what was in it is left alone."""


class TrainabilityFailure(AssertionError):
    """A bound does not hold; the message lists every violation."""

    __module__ = "pytest_trainability"
