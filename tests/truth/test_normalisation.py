"""Normalisation, pooling and convolution: rows 7, 8 and 12 of the table of closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from towers import F64, Block, Residual, gaussian, normal, on_sphere, repeated, standard_error

from pytest_trainability import measure
from pytest_trainability.engine.capture.chain import chain_of, graph_of
from pytest_trainability.engine.capture.recorder import capture
from pytest_trainability.engine.capture.steps import choose_steps
from pytest_trainability.engine.jacobian.vjp import pull_back

# Row 7: BatchNorm in training mode explodes gradients ---------------------------------------------------------------


@dataclass(frozen=True)
class BatchNormTower:
    """`φ(BN(W x))` on a batch of B, φ the identity or ReLU (Yang et al., ICLR 2019).

    As N → ∞, each neuron's centred pre-activations over the batch are normal with equal variance, so that BN puts
    them on a sphere of B - 1 dimensions: `y = √B ŷ`. One layer multiplies the squared gradient, with G = 1 - 11ᵀ/B,
    D = φ'(y) and `υ = σ_w² (E φ(y_a)² - E φ(y_a) φ(y_b))` the variance that BN divides by, by

        σ_w² B / (υ (B - 3)) · E tr[(G - ŷŷᵀ) D G D] / (B - 1)
    """

    batch: int
    relu: bool

    @property
    def trace(self) -> float:
        """E tr[(G - ŷŷᵀ) D G D], by Cho & Saul's arc-cosine kernels at the correlation -1/(B - 1) of two samples."""
        B = self.batch
        if not self.relu:
            return B - 2.0
        both_active = 0.25 + math.asin(-1 / (B - 1)) / (2 * math.pi)
        first = B / 2 * (1 - 1 / B) ** 2 + (B - 1) / B * both_active
        return first - (0.5 - (0.5 + (B - 1) * self.product) / B)

    @property
    def product(self) -> float:
        """E φ(y_a) φ(y_b) of two samples, for unit variance."""
        rho = -1 / (self.batch - 1)
        if not self.relu:
            return rho
        return (math.sqrt(1 - rho**2) + (math.pi - math.acos(rho)) * rho) / (2 * math.pi)

    @property
    def rate(self) -> float:
        B, square = self.batch, 0.5 if self.relu else 1.0
        return B / ((square - self.product) * (B - 3)) * self.trace / (B - 1)

    @property
    def neuron_variance(self) -> float:
        """Bound on the relative variance of one neuron's share of the squared gradient.

        A share is a form `δᵀ M δ / χ²_{B-1}`, M = D G D without ŷ and 0 ≤ M ≤ 1, of a normal δ:
        E (δᵀMδ)² = E (tr M)² + 2 E tr M² ≤ B E tr M as tr M ≤ B - 2; E χ⁻⁴ / (E χ⁻²)² = (B - 3)/(B - 5).
        """
        return self.batch / self.trace * (self.batch - 3) / (self.batch - 5) - 1

    def model(self, width: int, depth: int) -> Callable[[], nn.Module]:
        def layer() -> nn.Module:
            # The limit is of eps → 0; PyTorch wants a positive one.
            norm = nn.BatchNorm1d(width, eps=1e-12, dtype=F64)
            after = [nn.ReLU()] if self.relu else []
            return Block(gaussian(width, width, variance=1 / width), norm, *after)

        return repeated(layer, depth)


def test_batch_norm_formula_gives_the_published_values():
    for batch in (8, 16, 64):
        assert BatchNormTower(batch, relu=False).rate == pytest.approx((batch - 2) / (batch - 3), rel=1e-12)
    assert BatchNormTower(16, relu=True).rate == pytest.approx(1.58995, abs=5e-6)
    # The remainder is of order 1/B.
    assert BatchNormTower(10**7, relu=True).rate == pytest.approx(math.pi / (math.pi - 1), rel=1e-6)
    assert math.pi / (math.pi - 1) == pytest.approx(1.46694, abs=5e-6)


TOWERS = [
    pytest.param(BatchNormTower(8, relu=False), id="linear B=8"),
    pytest.param(BatchNormTower(16, relu=False), id="linear B=16"),
    pytest.param(BatchNormTower(8, relu=True), id="relu B=8"),
    pytest.param(BatchNormTower(16, relu=True), id="relu B=16"),
]


@pytest.mark.parametrize("tower", TOWERS)
def test_batch_norm_explosion(tower):
    """Squared gradient per layer in the joint frame, away from both ends of the chain (3 layers of transient)."""
    width, depth, seeds = 512, 14, 12
    result = measure(tower.model(width, depth), normal(tower.batch, width), seeds=seeds)
    assert (result.frame, result.mode) == ("joint", "train")
    bulk = list(result.growth_rate.values())[3:-3]
    squared = 2 * math.fsum(rate.mean for rate in bulk) / len(bulk)
    # N neurons share a layer's gradient, each with the relative variance above, afresh at every layer; and N neurons
    # estimate the B × B covariance whose inverse is the gain, with the bias B/N of an inverse Wishart matrix.
    tolerance = 4 * math.sqrt(tower.neuron_variance / (width * len(bulk) * seeds)) + tower.batch / width
    # Enough to see that gradients explode at all, and that a batch of 16 does so less than one of 8.
    assert tolerance < math.log(tower.rate)
    assert tolerance < math.log(BatchNormTower(8, tower.relu).rate / BatchNormTower(16, tower.relu).rate)
    assert abs(squared - math.log(tower.rate)) < tolerance


def test_batch_norm_in_eval_mode_does_not_explode():
    """With running statistics of 0 and 1 the layer is the identity, samples do not interact, and λ is Newman's."""
    width, depth, seeds = 128, 14, 6
    model = BatchNormTower(8, relu=False).model(width, depth)
    result = measure(model, normal(8, width), seeds=seeds, train=False)
    assert (result.frame, result.mode) == ("per sample", "eval")
    # Gaussian linear: mean -1/(2N), variance 1/(2N) per step.
    assert abs(result.lyapunov_max + 1 / (2 * width)) < 4 * math.sqrt(1 / (2 * width * depth * seeds))


# Row 8: pre-LN residual blocks --------------------------------------------------------------------------------------


def pre_norm_tower(width: int, depth: int, branch_variance: float) -> Callable[[], nn.Module]:
    """`x + V relu(W LN(x))`: LN's output has variance 1, so that the branch's has σ_v² σ_w²/2 = c."""

    def layer() -> nn.Module:
        inner = gaussian(width, width, variance=2 / width)
        return Residual(
            nn.LayerNorm(width, dtype=F64), inner, nn.ReLU(), gaussian(width, width, variance=branch_variance / width)
        )

    return repeated(layer, depth)


@pytest.mark.parametrize(("branch_variance", "input_variance"), [(1.0, 1.0), (0.5, 2.0), (1.0, 0.25)])
def test_pre_norm_gain_is_logarithmic(branch_variance, input_variance):
    """The stream's variance grows as p₀ + c l, LN divides by it: Π (1 + c/p_l) = p_L/p₀, linear in depth."""
    width, depth, seeds = 192, 12, 32
    model = pre_norm_tower(width, depth, branch_variance)
    inputs = on_sphere(1, width, rms=math.sqrt(input_variance))
    result = measure(model, inputs, seeds=seeds, measures=["log_gain", "forward_log_gain"])
    expected = math.log(1 + branch_variance * depth / input_variance)
    # E‖Ju‖² is what the closed form is of; its logarithm has the relative standard error of the mean.
    squares = [math.exp(2 * value) for value in result.log_gain.values]
    mean = math.fsum(squares) / seeds
    # Bias: LN projects two of N directions out (2/N of each branch), and the stream's variance is itself spread:
    # with r = c/p_l, one step's squared norm has relative variance (4r + 7r²)/(1 + r)²/N, tangent and stream alike,
    # and the logarithm's curvature halves the sum of both.
    ratios = [branch_variance / (input_variance + branch_variance * step) for step in range(depth)]
    bias = sum(2 * r / (1 + r) + (4 * r + 7 * r**2) / (1 + r) ** 2 for r in ratios) / width
    tolerance = 4 * standard_error(squares) / mean + bias
    # Half the branch variance would not pass; L ln(1 + c/p₀), without the normalisation, is far away.
    assert tolerance < expected - math.log(1 + branch_variance * depth / input_variance / 2)
    assert abs(math.log(mean) - expected) < tolerance
    assert abs(2 * result.forward_log_gain - expected) < 2 * 4 * standard_error(result.forward_log_gain.values) + bias
    # Each step's share, in program order: the first is the largest.
    for step, (rate, ratio) in enumerate(zip(result.growth_rate.values(), ratios)):
        error = 4 * standard_error(rate.values) + bias
        assert abs(rate - 0.5 * math.log1p(ratio)) < error, step


# Row 12: exact Jacobians --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "shape", "window"),
    [
        pytest.param(lambda: nn.AvgPool1d(2), (2, 3, 16), 2, id="1d k=2"),
        pytest.param(lambda: nn.AvgPool1d(3), (1, 2, 27), 3, id="1d k=3"),
        pytest.param(lambda: nn.AvgPool2d(2), (2, 1, 16, 8), 4, id="2d 2×2"),
    ],
)
def test_average_pooling(pool, shape, window):
    """k inputs share one cotangent, each gets 1/k of it: every singular value is 1/√k, k elements to a window."""
    depth = 2
    result = measure(
        repeated(pool, depth), normal(*shape), seeds=2, steps=type(pool()), exponents=6, measures=["lyapunov_spectrum"]
    )
    assert len(result.steps) == depth
    expected = -0.5 * math.log(window)
    # Isometries times 1/√k, to a few eps.
    assert all(abs(exponent - expected) < 1e-13 for exponent in result.lyapunov_spectrum)
    assert all(abs(rate - expected) < 1e-13 for rate in result.growth_rate.values())


def delta_orthogonal(channels: int, gain: float) -> nn.Conv2d:
    """Xiao et al. (ICML 2018): an orthogonal matrix at the kernel's centre, zero elsewhere."""
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, dtype=F64)
    nn.init.zeros_(layer.weight)
    matrix = nn.init.orthogonal_(torch.empty(channels, channels, dtype=F64), gain=gain)
    layer.weight.data[:, :, 1, 1] = matrix
    return layer


@pytest.mark.parametrize("gain", [1.0, 0.7])
@pytest.mark.parametrize("batch", [1, 2], ids=["joint", "per sample"])
def test_delta_orthogonal_convolution(gain, batch):
    """An isometry of the whole image, borders included: all 36 exponents are ln g."""
    model = repeated(lambda: delta_orthogonal(4, gain), 10)
    result = measure(model, normal(batch, 4, 3, 3), seeds=1, exponents=36, measures=["lyapunov_spectrum"])
    assert len(result.lyapunov_spectrum) == 36
    assert all(abs(exponent - math.log(gain)) < 1e-12 for exponent in result.lyapunov_spectrum)


def exact_layer_norm(width: int) -> nn.LayerNorm:
    """Without eps, whose Jacobian has eps/(var + eps)^1.5 in place of the second zero."""
    return nn.LayerNorm(width, eps=0.0, elementwise_affine=False, dtype=F64)


def whole_jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """Pull the identity back through the one step of a model: row i is `Jᵀ e_i`."""
    record = capture(model, (x,), {})
    graph = graph_of(record)
    chain = chain_of(record, graph, choose_steps(record, graph, "0"))
    columns = torch.eye(x.numel(), dtype=F64).reshape(x.numel(), *x.shape)
    (pulled,) = pull_back(chain, 1, [columns])
    assert pulled is not None
    return pulled.reshape(x.numel(), x.numel())


def test_layer_norm_singular_values():
    """J = (1 - 11ᵀ/d - x̂x̂ᵀ/d)/std: a projection, so d - 2 singular values are 1/std and two are zero."""
    x = 3 * torch.randn((1, 9), generator=torch.Generator().manual_seed(0), dtype=F64) + 1
    values = torch.linalg.svdvals(whole_jacobian(nn.Sequential(exact_layer_norm(9)), x))
    scale = 1 / float(x.std(correction=0))
    assert torch.allclose(values[:7], torch.full((7,), scale, dtype=F64), rtol=1e-13, atol=0)
    assert float(values[7:].max()) < 1e-14  # a few eps


def test_layer_norm_exponents():
    """The second of three layers acts on its own image, the first divides by the input's std there."""
    width, std = 6, (0.5, 4.0)

    def inputs(generator: torch.Generator) -> Tensor:
        x = torch.randn((2, width), generator=generator, dtype=F64)
        x = (x - x.mean(dim=1, keepdim=True)) / x.std(dim=1, correction=0, keepdim=True)
        return x * torch.tensor(std, dtype=F64)[:, None] + 1

    result = measure(
        repeated(lambda: exact_layer_norm(width), 3),
        inputs,
        seeds=2,
        steps=nn.LayerNorm,
        exponents=width,
        measures=["lyapunov_spectrum"],
    )
    assert result.frame == "per sample"
    _, middle, _ = result.growth_rate.values()
    first = result.growth_rate["0"]
    # Averaged over the two samples; projections of vectors that lie in their range already, to a few eps.
    assert abs(first + (math.log(std[0]) + math.log(std[1])) / 2) < 1e-13
    assert abs(middle) < 1e-13
    assert [math.isfinite(exponent.mean) for exponent in result.lyapunov_spectrum] == [True] * 4 + [False] * 2
    assert all(exponent.mean == -math.inf for exponent in result.lyapunov_spectrum[4:])
