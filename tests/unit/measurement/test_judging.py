"""Which bounds are judged, and the remarks of verdicts. Verdicts themselves are tested with the checks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import nn

from pytest_trainability import at_least, at_most, measure
from pytest_trainability.checks.judged_elements import COVERAGE
from pytest_trainability.measurement.judging import applicable_bounds, verdict_of
from pytest_trainability.measures import MEASURES
from pytest_trainability.records.estimates import Estimate, Profile

NORM, ENTROPY, COVERED = (MEASURES[name] for name in ("gradient_norm", "attention_entropy", "untrained_fraction"))


def fraction(value: float) -> Estimate:
    return Estimate(value, value, value, (value,))


def test_a_bound_on_what_a_model_has_none_of_is_left_out_if_it_allows_that() -> None:
    bound = replace(at_least(0.1), if_any=True)
    assert applicable_bounds({ENTROPY: bound}, {"attention_entropy": Profile()}) == {}
    assert applicable_bounds({ENTROPY: bound}, {}) == {}
    assert applicable_bounds({ENTROPY: at_least(0.1)}, {"attention_entropy": Profile()}) == {ENTROPY: at_least(0.1)}


def test_coverage_is_judged_with_a_bound_on_gradients_where_little_is_covered() -> None:
    bounds = {NORM: at_least(0)}
    assert applicable_bounds(bounds, {"untrained_fraction": fraction(0.9)}) == {COVERED: COVERAGE, **bounds}
    assert applicable_bounds(bounds, {"untrained_fraction": fraction(0.1)}) == bounds
    own = {COVERED: at_most(1.0), **bounds}
    assert applicable_bounds(own, {"untrained_fraction": fraction(0.9)}) == own


def runs(**options: Any) -> Any:
    torch.manual_seed(0)
    result = measure(lambda: nn.Linear(4, 3), torch.ones(6, 4), seeds=2, **options)
    return result, result._seed_runs


def test_the_loss_of_a_guess_stands_with_the_initial_loss_only() -> None:
    result, seed_runs = runs(loss=F.cross_entropy, target=torch.arange(6) % 3)
    assert result.initial_loss and result.excess_loss
    verdict = verdict_of(seed_runs, MEASURES["initial_loss"], at_most(0.1))
    assert verdict is not None and verdict.remark == "a guess among 3 classes costs 1.099"
    verdict = verdict_of(seed_runs, MEASURES["log_gain"], at_most(9))
    assert verdict is not None and verdict.remark == ""


def test_a_bound_on_the_excess_loss_alone_runs_the_model_no_further() -> None:
    built = []

    def build() -> nn.Module:
        built.append(1)
        return nn.Linear(4, 3)

    result = measure(build, torch.ones(6, 4), seeds=2, loss=F.cross_entropy, target=torch.arange(6) % 3)
    result.run([MEASURES["excess_loss"]])
    before = len(built)
    result.check(excess_loss=at_most(9))
    assert len(built) == before


def test_the_selection_of_a_bound_is_part_of_the_verdict() -> None:
    result, seed_runs = runs()
    assert len(result.gradient_norm) == 2
    verdict = verdict_of(seed_runs, NORM, at_least(0, excluding="bias"))
    assert verdict is not None and (verdict.elements, verdict.selection) == (1, "without bias")
