"""Residual steps: rows 6 and 6b of the table of closed forms.

Both systems meet a fresh, rotation-invariant matrix at each step, so that a tangent that is independent of it grows by
independent factors, whose law is that of one noncentral χ². A random cotangent has the same law as a random tangent: for
a given product A, of any depth, `‖A v‖` and `‖Aᵀ u‖` depend on the singular values alone. Mean and variance below
are therefore exact at any width and depth, and every tolerance is four standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import digamma, polygamma
from scipy.stats import binom, chi2, poisson
from torch import nn
from towers import F64, Residual, gaussian, linear, normal, repeated

from pytest_trainability import measure


def log_noncentral(width: int, noncentrality: float) -> tuple[float, float]:
    """Return E ln χ'²_N(ν) and E (ln χ'²_N(ν))²: a χ²_{N+2j} with j ~ Poisson(ν/2)."""
    middle, spread = noncentrality / 2, 12 * math.sqrt(noncentrality / 2) + 40
    j = np.arange(max(0, math.floor(middle - spread)), math.ceil(middle + spread))
    weights = poisson.pmf(j, middle)
    means = digamma(width / 2 + j) + math.log(2)
    return float(weights @ means), float(weights @ (means**2 + polygamma(1, width / 2 + j)))


# Row 6: x + V relu(W x) --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReLUBranch:
    """`x + V relu(W x)`: N units outside, M inside, Var W = σ_w²/N, Var V = σ_v²/M.

    `V D W v` is Gaussian with variance `t = (σ²/(N M)) χ²_K` per entry, σ² = σ_v² σ_w² and K ~ Bin(M, ½) active units,
    so that `‖v + V D W v‖² ~ t χ'²_N(1/t)` for a unit vector v.
    """

    width: int
    hidden: int
    weight: float = 1.0
    outer: float = 1.0

    @property
    def mean_square(self) -> float:
        """E‖Jv‖² = 1 + N E t: the widths cancel."""
        return 1 + self.weight * self.outer / 2

    @property
    def mean_fourth(self) -> float:
        """E‖Jv‖⁴ = 1 + (2N + 4) E t + (N² + 2N) E t²; E t² has E (χ²_K)² = E (K² + 2K) = M²/4 + 5M/4 in it."""
        N, M, product = self.width, self.hidden, self.weight * self.outer
        t, t_squared = product / (2 * N), (product / (N * M)) ** 2 * (M**2 / 4 + 5 * M / 4)
        return 1 + (2 * N + 4) * t + (N**2 + 2 * N) * t_squared

    @cached_property
    def exponent_and_variance(self) -> tuple[float, float]:
        """Mean and variance of ½ ln‖Jv‖² = ½ (ln t + ln χ'²_N(1/t)), over K and then over χ²_K."""
        scale = self.weight * self.outer / (self.width * self.hidden)
        mean = square = 0.0
        for active in range(1, self.hidden + 1):  # without active units the step is the identity: zero nats

            def moment(order: int, y: float, active: int = active) -> float:
                first, second = log_noncentral(self.width, 1 / (scale * y))
                log = math.log(scale * y)
                found = first + log if order == 1 else second + 2 * log * first + log**2
                return found * float(chi2.pdf(y, active))

            probability = float(binom.pmf(active, self.hidden, 0.5))
            # Below 1e-3 the branch is smaller still (t < 1e-4 here) and adds less than P(χ²_K < 1e-3) · N t ~ 1e-6.
            ends = 1e-3, float(chi2.isf(1e-10, active))
            mean += probability * quad(lambda y: moment(1, y), *ends, epsabs=1e-7)[0]
            square += probability * quad(lambda y: moment(2, y), *ends, epsabs=1e-7)[0]
        return mean / 2, (square - mean**2) / 4

    def model(self, depth: int) -> Callable[[], nn.Module]:
        def layer() -> nn.Module:
            inner = gaussian(self.width, self.hidden, variance=self.weight / self.width)
            outer = gaussian(self.hidden, self.width, variance=self.outer / self.hidden)
            return Residual(inner, nn.ReLU(), outer)

        return repeated(layer, depth)


BRANCHES = [
    pytest.param(ReLUBranch(16, 48), id="expanding"),
    pytest.param(ReLUBranch(32, 6), id="bottleneck"),
    pytest.param(ReLUBranch(12, 12, weight=2.0, outer=0.5), id="square"),
    pytest.param(ReLUBranch(24, 24, weight=0.5, outer=0.1), id="small branch"),
]


@pytest.mark.parametrize("branch", BRANCHES)
def test_residual_second_moment(branch):
    """E‖Ju‖² = (1 + σ_v² σ_w²/2)^L exactly, at any width, outside and inside."""
    depth, seeds = 3, 200
    result = measure(branch.model(depth), normal(1, branch.width), seeds=seeds, measures=["log_gain"])
    assert result.steps.description == "3 × Residual"
    mean = sum(math.exp(2 * value) for value in result.log_gain.values) / seeds
    expected = branch.mean_square**depth
    # Three steps keep the tail light (relative variance below 1.5), so that the mean of 200 is close to normal.
    variance = branch.mean_fourth**depth - expected**2
    assert variance < 1.5 * expected**2
    assert abs(mean - expected) < 4 * math.sqrt(variance / seeds)


def test_residual_exponent_is_the_quenched_one():
    """The typical gradient grows less than its second moment: a public exponent of ½ ln E‖Ju‖² would be seen."""
    branch, depth, seeds = ReLUBranch(6, 6, weight=2.0), 12, 150
    exponent, variance = branch.exponent_and_variance
    tolerance = 4 * math.sqrt(variance / (depth * seeds))
    assert exponent + 2 * tolerance < 0.5 * math.log(branch.mean_square)
    result = measure(branch.model(depth), normal(1, branch.width), seeds=seeds, measures=["lyapunov_max"])
    assert abs(result.lyapunov_max - exponent) < tolerance


def fixup(width: int) -> nn.Module:
    """Zhang, Dauphin & Ma (ICLR 2019): the branch's last layer starts at zero."""
    return Residual(gaussian(width, width, variance=2 / width), nn.ReLU(), linear(torch.zeros(width, width)))


def skip_init(width: int) -> nn.Module:
    """De & Smith (NeurIPS 2020): a scalar that starts at zero, behind a normalised branch."""
    return Residual(nn.LayerNorm(width, dtype=F64), gaussian(width, width, variance=2 / width), nn.ReLU(), scale=0.0)


def rezero(width: int) -> nn.Module:
    """Bachlechner et al. (UAI 2021): the same without normalisation."""
    return Residual(gaussian(width, width, variance=2 / width), nn.ReLU(), scale=0.0)


@pytest.mark.parametrize("block", [fixup, skip_init, rezero])
@pytest.mark.parametrize("batch", [1, 2], ids=["joint", "per sample"])
def test_zeroed_branch_is_the_identity(block, batch):
    """All exponents are 0, and not -0.0…1 or a vanished frame."""
    wanted = ["lyapunov_spectrum", "forward_log_gain"]
    result = measure(repeated(lambda: block(7), 10), normal(batch, 7), seeds=2, exponents=7, measures=wanted)
    assert len(result.lyapunov_spectrum) == 7
    # QR of an orthonormal frame: each R[i,i] is 1 to a few eps.
    assert all(abs(exponent) < 1e-14 for exponent in result.lyapunov_spectrum)
    assert abs(result.log_gain) < 1e-13
    assert result.forward_log_gain == 0


# Row 6b: I + A -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Perturbed:
    """`x + A x`, A Gaussian with entry variance s² = σ²/N: `‖(I + A) v‖² ~ s² χ'²_N(1/s²)`."""

    width: int
    variance: float

    @property
    def exponent(self) -> float:
        s_squared = self.variance / self.width
        return 0.5 * (math.log(s_squared) + log_noncentral(self.width, 1 / s_squared)[0])

    @property
    def step_variance(self) -> float:
        first, second = log_noncentral(self.width, self.width / self.variance)
        return (second - first**2) / 4

    def model(self, depth: int) -> Callable[[], nn.Module]:
        return repeated(lambda: Residual(gaussian(self.width, self.width, variance=self.variance / self.width)), depth)


PERTURBED = [
    pytest.param(Perturbed(16, 1.0), 0.32242, id="variance 1"),
    pytest.param(Perturbed(16, 0.25), 0.10010, id="variance 0.25"),
]


@pytest.mark.parametrize(("system", "published"), PERTURBED)
def test_perturbed_identity(system, published):
    assert system.exponent == pytest.approx(published, abs=5e-6)  # all digits given
    depth, seeds = 24, 64
    tolerance = 4 * math.sqrt(system.step_variance / (depth * seeds))
    # The annealed relative, ½ ln(1 + σ²), is 0.024 and 0.011 above: it would not pass.
    assert tolerance < 0.5 * math.log(1 + system.variance) - published
    result = measure(system.model(depth), normal(1, 16), seeds=seeds, measures=["lyapunov_max"])
    assert abs(result.lyapunov_max - published) < tolerance


def test_perturbed_identity_narrows_the_spectrum_and_raises_its_top():
    """A residual connection makes the exponents more alike, and the largest one larger, not smaller."""
    depth, width, seeds = 24, 16, 6
    system = Perturbed(width, 1.0)
    plain = repeated(lambda: gaussian(width, width, variance=1 / width), depth)
    alone, residual = (
        measure(model, normal(1, width), seeds=seeds, exponents=width, measures=["lyapunov_spectrum"])
        for model in (plain, system.model(depth))
    )
    top = 0.5 * (math.log(2 / width) + float(digamma(width / 2)))
    width_alone = 0.5 * (float(digamma(width / 2)) - float(digamma(0.5)))
    errors = [math.sqrt(float(polygamma(1, n / 2)) / (4 * depth * seeds)) for n in (width, 1)]
    spread = alone.lyapunov_spectrum[0] - alone.lyapunov_spectrum[-1]
    # The spectrum of A alone is Newman's, 2.0 nats wide; R[i,i] are independent.
    assert abs(spread - width_alone) < 4 * math.hypot(*errors)
    assert residual.lyapunov_spectrum[0] - residual.lyapunov_spectrum[-1] < width_alone - 4 * math.hypot(*errors)
    tolerance = 4 * math.sqrt(system.step_variance / (depth * seeds))
    assert residual.lyapunov_max > system.exponent - tolerance > top
