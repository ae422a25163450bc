"""Architectures that nobody here wrote, measured as a user would: model and inputs, and nothing else."""

from __future__ import annotations

import math

import pytest
import zoo

from pytest_trainability import measure

pytest.importorskip("transformers")


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.id)
def test_an_architecture_is_measured_without_options(case: zoo.Case) -> None:
    result = measure(case.build, case.inputs, seeds=2)
    assert str(result.steps) == case.steps
    assert math.isfinite(result.log_gain)
    assert result.log_gain == pytest.approx(sum(rate.mean for rate in result.growth_rate.values()))
    assert all(math.isfinite(rms.mean) and rms > 0 for rms in result.activation_rms.values())
    assert all(math.isfinite(value) for norm in result.gradient_norm.values() for value in norm.values)
    # A loss of the model's own reaches most parameters; without one a functional of the output does.
    assert len(result.unused_parameters) < len(result.gradient_norm)
    assert not result.nonfinite


def test_the_zoo_is_large_enough() -> None:
    assert len(zoo.CASES) >= 30
