"""The classes of errors: how they can be caught, and how pytest shows them."""

from __future__ import annotations

import pytest

import pytest_trainability
from pytest_trainability import errors

RAISED = [name for name in errors.__all__ if name != "TrainabilityFailure"]


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_public(name: str) -> None:
    assert getattr(pytest_trainability, name) is getattr(errors, name)


@pytest.mark.parametrize("name", RAISED)
def test_every_error_is_a_trainability_error(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.TrainabilityError)


@pytest.mark.parametrize("name", ["UsageError", "BoundError", "InapplicableError"])
def test_usage_errors_are_value_errors(name: str) -> None:
    assert issubclass(getattr(errors, name), ValueError)
    assert issubclass(getattr(errors, name), errors.UsageError)


@pytest.mark.parametrize("name", ["ModelError", "CutError", "BaselineError"])
def test_errors_of_a_model_or_a_file_are_no_usage_errors(name: str) -> None:
    assert not issubclass(getattr(errors, name), ValueError)


def test_a_failure_is_an_assertion_and_no_error() -> None:
    """``except TrainabilityError`` in a test must not hide a check that fails."""
    assert issubclass(errors.TrainabilityFailure, AssertionError)
    assert not issubclass(errors.TrainabilityFailure, errors.TrainabilityError)


def test_pytest_shows_a_failure_under_its_public_name() -> None:
    assert errors.TrainabilityFailure.__module__ == "pytest_trainability"


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_escapes_what_a_terminal_or_a_log_would_obey(name: str) -> None:
    """Its lines stay lines, because a message may contain that of another error."""
    error = getattr(errors, name)("the model 'a\x1b[2J' raised\n::error::b\n##[error]c")
    assert str(error).split("\n") == [r"the model 'a\x1b[2J' raised", r"\x3a:error::b", r"#\x23[error]c"]
