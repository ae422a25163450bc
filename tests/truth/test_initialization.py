"""Contracts of initial values: false alarms are as rare as stated, and deviations as large as stated are found.

A check compares each probability with 1e-6 divided by the number of tests. Such rates cannot be counted. Here it is counted how
often a probability is below 0.05 for tensors that keep their rule. ``benchmarks/contract_errors.py`` counts down to 1e-4.
"""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import binom
from torch import nn

from pytest_trainability import TrainabilityFailure, init, initialization
from pytest_trainability.init.check import FALSE_ALARM

_PATH = Path(__file__).parents[2] / "benchmarks" / "contract_errors.py"
_SPEC = importlib.util.spec_from_file_location("contract_errors", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
contract_errors = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(contract_errors)

DRAWS = 40
LEVEL = 0.05


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", contract_errors.RULES)
def test_small_probabilities_are_as_rare_as_they_say(name: str, dtype: torch.dtype) -> None:
    """Chance alone exceeds the limit once in 10⁵ tests of this file, which draws the same numbers every time."""
    rule, fill = contract_errors.RULES[name]
    if name == "truncated far out" and float(fill(torch.empty(10**5, dtype=dtype)).abs().max()) > 100 * 0.02 * 0.99:
        pytest.skip(f"this version of PyTorch draws limits of 100 standard deviations in {dtype}")
    below, of = Counter[str](), Counter[str]()
    for _ in range(DRAWS):
        for kind, probability in contract_errors.drawn(rule, fill, (20, 30), dtype):
            below[kind] += probability < LEVEL
            of[kind] += 1
    assert of
    for kind, count in below.items():
        assert binom.sf(count - 1, of[kind], LEVEL) > 1e-5, (kind, count, of[kind])


def test_rates_that_are_too_high_are_detected() -> None:
    """The check above can fail: a rule with a standard deviation that is 20 % too large."""
    rule, fill = init.normal(std=0.024), contract_errors.RULES["normal"][1]
    counts = contract_errors.rates(rule, fill, (20, 30), torch.float32, DRAWS)
    assert contract_errors.is_too_often(counts["std"][1], counts["std"][0], 0.1)


class Layers(nn.Module):
    """Twenty matrices of 10⁵ entries, of which one may have another standard deviation."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(400, 250, bias=False) for _ in range(20))
        for i, layer in enumerate(self.layers):
            nn.init.normal_(layer.weight, std=0.02 * (factor if i == 7 else 1))


CONTRACT = {"*.weight": init.normal(std=0.02)}


def test_two_percent_of_one_matrix_are_found_with_one_seed() -> None:
    """The table of power gives 1.8 % for 10⁵ entries, and 20 matrices have about 100 tests: two percent are found."""
    assert contract_errors.least_error(10**5, 100) < 0.02
    initialization(lambda: Layers(1.0), seeds=1).check(CONTRACT)
    with pytest.raises(TrainabilityFailure, match=r"layers.7.weight: std 0.020., rule 0.02: \d.?\d? % too large"):
        initialization(lambda: Layers(1.02), seeds=1).check(CONTRACT)


@pytest.mark.parametrize("kurtosis", [3.0, 1.8])
def test_the_stated_power_is_reached(kurtosis: float) -> None:
    """A deviation as large as the table says is found in 99 of 100 draws, here in at least 45 of 50 (probability 1e-4)."""
    entries, draws, tests = 2000, 50, 100
    error = contract_errors.least_error(entries, tests, kurtosis)
    rule = init.normal(std=1.0) if kurtosis == 3 else init.uniform(-math.sqrt(3), math.sqrt(3))
    found = 0
    for _ in range(draws):
        weight = torch.randn(entries) if kurtosis == 3 else (2 * torch.rand(entries) - 1) * math.sqrt(3)
        model = contract_errors.OneParameter(weight * (1 - error))
        probabilities = contract_errors.probabilities_of({"weight": rule}, [(0, model)])
        found += any(kind == "std" and p < FALSE_ALARM / tests for kind, p in probabilities)
    assert found >= 45


def test_one_draw_that_is_copied_to_all_layers_is_found() -> None:
    def build() -> nn.Module:
        model = Layers(1.0)
        with torch.no_grad():
            for layer in model.layers:
                layer.weight.copy_(model.layers[0].weight)
        return model

    with pytest.raises(TrainabilityFailure, match=r"layers.\*.weight \(19 of 20\): equal to or correlated"):
        initialization(build, seeds=1).check(CONTRACT)
