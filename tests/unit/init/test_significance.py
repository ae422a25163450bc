"""Probabilities of deviations, against closed forms. How often they are small is in tests/truth/test_initialization.py."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from pytest_trainability.init.laws import Law, normal_law, truncated_law, uniform_law
from pytest_trainability.init.significance import (
    _largest_slope,
    column_probability,
    correlation_probability,
    entry_probability,
    mean_probability,
    rounding_of,
    sample_of,
    shape_probability,
    std_probability,
)
from pytest_trainability.init.statistics import statistics_of


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_normal_entries_have_the_exact_distributions() -> None:
    entries = 0.5 * normal(40) + 0.1
    found, law = statistics_of(entries), normal_law(0.0, 0.45)
    z = entries.mean().item() / 0.45 * math.sqrt(40)
    assert mean_probability(found, law, 0.0) == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-9)
    chi = float((entries - entries.mean()).square().sum()) / 0.45**2
    expected = 2 * min(stats.chi2.sf(chi, 39), stats.chi2.cdf(chi, 39))
    assert std_probability(found, law, 0.0) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("law", [normal_law(0.0, 1.0), uniform_law(-math.sqrt(3), math.sqrt(3))])
def test_what_rounding_explains_does_not_count(law: Law) -> None:
    found = statistics_of(normal(10**6) * 1.003 + 0.007)
    assert std_probability(found, law, 0.0) < 0.01
    assert std_probability(found, law, rounding_of(torch.bfloat16)) > 0.5
    assert mean_probability(found, law, 0.0) < 1e-5
    assert mean_probability(found, law, rounding_of(torch.bfloat16)) > 0.5


def test_the_wrong_shape_is_improbable() -> None:
    flat = torch.linspace(-math.sqrt(3), math.sqrt(3), 20_000, dtype=torch.float64)
    assert shape_probability(flat, uniform_law(-math.sqrt(3), math.sqrt(3)), 0.0) == pytest.approx(1, abs=1e-3)
    assert shape_probability(flat, normal_law(0.0, 1.0), 0.0) < 1e-12


def test_rounded_entries_keep_their_shape() -> None:
    entries = (0.02 * normal(20_000)).bfloat16().double()
    assert shape_probability(entries, normal_law(0.0, 0.02), rounding_of(torch.bfloat16)) > 1e-2


@pytest.mark.parametrize("kind", ["equal rows", "mirrored rows"])
def test_rows_that_depend_on_each_other(kind: str) -> None:
    half = normal(32, 60)
    block = half[:1].expand(64, -1) if kind == "equal rows" else torch.cat([half, -half])
    assert column_probability(block) < 1e-12
    assert column_probability(normal(64, 60, seed=1)) > 1e-3
    assert column_probability(torch.ones(9, 9)) == 1


def test_correlations() -> None:
    x, y = normal(2, 256)
    found = float(torch.corrcoef(torch.stack([x, y]))[0, 1])
    assert correlation_probability(found, 256) == pytest.approx(stats.pearsonr(x.numpy(), y.numpy()).pvalue, rel=1e-6)
    assert correlation_probability(1.0, 256) < 1e-100


def test_the_identity_is_an_improbable_orthogonal_matrix() -> None:
    assert entry_probability(1.0, (64, 64), 1.0) == 0
    assert entry_probability(0.5, (64, 64), 1.0) == pytest.approx(64**2 * stats.beta.sf(0.25, 0.5, 31.5), rel=1e-6)
    assert entry_probability(1.0, (1, 1), 1.0) == 1
    # Of 64² entries, many are as large: a bound that adds them up is at most 1.
    assert entry_probability(0.1, (64, 64), 1.0) == 1


@pytest.mark.parametrize("shape", [(), (3,), (5000,), (7, 3), (100, 80), (2000, 3, 2)])
def test_a_sample_is_bounded_and_holds_entries(shape: tuple[int, ...]) -> None:
    tensor = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    found = sample_of(tensor)
    assert len(found.entries) == min(tensor.numel(), 4096)
    assert len(found.entries.unique()) == len(found.entries)
    assert found.block.shape[0] <= 1024
    assert sample_of(tensor.mT if tensor.dim() > 1 else tensor).entries.sort().values[0] == 0


def test_a_sample_of_complex_entries() -> None:
    assert sample_of(torch.zeros(3, 2, dtype=torch.complex64)).entries.dtype is torch.float64


@pytest.mark.parametrize(
    "law",
    [
        normal_law(0.0, 1.0),
        normal_law(2.0, 0.5),
        normal_law(-3.0, 1.0),
        uniform_law(-1.0, 1.0),
        uniform_law(2.0, 3.0),
        truncated_law(0.5, 1.0, -1.0, 1.5),
    ],
)
def test_the_effect_of_rounding_is_bounded(law: Law) -> None:
    """``max |x f(x)|``, computed by differences of the distribution function; the bound is at most half larger."""
    x = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    density = law.cdf(x).diff() / x.diff()
    largest = float((x[1:].abs() * density).max())
    # A uniform distribution has a grid of points, each of which moves by half a step as well.
    grid = 1.0 if law.kind == "uniform" else 0.0
    assert largest * (1 - 1e-3) <= _largest_slope(law) - grid <= 1.5 * largest


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_uniform_entries_have_the_larger_of_two_probabilities(factor: float) -> None:
    """Of a scaled chi-square distribution and a normal one, both with the variance that the kurtosis 9/5 gives."""
    n = 400
    entries = torch.linspace(-1, 1, n, dtype=torch.float64)
    entries = entries / entries.std() / math.sqrt(3) * factor
    law = uniform_law(-1.0, 1.0)
    degrees, ratio = (n - 1) * 2 / (9 / 5 - 1), factor**2 / 3 / (1 / 3)
    chi = 2 * (stats.chi2.sf if ratio > 1 else stats.chi2.cdf)(degrees * ratio, degrees)
    normal_one = 2 * stats.norm.sf(abs(ratio - 1) / math.sqrt(2 / degrees))
    assert std_probability(statistics_of(entries), law, 0.0) == pytest.approx(max(chi, normal_one), rel=1e-6)


def test_a_probability_is_at_most_one() -> None:
    """The sums of independent rows are neither too large nor too small, and an allowance is made in both directions."""
    found = [column_probability(normal(64, 60, seed=seed)) for seed in range(20)]
    assert max(found) == 1
