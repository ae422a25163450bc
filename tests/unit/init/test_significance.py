"""Probabilities of deviations, against closed forms. How often they are small is in tests/truth/test_initialization.py."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from pytest_trainability.init.laws import Law, normal_law, uniform_law
from pytest_trainability.init.significance import (
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
