"""A measurement outside pytest: it is reported to no one, and has no baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from pytest_trainability import UsageError, measure
from pytest_trainability.measurement import Context, measure_in
from pytest_trainability.records.reports import CheckRecord


def test_the_defaults_ask_nothing_of_the_session(make_record: Callable[..., CheckRecord]) -> None:
    context = Context()
    context.report(make_record())
    assert context.choose_steps(nn.Linear(2, 2)) is None
    assert (context.environment(), context.tolerances, context.baseline) == ({}, {}, None)
    assert (context.confidence, context.threads, context.worker) == (None, None, 0)


def test_each_context_has_tolerances_of_its_own() -> None:
    assert Context().tolerances is not Context().tolerances


def test_a_context_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Context().worker = 1  # type: ignore[misc]


def test_a_measurement_without_a_test_has_no_baseline() -> None:
    result = measure(lambda: nn.Linear(3, 3), torch.eye(3), seeds=1)
    with pytest.raises(UsageError, match=r"check_baseline\(\) needs a measurement of the trainability fixture"):
        result.check_baseline()


def test_the_context_chooses_steps_threads_and_confidence() -> None:
    threads = torch.get_num_threads()
    seen: list[int] = []

    class Counted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(x)

    context = Context(choose_steps=lambda model: ["1", "2"], threads=1, confidence=0.5)
    narrow = measure_in(context, lambda: nn.Sequential(*(Counted(3, 3) for _ in range(3))), torch.eye(3), seeds=4)
    wide = measure_in(
        Context(), lambda: nn.Sequential(*(Counted(3, 3) for _ in range(3))), torch.eye(3), steps=["1", "2"]
    )
    assert narrow.steps.names == ("1", "2")
    assert narrow.log_gain.values == wide.log_gain.values
    assert narrow.log_gain.half_width < wide.log_gain.half_width
    assert set(seen[:12]) == {1} and torch.get_num_threads() == threads
