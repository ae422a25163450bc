"""The two ways into a measurement: ``measure`` for everyone, ``measure_in`` for a test."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from pytest_trainability import Estimate, Names, Profile, Spectrum, UsageError, measure, within
from pytest_trainability.errors import BoundError
from pytest_trainability.measurement import Context, measure_in
from pytest_trainability.records.reports import CheckRecord

X = torch.linspace(-1, 1, 32).reshape(4, 8)


def tower() -> nn.Module:
    return nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.Tanh())])


def test_default_measures_and_those_of_reports_are_read_at_once() -> None:
    result = measure(tower, X, seeds=1)
    assert set(result._seed_runs.values) == {
        *("lyapunov_max", "gradient_norm", "activation_rms"),
        *("log_gain", "growth_rate", "unused_parameters", "gradient_classes", "untrained_fraction"),
    }
    more = measure(tower, X, seeds=1, measures=["dead_fraction"])
    assert set(more._seed_runs.values) - set(result._seed_runs.values) == {"dead_fraction"}


def test_values_are_of_the_kind_of_their_measure() -> None:
    result = measure(tower, X, seeds=2, exponents=2)
    assert isinstance(result.log_gain, Estimate) and isinstance(result.gradient_norm, Profile)
    assert isinstance(result.lyapunov_spectrum, Spectrum) and isinstance(result.unused_parameters, Names)


def test_measure_and_measure_in_measure_the_same() -> None:
    options: dict[str, Any] = {"seeds": [3, 1], "exponents": 2, "train": False, "dtype": "float64", "name": "net"}
    one, other = measure(tower, X, **options), measure_in(Context(), tower, X, **options)
    assert [e.values for e in one.lyapunov_spectrum] == [e.values for e in other.lyapunov_spectrum]
    assert (one.name, one.seeds, one.mode, one.dtype) == (other.name, other.seeds, other.mode, other.dtype)


def test_the_confidence_is_that_of_the_intervals() -> None:
    half, usual, default = (measure(tower, X, **given) for given in ({"confidence": 0.5}, {"confidence": 0.99}, {}))
    assert half.log_gain.half_width < usual.log_gain.half_width == default.log_gain.half_width
    with pytest.raises(UsageError, match="confidence"):
        measure(tower, X, confidence=99)


def test_bounds_are_measured_at_once_and_limit_the_seeds() -> None:
    records: list[CheckRecord] = []
    result = measure_in(Context(report=records.append), tower, X, seeds=8, until={"forward_log_gain": within(1000)})
    assert len(result.seeds) < 8 and "forward_log_gain" in result._seed_runs.values
    assert len(records) == 1 and records[0].seeds_requested == tuple(range(8))


def test_four_seeds_are_drawn_by_default_and_one_for_a_finished_module() -> None:
    assert measure(tower, X).seeds == (0, 1, 2, 3)
    assert measure(tower(), X, seeds=[5, 6]).seeds == (5,)


@pytest.mark.parametrize(
    ("model", "given", "name"),
    [
        (tower, None, "tower"),
        (lambda: tower(), None, "Sequential"),
        (nn.Identity(), None, "Sequential"),
        (tower, "mine", "mine"),
        (tower, "", "tower"),
    ],
    ids=["function", "lambda", "module", "named", "empty"],
)
def test_the_name_of_a_model(model: Any, given: str | None, name: str) -> None:
    if isinstance(model, nn.Module):
        model = tower()
    assert measure(model, X, seeds=1, name=given).name == name


def test_an_unknown_measure_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(BoundError, match=r"measures=: unknown measure 'log_gian'. Did you mean 'log_gain'\?"):
        measure(tower, X, seeds=1, measures=["log_gian"])


def test_intervals_need_two_seeds() -> None:
    assert math.isnan(measure(tower, X, seeds=1).log_gain.half_width)


def test_seeds_of_a_finished_module_are_said_to_be_one_draw() -> None:
    said = "5 seeds were asked for, and one was drawn: a finished module is one draw of its weights. Pass a factory"
    assert measure(tower(), X, seeds=5).notes[0].startswith(said)
    assert said in " ".join(measure(tower(), X, seeds=5).report().split())
    for result in (measure(tower(), X), measure(tower(), X, seeds=[3]), measure(tower, X, seeds=5)):
        assert not any("asked for" in note for note in result.notes)


def test_seeds_of_the_command_line_are_no_request_for_one_module() -> None:
    result = measure_in(Context(seeds_by_default=True), tower(), X, seeds=5)
    assert not any("asked for" in note for note in result.notes)
