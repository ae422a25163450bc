"""Tolerances on the command line."""

from __future__ import annotations

import argparse

import pytest

from pytest_trainability import UsageError
from pytest_trainability.commands.tolerances import tolerances_of


def test_tolerances_replace_those_of_the_measures() -> None:
    found = tolerances_of(argparse.Namespace(tolerances=["log_gain = 9"]))
    assert found["log_gain"] == 9
    assert found["gradient_norm"] > 0
    with pytest.raises(UsageError, match="Did you mean 'log_gain'"):
        tolerances_of(argparse.Namespace(tolerances=["log_gian = 9"]))
