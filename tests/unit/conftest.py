"""Records without a measurement, for tests of judging and showing; and measures that live for one test."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_trainability.records.reports import CheckRecord, VerdictRecord

if TYPE_CHECKING:
    from pytest_trainability import Measure, TrainabilityError


def verdict(**changes: Any) -> VerdictRecord:
    """Return a verdict that does not hold, with some fields changed."""
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
        "spread": 0.3,
    }
    return VerdictRecord(**{**given, **changes})


def record(*verdicts: VerdictRecord, **changes: Any) -> CheckRecord:
    """Return the record of a tower of four layers, with some fields changed."""
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
        "log_gain_spread": 0.3,
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


@pytest.fixture
def added() -> Iterator[Callable[..., Measure]]:
    """Add measures for the length of a test: ``added(name, *needs, read=..., kind="scalar")``."""
    from pytest_trainability import Measure, add_measure
    from pytest_trainability.measures import MEASURES

    names = []

    def add(name: str, *needs: Any, read: Callable[..., Any], kind: Any = "scalar") -> Measure:
        found = Measure(name, kind, "", "linear", frozenset(needs), read)
        add_measure(found)
        names.append(name)
        return found

    yield add
    for name in names:
        MEASURES.pop(name, None)


@pytest.fixture
def refused() -> Callable[..., None]:
    """Measure a model that cannot be measured, and check the message; without an error, measure it."""
    from pytest_trainability import measure

    def check(
        model: Any, inputs: Any, settings: dict[str, Any], error: type[TrainabilityError] | None, parts: Sequence[str]
    ) -> None:
        settings = {"seeds": 1, **settings}
        if error is None:
            measure(model, inputs, **settings)
            return
        with pytest.raises(error) as caught:
            measure(model, inputs, **settings)
        text = str(caught.value)
        for part in parts:
            assert part in text
        assert "  " not in text
        assert re.match(r"[a-z']", text), "a message goes on where 'error:' stops"

    return check
