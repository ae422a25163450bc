"""Records without a measurement, for tests of what judges and shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_trainability.records.reports import CheckRecord, VerdictRecord


def verdict(**changes: Any) -> VerdictRecord:
    """Return a verdict that does not hold, but for what is changed."""
    given: dict[str, Any] = {
        "measure": "log_gain",
        "value": -14.4,
        "value_low": -14.7,
        "value_high": -14.1,
        "unit": "nats",
        "scale": "linear",
        "low": -5.0,
        "high": 5.0,
        "holds": False,
        "marginal": False,
        "margin": -9.4,
        "violations": 1,
    }
    return VerdictRecord(**{**given, **changes})


def record(*verdicts: VerdictRecord, **changes: Any) -> CheckRecord:
    """Return what was measured on a tower of four layers, but for what is changed."""
    given: dict[str, Any] = {
        "test": "test_init.py::test_tower",
        "name": "",
        "model": "Tower",
        "steps": "4 × Linear",
        "step_names": ("0", "2", "4", "6"),
        "frame": "per sample",
        "mode": "train",
        "device": "cpu",
        "dtype": "float32",
        "seeds": (0, 1, 2, 3),
        "seeds_requested": changes.get("seeds", (0, 1, 2, 3)),
        "fixed": False,
        "seconds": 0.25,
        "log_gain": -14.4,
        "log_gain_low": -14.7,
        "log_gain_high": -14.1,
        "growth": (-3.6, -3.6, -3.6, -3.6),
        "reproduce": "pytest test_init.py::test_tower",
    }
    return CheckRecord(**{**given, **changes}, verdicts=verdicts)


@pytest.fixture
def make_verdict() -> Callable[..., VerdictRecord]:
    return verdict


@pytest.fixture
def make_record() -> Callable[..., CheckRecord]:
    return record
