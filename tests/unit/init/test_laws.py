"""Moments and distribution functions, against scipy and against draws."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from pytest_trainability.init.laws import normal_law, truncated_law, uniform_law

LAWS = {
    "normal": lambda: (normal_law(0.3, 2.0), stats.norm(0.3, 2.0)),
    "uniform": lambda: (uniform_law(-1.0, 3.0), stats.uniform(-1.0, 4.0)),
    "truncated": lambda: (truncated_law(0.5, 2.0, -1.0, 4.0), stats.truncnorm(-0.75, 1.75, 0.5, 2.0)),
    "one side": lambda: (truncated_law(0.0, 1.0, 0.0, 50.0), stats.halfnorm()),
    "cut nothing": lambda: (truncated_law(0.0, 0.02, -2.0, 2.0), stats.norm(0.0, 0.02)),
}


@pytest.mark.parametrize("name", LAWS)
def test_moments_and_distribution_function(name: str) -> None:
    """scipy computes the same closed forms and integrals: only rounding separates them."""
    law, expected = LAWS[name]()
    mean, variance, _, excess = (float(m) for m in expected.stats("mvsk"))
    assert law.mean == pytest.approx(mean, abs=1e-12)
    assert law.std == pytest.approx(math.sqrt(variance), rel=1e-10)
    assert law.kurtosis == pytest.approx(excess + 3, rel=1e-6)
    x = torch.linspace(-3, 5, 101, dtype=torch.float64)
    assert law.cdf(x).tolist() == pytest.approx(expected.cdf(x.numpy()).tolist(), abs=1e-12)


def test_laws_that_differ_by_mean_and_std_have_one_shape() -> None:
    assert normal_law(0, 1).shape_name() == normal_law(3, 0.1).shape_name()
    assert uniform_law(0, 1).shape_name() == uniform_law(-2, 5).shape_name()
    assert truncated_law(0, 1, -2, 2).shape_name() == pytest.approx(truncated_law(0, 0.02, -0.04, 0.04).shape_name())
    assert truncated_law(0, 1, -2, 2).shape_name() != truncated_law(0, 1, -3, 3).shape_name()
