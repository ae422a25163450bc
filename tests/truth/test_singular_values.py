"""Singular values of the whole chain: rows 2, 11, 12 and 13 of the table of closed forms, and products in many digits."""

from __future__ import annotations

import math
from functools import partial

import models
import mpmath
import pytest
import torch
from scipy.special import digamma, polygamma
from torch import Tensor, nn
from towers import F64, Block, gaussian, linear, normal, orthogonal, repeated, stacked, standard_error

from pytest_trainability import measure
from pytest_trainability.engine.jacobian.sample_independence import find_trajectories
from pytest_trainability.measures.jacobian.singular_values import SingularValues, singular_values

ALL = ["jacobian_singular_values", "max_ftle", "condition_number", "numerical_rank", "isometry_gap"]


def of_chain(model: nn.Module, x: Tensor) -> SingularValues:
    """Return the logarithms that the measures are read from."""
    chain = models.cut(model, x).chain
    return singular_values(find_trajectories(chain, len(x), 0)[0], 0)


# Row 2: orthogonal weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3], ids=["joint", "per sample"])
@pytest.mark.parametrize("gain", [0.5, 1.0, 3.0])
def test_orthogonal_weights_have_one_singular_value(gain, batch):
    depth = 30
    result = measure(repeated(partial(orthogonal, 12, gain), depth), normal(batch, 12), seeds=2, measures=ALL)
    assert result.frame == ("joint" if batch == 1 else "per sample")
    assert len(result.jacobian_singular_values) == 12
    # Each step is an isometry times g to a few eps = 2e-16 times √12, and there are 30.
    assert all(abs(s.mean / gain**depth - 1) < 1e-12 for s in result.jacobian_singular_values)
    assert abs(result.max_ftle - math.log(gain)) < 1e-13
    assert abs(result.condition_number - 1) < 1e-12
    assert result.numerical_rank == 12
    assert abs(result.isometry_gap) < 1e-12


@pytest.mark.parametrize("gain", [1e-30, 1e30])
def test_isometry_beyond_the_range_of_floats(gain):
    """1e±600 is no number of float64; what is read from its logarithm is right."""
    model = repeated(partial(orthogonal, 5, gain), 20)
    result = measure(model, torch.zeros(1, 5, dtype=F64), seeds=1, measures=ALL)
    assert [s.mean for s in result.jacobian_singular_values] == [0.0 if gain < 1 else math.inf] * 5
    assert abs(result.max_ftle - math.log(gain)) < 1e-12
    assert abs(result.condition_number - 1) < 1e-11  # the difference of logarithms of 1382 nats, each good to 2e-13
    assert result.numerical_rank == 5
    assert abs(result.isometry_gap) < 1e-11


# Long products -----------------------------------------------------------------------------------------------------


def product_in_many_digits(matrices: list[Tensor]) -> list[float]:
    """Return the logarithms of a product's singular values, from arithmetic in which nothing underflows or cancels."""
    with mpmath.workdps(1600):
        product = mpmath.eye(len(matrices[0]))
        for matrix in matrices:
            product = mpmath.matrix(matrix.tolist()) * product
        values = mpmath.svd_r(product, compute_uv=False)
        return [float(mpmath.log(value)) for value in values]


def test_a_thousand_steps_in_many_digits():
    """The singular values span 1134 nats, 492 orders of magnitude: each is right to the last digits of its logarithm."""
    torch.manual_seed(3)
    matrices = [torch.randn(4, 4, dtype=F64) for _ in range(1000)]
    found = of_chain(nn.Sequential(*map(linear, matrices)), torch.zeros(1, 4, dtype=F64)).logs[0]
    expected = torch.tensor(product_in_many_digits(matrices), dtype=F64)
    assert float(expected[0] - expected[-1]) > 1000
    # A thousand factors, each right to eps times the condition of a row-scaled 4 × 4 matrix, some ten.
    assert float((found - expected).abs().max()) < 1000 * 10 * 2.2e-16


def test_many_close_values_over_a_wide_range():
    """32 close neighbours whose whole range of 800 nats no SVD in float64 resolves; their sum is the log determinant."""
    torch.manual_seed(4)
    matrices = [torch.randn(32, 32, dtype=F64) / math.sqrt(32) for _ in range(400)]
    found = of_chain(nn.Sequential(*map(linear, matrices)), torch.zeros(1, 32, dtype=F64))
    assert float(found.logs[0, 0] - found.logs[0, -1]) > 720
    assert float(found.rank[0]) == 32
    expected = math.fsum(float(torch.linalg.slogdet(matrix).logabsdet) for matrix in matrices)
    # Row 13. 400 steps of 32 diagonal elements, each right to eps times its matrix's condition, some 1e3 for most.
    assert abs(math.fsum(found.logs[0].tolist()) - expected) < 400 * 32 * 1e3 * 2.2e-16


def test_graded_steps_keep_the_small_values():
    """Each step scales known, fixed directions by 1e±5: the product's values are known without any arithmetic."""
    torch.manual_seed(5)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=F64)).Q
    scales = torch.tensor([1e5, 1.0, 1.0, 1e-1, 1e-4, 1e-5], dtype=F64)
    step = turn * scales @ turn.T
    found = of_chain(nn.Sequential(*[linear(step) for _ in range(200)]), torch.zeros(1, 6, dtype=F64)).logs[0]
    # The step itself holds its smallest value to eps · 1e5 / 1e-5 = 2e-6 only, 200 times the same error: 4e-4.
    assert torch.allclose(found, 200 * scales.log(), rtol=0, atol=200 * 2.2e-6)
    assert torch.allclose(found[:4], 200 * scales[:4].log(), rtol=0, atol=200 * 2.2e-16 * 1e6)


# The largest one ---------------------------------------------------------------------------------------------------


def test_largest_value_of_a_long_gaussian_product():
    """E[ln σ_max] - L λ_1 = ½ [ψ(N/2) - ψ(½)] for L ≫ N: a random cotangent has ⟨u, û⟩² ~ Beta(½, (N-1)/2) with the worst one."""
    width, depth, seeds = 3, 20, 50
    model = repeated(partial(gaussian, width, width, variance=1 / width), depth)
    result = measure(model, normal(1, width), seeds=seeds, measures=["max_ftle", "log_gain"])
    differences = [depth * top - gain for top, gain in zip(result.max_ftle.values, result.log_gain.values)]
    assert min(differences) > 0
    expected = 0.5 * float(digamma(width / 2) - digamma(0.5))
    # Var ½ ln Beta = ¼ [ψ'(½) - ψ'(N/2)]; by L = 20 the second value is e^(-20 · 0.31) of the first.
    error = math.sqrt(float(polygamma(1, 0.5) - polygamma(1, width / 2)) / (4 * seeds))
    assert abs(sum(differences) / seeds - expected) < 4 * error


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_largest_value_of_a_wide_gaussian_product(depth):
    """σ_max² → (L+1)^(L+1)/L^L from below, as N^(-2/3)."""
    width, seeds = 192, 3
    model = repeated(partial(gaussian, width, width, variance=1 / width), depth)
    result = measure(model, normal(1, width), seeds=seeds, measures=["jacobian_singular_values"])
    ratio = result.jacobian_singular_values[0].mean ** 2 / ((depth + 1) ** (depth + 1) / depth**depth)
    # Tracy-Widom for L = 1: mean -1.21, deviation 1.27, in units of 2^(4/3) N^(-2/3) = 7.6 % of the edge over 4; the curvature at
    # the edge is of the same size for the other L. Four deviations of the mean of three on either side.
    unit = 2 ** (4 / 3) * width ** (-2 / 3) / 4
    assert 1 - (1.21 + 4 * 1.27 / math.sqrt(seeds)) * unit * math.sqrt(depth + 1) < ratio < 1 + unit


@pytest.mark.parametrize("case", [c for c in models.ARCHITECTURES if c.dense], ids=lambda c: c.id)
def test_no_random_cotangent_grows_faster(case):
    inputs = partial(case.inputs)
    result = measure(
        case.build, inputs, seeds=4, train=case.train, steps=case.steps, measures=["max_ftle", "lyapunov_max"]
    )
    # To round-off of float32.
    pairs = zip(result.max_ftle.values, result.lyapunov_max.values)
    assert all(top >= random - 1e-6 for top, random in pairs)


# Row 11: the spread of the squares ---------------------------------------------------------------------------------


def gaussian_moments(width: int, depth: int) -> float:
    """Return E[(1/N) tr (JJᵀ)²] / E[((1/N) tr JJᵀ)²] - 1 at finite width.

    With a = E (1/N) tr A² and b = E ((1/N) tr A)² of A = JJᵀ, Wick's theorem for a further Gaussian layer of variance 1/N
    gives a → a (1 + 1/N) + b and b → b + 2 a / N².
    """
    a = b = 1.0
    for _ in range(depth):
        a, b = a * (1 + 1 / width) + b, b + 2 * a / width**2
    return a / b - 1


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_isometry_gap_of_gaussian_layers_is_the_depth(depth):
    width, seeds = 96, 8
    model = repeated(partial(gaussian, width, width, variance=1 / width), depth)
    gap = measure(model, normal(1, width), seeds=seeds, measures=["isometry_gap"]).isometry_gap
    expected = gaussian_moments(width, depth)
    assert abs(expected - depth) < depth * (depth + 1) / width  # the limit, up to O(L²/N)
    # The mean of a ratio differs from the ratio of the means by O(1/N²) per pair of layers.
    bias = 4 * depth**2 / width**2
    assert abs(gap - expected) < 4 * standard_error(gap.values) + bias


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_isometry_gap_of_relu_layers(weights, depth):
    """2 L with Gaussian weights, L with orthogonal ones: no gain and no choice of weights makes a ReLU net an isometry."""
    width, seeds = 128, 8

    def layer() -> nn.Module:
        inner = gaussian(width, width, variance=2 / width) if weights == "gaussian" else orthogonal(width, math.sqrt(2))
        return Block(inner, nn.ReLU())

    result = measure(repeated(layer, depth), normal(4, width), seeds=seeds, steps=Block, measures=ALL)
    expected = 2 * depth if weights == "gaussian" else depth
    # Mean-field values; the mean over four samples of a net. At finite width O(L²/N), from the spread of how many units are on.
    tolerance = 4 * standard_error(result.isometry_gap.values) + 2 * expected**2 / width
    assert tolerance < 0.5 * expected
    assert abs(result.isometry_gap - expected) < tolerance
    assert result.condition_number == math.inf
    assert abs(result.numerical_rank / width - 0.5) < 0.15


def test_orthogonal_hard_tanh_layers_come_close_to_an_isometry():
    """Pennington 2017: near its linear regime a hard-tanh net keeps s² = 1, and at the same gain a Gaussian one does not."""
    width, depth = 64, 8
    layer = lambda: Block(orthogonal(width, 1.0), nn.Hardtanh())  # noqa: E731
    small = measure(repeated(layer, depth), lambda g: 0.1 * normal(4, width)(g), seeds=2, measures=ALL)
    # No unit reaches 1, ten standard deviations away: the Jacobian is orthogonal to round-off.
    assert abs(small.isometry_gap) < 1e-12 and abs(small.condition_number - 1) < 1e-12
    middle = measure(repeated(layer, depth), lambda g: 0.5 * normal(4, width)(g), seeds=2, measures=ALL)
    # 2 Φ(-2) = 4.6 % of the units saturate in each layer at first, and each takes one direction along: a gap of p/(1-p) a layer.
    assert 0 < middle.isometry_gap < 0.5
    plain = repeated(lambda: Block(gaussian(width, width, variance=1 / width), nn.Hardtanh()), depth)
    assert measure(plain, lambda g: 0.1 * normal(4, width)(g), seeds=2, measures=ALL).isometry_gap > 0.75 * depth


# Row 12: exact Jacobians -------------------------------------------------------------------------------------------


def test_average_pooling():
    """Every singular value of J is 1/√k a layer, of as many as the last state has elements."""
    result = measure(repeated(lambda: nn.AvgPool1d(2), 3), normal(2, 3, 16), seeds=1, steps=nn.AvgPool1d, measures=ALL)
    assert abs(result.max_ftle + 0.5 * math.log(2)) < 1e-13
    assert [len(result.jacobian_singular_values), result.numerical_rank.mean] == [6, 6]
    # An isometry of the smaller space, up to scale: the inputs' surplus of dimensions is no fault.
    assert abs(result.condition_number - 1) < 1e-12 and abs(result.isometry_gap) < 1e-12


@pytest.mark.parametrize("batch", [1, 2], ids=["joint", "per sample"])
def test_delta_orthogonal_convolution(batch):
    def layer() -> nn.Module:
        convolution = nn.Conv2d(4, 4, 3, padding=1, bias=False, dtype=F64)
        nn.init.zeros_(convolution.weight)
        convolution.weight.data[:, :, 1, 1] = nn.init.orthogonal_(torch.empty(4, 4, dtype=F64))
        return convolution

    result = measure(repeated(layer, 10), normal(batch, 4, 3, 3), seeds=1, measures=ALL)
    assert all(abs(s.mean - 1) < 1e-12 for s in result.jacobian_singular_values)
    assert result.numerical_rank == 36


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
def test_layer_norm(dtype):
    """J = (1 - 11ᵀ/d - x̂x̂ᵀ/d)/std: d - 2 singular values are 1/std, two are zero and not round-off."""
    x = 3 * torch.randn((1, 9), generator=torch.Generator().manual_seed(0), dtype=F64) + 1
    model = nn.Sequential(nn.LayerNorm(9, eps=0.0, elementwise_affine=False))
    result = measure(model, x, dtype=dtype, steps=nn.LayerNorm, measures=ALL)
    values = [s.mean for s in result.jacobian_singular_values]
    expected = 1 / float(x.std(correction=0))
    assert values[:7] == pytest.approx([expected] * 7, rel=30 * torch.finfo(dtype).eps)
    assert values[7:] == [0.0, 0.0]
    assert result.numerical_rank == 7 and result.condition_number == math.inf
    # d - 2 ones and two zeros: mean (d-2)/d, variance over its square 2/(d-2).
    assert abs(result.isometry_gap - 2 / 7) < 30 * torch.finfo(dtype).eps


# Rank --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
def test_rank_of_relu_layers_is_the_number_of_active_units(dtype):
    """Generic weights: the rank of the product is that of the layer with fewest units on, sample by sample."""
    torch.manual_seed(0)
    model = nn.Sequential(*[Block(nn.Linear(24, 24, dtype=dtype), nn.ReLU()) for _ in range(4)])
    x = torch.randn(20, 24, dtype=dtype)
    active, state = [], x
    for block in model:
        state = block(state)
        active.append((state > 0).sum(dim=1))
    expected = torch.stack(active).amin(dim=0)
    assert len(expected.unique()) > 2
    chain = models.cut(model, x, steps=Block).chain
    found = singular_values(find_trajectories(chain, 20, 0)[0], 0)
    assert found.rank.tolist() == expected.tolist()
    assert [int((row > -math.inf).sum()) for row in found.logs] == expected.tolist()


def test_bottleneck_is_rank_deficient():
    model = stacked(*[partial(gaussian, a, b, variance=1 / a) for a, b in [(12, 5), (5, 12), (12, 9)]])
    result = measure(model, normal(3, 12), seeds=2, measures=ALL)
    assert result.numerical_rank == 5 and result.condition_number == math.inf
    values = [s.mean for s in result.jacobian_singular_values]
    assert len(values) == 9 and all(v > 0 for v in values[:5]) and values[5:] == [0.0] * 4


def test_the_mean_of_what_was_normalized_is_round_off():
    """A LayerNorm's outputs sum to zero whatever comes in: their mean has no derivative but what rounding leaves."""

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=-1, keepdim=True).expand_as(x) * 1.0

    layers = lambda: nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16, elementwise_affine=False), Mean())  # noqa: E731
    result = measure(layers, torch.randn(2, 16), steps=["0", "1", "2"], measures=ALL)
    assert result.numerical_rank == 0 and result.max_ftle == -math.inf


def test_nothing_comes_through():
    model = nn.Sequential(linear(torch.zeros(4, 4, dtype=F64)), nn.Linear(4, 4, dtype=F64))
    result = measure(model, torch.ones(1, 4, dtype=F64), measures=ALL)
    assert result.max_ftle == -math.inf and result.numerical_rank == 0 and result.condition_number == math.inf
    assert math.isnan(result.isometry_gap.mean)
    assert [s.mean for s in result.jacobian_singular_values] == [0.0] * 4


def test_time_steps_have_durations():
    """Per unit of time, as every exponent, where a solver or a rollout says how long a step is."""
    from pytest_trainability import Rollout

    torch.manual_seed(1)
    step = orthogonal(5, 2.0)
    result = measure(Rollout(step, 12, dt=0.25), torch.randn(2, 5, dtype=F64), measures=["max_ftle"])
    assert result.max_ftle.unit == "nats/time"
    assert abs(result.max_ftle - math.log(2) / 0.25) < 1e-12
