"""Products of random matrices: rows 1, 1b, 2 and 13 of the table of closed forms.

Newman (Commun. Math. Phys. 103, 121 (1986)): a frame drawn independently of Gaussian weights meets, at every step, a
fresh Gaussian matrix, whose QR factor has `R[i,i]² ~ s² χ²_{N-i+1}`, independent over i and steps. Hence mean and variance
of every exponent are known at *any* depth, and tolerances are four of these known standard errors, not fitted ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import pytest
import torch
from scipy.special import digamma, polygamma
from scipy.stats import chi2
from torch import Tensor, nn
from towers import F64, Block, gaussian, linear, normal, orthogonal, repeated, stacked

from pytest_trainability import measure


def newman_exponent(index: int, width: int, variance: float) -> float:
    """λ_i of products of Gaussian matrices with entries of this variance."""
    return 0.5 * (math.log(2 * variance) + float(digamma((width - index + 1) / 2)))


def newman_error(index: int, width: int, depth: int, seeds: int) -> float:
    """Standard error of λ_i: Var ln R[i,i] = ψ'((N-i+1)/2)/4 per step."""
    return math.sqrt(float(polygamma(1, (width - index + 1) / 2)) / (4 * depth * seeds))


def gaussian_tower(width: int, depth: int, variance: float):
    return repeated(partial(gaussian, width, width, variance=variance), depth)


# Row 1: Gaussian products ------------------------------------------------------------------------------------------

SPECTRA = [
    pytest.param(8, 1, 300, 1 / 8, id="one step"),
    pytest.param(16, 32, 24, 1 / 16, id="32 steps"),
    pytest.param(6, 12, 60, 3.0, id="unscaled variance"),
]


@pytest.mark.parametrize(("width", "depth", "seeds", "variance"), SPECTRA)
def test_gaussian_spectrum_is_newmans(width, depth, seeds, variance):
    """Every exponent, one step included: QR from an independent frame has no bias at any depth."""
    model = gaussian_tower(width, depth, variance)
    result = measure(model, normal(1, width), seeds=seeds, exponents=width, measures=["lyapunov_spectrum"])
    expected = [newman_exponent(i, width, variance) for i in range(1, width + 1)]
    deviations = [
        (exponent.mean - value) / newman_error(i, width, depth, seeds)
        for i, (exponent, value) in enumerate(zip(result.lyapunov_spectrum, expected), start=1)
    ]
    # Four standard errors each: 16 normal numbers leave ±4 once in a thousand such tests.
    assert max(map(abs, deviations)) < 4, deviations


@pytest.mark.parametrize(("width", "depth", "seeds", "variance"), SPECTRA)
def test_gaussian_maximum_is_newmans(width, depth, seeds, variance):
    model = gaussian_tower(width, depth, variance)
    result = measure(model, normal(1, width), seeds=seeds, measures=["lyapunov_max"])
    assert abs(result.lyapunov_max - newman_exponent(1, width, variance)) < 4 * newman_error(1, width, depth, seeds)


def test_top_of_the_spectrum_is_the_maximum():
    """One quantity, one number: λ_1 is the growth of the first column, whatever else is carried along."""
    model = gaussian_tower(16, 32, 1 / 16)
    many = measure(model, normal(1, 16), seeds=24, exponents=16, measures=["lyapunov_spectrum", "lyapunov_max"])
    one = measure(model, normal(1, 16), seeds=24, measures=["lyapunov_max"])
    # The first column of the frame is drawn alike; only the order of floating-point operations differs.
    assert abs(many.lyapunov_max - one.lyapunov_max.mean) < 1e-12
    assert abs(many.lyapunov_spectrum[0] - one.lyapunov_max.mean) < 1e-12


def test_spread_over_seeds_is_newmans():
    """The intervals rest on the spread over seeds, so that has to be right, too."""
    width, depth, seeds = 16, 8, 200
    result = measure(gaussian_tower(width, depth, 1 / width), normal(1, width), seeds=seeds, measures=["lyapunov_max"])
    spread = float(torch.tensor(result.lyapunov_max.values).var())
    expected = newman_error(1, width, depth, 1) ** 2
    # ln χ²_16 averaged over 8 steps is normal to within a per cent, so (S - 1) s²/σ² is χ²_{S-1}; 6e-5 are four sigmas.
    low, high = chi2.ppf([3e-5, 1 - 3e-5], seeds - 1) / (seeds - 1)
    assert low < spread / expected < high


def test_gaussian_bias_is_resolved():
    """The tolerance of the 32-step case separates the quenched -1/(2N) from mean-field theory's zero."""
    width, depth, seeds = 8, 32, 60
    result = measure(gaussian_tower(width, depth, 1 / width), normal(1, width), seeds=seeds, measures=["lyapunov_max"])
    quenched, tolerance = newman_exponent(1, width, 1 / width), 4 * newman_error(1, width, depth, seeds)
    assert quenched + tolerance < 0
    assert abs(result.lyapunov_max - quenched) < tolerance


# Row 1b: changing width --------------------------------------------------------------------------------------------

TAPERS = [pytest.param([24, 40, 16, 32, 12], id="zigzag"), pytest.param([6, 12, 24, 48], id="widening")]


@pytest.mark.parametrize("widths", TAPERS)
def test_changing_width(widths: Sequence[int]):
    """Backward, `‖Wᵀu‖² ~ χ²_{n_{l-1}} / n_{l-1}`; forward, `‖Wx‖² ~ χ²_{n_l} / n_{l-1}`."""
    seeds = 150
    pairs = list(pairwise(widths))
    model = stacked(*[partial(gaussian, below, above, variance=1 / below) for below, above in pairs])
    result = measure(model, normal(1, widths[0]), seeds=seeds, measures=["log_gain", "forward_log_gain"])
    backward = sum(0.5 * (math.log(2 / below) + float(digamma(below / 2))) for below, _ in pairs)
    forward = sum(0.5 * (math.log(2 / below) + float(digamma(above / 2))) for below, above in pairs)
    # The closed form is of norms; `forward_log_gain` is of root mean squares, each over its own width.
    forward -= 0.5 * math.log(widths[-1] / widths[0])
    # Var ½ ln χ²_n = ψ'(n/2)/4, independent over layers.
    backward_error = math.sqrt(sum(float(polygamma(1, below / 2)) for below, _ in pairs) / (4 * seeds))
    forward_error = math.sqrt(sum(float(polygamma(1, above / 2)) for _, above in pairs) / (4 * seeds))
    # Scaled by 1/fan_out instead, the backward gain would be off by ½ ln(n_0/n_L); that would be seen.
    assert 4 * backward_error < 0.5 * abs(0.5 * math.log(widths[0] / widths[-1]))
    assert abs(result.log_gain - backward) < 4 * backward_error
    assert abs(result.forward_log_gain - forward) < 4 * forward_error


# Row 2: orthogonal weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3], ids=["joint", "per sample"])
@pytest.mark.parametrize("gain", [0.5, 1.0, 3.0])
def test_orthogonal_spectrum_is_flat(gain, batch):
    model = repeated(partial(orthogonal, 12, gain), 30)
    result = measure(
        model, normal(batch, 12), seeds=2, exponents=12, measures=["lyapunov_spectrum", "forward_log_gain"]
    )
    assert result.frame == ("joint" if batch == 1 else "per sample")
    assert len(result.lyapunov_spectrum) == 12
    # Each step is an isometry to a few eps = 2e-16 times √12; averages over steps do not add up.
    assert max(abs(exponent.mean - math.log(gain)) for exponent in result.lyapunov_spectrum) < 1e-12
    assert abs(result.lyapunov_max - math.log(gain)) < 1e-12
    # Totals of 30 such steps.
    assert abs(result.log_gain - 30 * math.log(gain)) < 30e-12
    assert abs(result.forward_log_gain - 30 * math.log(gain)) < 30e-12


def test_growth_rate_follows_the_layers():
    """Each step's own gain stands at its own name, in program order."""
    gains = [0.25, 4.0, 1.0, 0.5, 7.0]
    result = measure(stacked(*[partial(orthogonal, 9, gain) for gain in gains]), normal(2, 9), seeds=2)
    assert list(result.growth_rate) == ["0", "1", "2", "3", "4"]
    for rate, gain in zip(result.growth_rate.values(), gains):
        assert abs(rate - math.log(gain)) < 1e-12


@pytest.mark.parametrize("gain", [1e-30, 1e30])
def test_gain_beyond_the_range_of_floats(gain):
    """20 steps of 1e±30 are 1e±600: no float64 holds that, its logarithm is an ordinary number."""
    model = repeated(partial(orthogonal, 5, gain), 20)
    # Activations would overflow as the gradient would: a zero input keeps the forward pass finite.
    result = measure(model, torch.zeros(1, 5, dtype=F64), seeds=1, exponents=5, measures=["lyapunov_spectrum"])
    assert abs(result.log_gain - 20 * math.log(gain)) < 1e-10  # 1381 nats at eps = 2e-16, times 20 steps
    assert all(abs(exponent - math.log(gain)) < 1e-12 for exponent in result.lyapunov_spectrum)


# Row 13: the sum of the exponents ----------------------------------------------------------------------------------


def log_abs_det(matrix: Tensor) -> float:
    return float(torch.linalg.slogdet(matrix).logabsdet)


# QR is backward stable: each R[i,i] is right to eps·κ(J), with κ some 1e3 for these matrices, and there are at most
# 12 of them per step. 2e-16 · 1e3 · 12 = 3e-12; thirty times that is still ten digits.
ROUND_OFF = 1e-10


def test_exponents_of_linear_steps_sum_to_the_log_determinant():
    torch.manual_seed(1)
    matrices = [torch.randn(10, 10, dtype=F64) for _ in range(15)]
    model = nn.Sequential(*[linear(matrix) for matrix in matrices])
    result = measure(model, torch.randn(2, 10, dtype=F64), exponents=10, measures=["lyapunov_spectrum"])
    expected = sum(map(log_abs_det, matrices)) / 15
    assert abs(math.fsum(e.mean for e in result.lyapunov_spectrum) - expected) < ROUND_OFF


def test_exponents_of_nonlinear_steps_sum_to_the_log_determinant():
    """Jacobians differ from sample to sample here, and every sample has its own frame."""
    torch.manual_seed(2)
    model = nn.Sequential(*[Block(nn.Linear(8, 8, dtype=F64), nn.Tanh()) for _ in range(10)])
    x = torch.randn(3, 8, dtype=F64)
    result = measure(model, x, exponents=8, measures=["lyapunov_spectrum"])
    assert (result.frame, result.steps.description) == ("per sample", "10 × Block")
    total, state = 0.0, x
    with torch.no_grad():
        for block in model:
            state = block(state)
            weight = log_abs_det(block.parts[0].weight)
            total += weight + float((1 - state.square()).log().sum(dim=1).mean())
    assert abs(math.fsum(e.mean for e in result.lyapunov_spectrum) - total / 10) < ROUND_OFF


class Mixing(Block):
    """`x → M x Wᵀ`: rows are samples, and M mixes them, as BatchNorm does."""

    def __init__(self, between: Tensor, within: Tensor) -> None:
        super().__init__(linear(within))
        self.between = nn.Parameter(between)

    def forward(self, x: Tensor) -> Tensor:
        return self.between @ super().forward(x)


def test_exponents_of_interacting_samples_sum_to_the_log_determinant():
    """The Jacobian of the joint frame is the Kronecker product `M ⊗ W`: ln abs det = N ln abs det M + B ln abs det W."""
    torch.manual_seed(3)
    batch, width, depth = 3, 4, 6
    pairs = [(torch.randn(batch, batch, dtype=F64), torch.randn(width, width, dtype=F64)) for _ in range(depth)]
    model = nn.Sequential(*[Mixing(M, W) for M, W in pairs])
    x = torch.randn(batch, width, dtype=F64)
    result = measure(model, x, exponents=batch * width, measures=["lyapunov_spectrum"])
    assert result.frame == "joint"
    expected = sum(width * log_abs_det(M) + batch * log_abs_det(W) for M, W in pairs) / depth
    assert abs(math.fsum(e.mean for e in result.lyapunov_spectrum) - expected) < ROUND_OFF


def test_one_missing_exponent_breaks_the_sum():
    """The identity can fail: without its smallest exponent, the sum is off by far more than round-off."""
    torch.manual_seed(1)
    matrix = torch.randn(10, 10, dtype=F64)
    result = measure(linear(matrix), torch.randn(1, 10, dtype=F64), exponents=9, measures=["lyapunov_spectrum"])
    assert abs(math.fsum(e.mean for e in result.lyapunov_spectrum) - log_abs_det(matrix)) > 1e6 * ROUND_OFF
