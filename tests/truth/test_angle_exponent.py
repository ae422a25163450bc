"""The exponent of angles: exact for matrices that turn two directions together, and the slope of correlation maps at width."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn
from towers import F64, gaussian, linear, orthogonal

from pytest_trainability import Measurement, measure


def measured(model, inputs, **options) -> Measurement:
    return measure(model, inputs, measures=["angle_exponent"], **{"dtype": F64, "seeds": 1} | options)


def exponent(model, inputs, **options) -> float:
    return float(measured(model, inputs, **options).angle_exponent)


def slope(values) -> float:
    """Return the slope of a line through values at 0, 1, …, by least squares."""
    places = torch.arange(len(values), dtype=F64)
    places = places - places.mean()
    return float((places * torch.tensor(values, dtype=F64)).sum() / places.square().sum())


# Exact ------------------------------------------------------------------------------------------------------------
def turning(factor: float, depth: int, first: float) -> tuple[nn.Module, Tensor, float]:
    """Return layers diag(1, a), two inputs at the angle ±θ to the first axis, and the slope of ln(1 - cos 2θ_l).

    Each layer multiplies tan θ by a, and ``1 - cos 2θ = 2 sin² θ``.
    """
    model = nn.Sequential(*[linear(torch.diag(torch.tensor([1.0, factor], dtype=F64))) for _ in range(depth)])
    tangents = [first * factor**layer for layer in range(depth + 1)]
    logs = [math.log(2 * t * t / (1 + t * t)) for t in tangents]
    return model, torch.tensor([[1.0, first], [1.0, -first]], dtype=F64), slope(logs)


@pytest.mark.parametrize(("factor", "first"), [(0.5, 1.0), (0.9, 0.3), (1.0, 0.3), (1.5, 0.01), (3.0, 1.0)])
def test_layers_that_scale_one_axis(factor, first):
    model, inputs, expected = turning(factor, 6, first)
    # A cosine near 1 is exact to 1e-16; the smallest 1 - c here is 1e-4.
    assert exponent(model, inputs) == pytest.approx(expected, abs=1e-11)


def test_small_angles_have_twice_the_logarithm_of_the_factor():
    model, inputs, _ = turning(0.9, 20, 1e-3)
    # tan θ = θ to θ²/3, and sin² θ = tan² θ to tan² θ.
    assert exponent(model, inputs) == pytest.approx(2 * math.log(0.9), abs=1e-6)


def test_orthogonal_layers_keep_all_angles():
    inputs = torch.randn(5, 16, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = exponent(lambda: nn.Sequential(*[orthogonal(16, gain) for gain in (0.5, 1.0, 3.0, 2.0)]), inputs)
    assert found == pytest.approx(0, abs=1e-13)


def test_a_projection_to_a_line_is_minus_infinity():
    onto = linear(torch.diag(torch.tensor([1.0, 0.0], dtype=F64)))
    inputs = torch.tensor([[1.0, 0.5], [1.0, -0.5], [1.0, 0.2]], dtype=F64)
    assert exponent(nn.Sequential(onto, linear(torch.eye(2, dtype=F64))), inputs) == -math.inf


def test_equal_inputs_have_no_angle():
    inputs = torch.ones(3, 2, dtype=F64)
    result = measured(lambda: nn.Sequential(gaussian(2, 2, variance=0.5), gaussian(2, 2, variance=0.5)), inputs)
    assert math.isnan(result.angle_exponent)


@pytest.mark.parametrize(
    ("dtype", "factor", "resolved"), [(torch.float32, 1 / 16, 4), (torch.bfloat16, 1 / 2, 4)], ids=str
)
def test_round_off_is_no_angle(dtype, factor, resolved):
    """After some of 20 layers, 1 - c is below (4 ε)², 2e-13 or 1e-3. The slope is that of the layers before."""
    model, inputs, _ = turning(factor, 20, factor)
    _, _, expected = turning(factor, resolved, factor)
    # Powers of two are exact in every type. A cosine is exact to 1e-16, and the smallest 1 - c that counts here is 7e-12.
    assert exponent(model, inputs, dtype=dtype) == pytest.approx(expected, abs=1e-4)


class Mixing(nn.Module):
    """Moves each token towards the mean of its sample."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.layer, self.share = linear(torch.eye(8, dtype=F64)), share

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return (1 - self.share) * x + self.share * x.mean(1, keepdim=True)


def test_tokens_count_where_there_are_tokens():
    """Two tokens (1, ±t) have the mean (1, 0): t shrinks by 1 - α per step. Different samples stay orthogonal."""
    share, first, depth = 0.3, 0.5, 5
    axes = torch.eye(8, dtype=F64).view(4, 2, 8)
    inputs = torch.stack([axes[:, 0] + first * axes[:, 1], axes[:, 0] - first * axes[:, 1]], dim=1)
    tangents = [first * (1 - share) ** layer for layer in range(depth + 1)]
    expected = slope([math.log(2 * t * t / (1 + t * t)) for t in tangents])
    found = exponent(nn.Sequential(*[Mixing(share) for _ in range(depth)]), inputs, steps=Mixing)
    assert found == pytest.approx(expected, abs=1e-12)


# Mean field -------------------------------------------------------------------------------------------------------
def gauss(function: Callable[[Tensor], Tensor], q: float) -> float:
    """Return the mean of a function of a normal number of variance q."""
    z = torch.linspace(-8, 8, 4001, dtype=F64)
    p = torch.exp(-(z**2) / 2)
    return float((p / p.sum() * function(math.sqrt(q) * z)).sum())


def tanh_slope(weight_variance: float, bias_variance: float) -> tuple[float, float]:
    """Return the fixed point q* of the variance of pre-activations, and χ = σ_w² E φ'² there."""

    def excess(q: float) -> float:
        return weight_variance * gauss(lambda u: torch.tanh(u) ** 2, q) + bias_variance - q

    q = float(brentq(excess, 1e-6, 100, xtol=1e-12))
    return q, weight_variance * gauss(lambda u: (1 - torch.tanh(u) ** 2) ** 2, q)


def close_pair(square: float, width: int, angle: float) -> Tensor:
    """Return two vectors at this angle whose entries have this mean square."""
    x = torch.zeros(2, width, dtype=F64)
    x[:, 0] = 1
    x[1, 0], x[1, 1] = math.cos(angle), math.sin(angle)
    return x * math.sqrt(square * width)


@pytest.mark.parametrize(
    ("weight_variance", "bias_variance"),
    [(1.0, 0.05), (3.0, 0.05)],
    ids=["ordered", "chaotic"],
)
def test_wide_tanh_networks_have_the_slope_of_the_correlation_map(weight_variance, bias_variance):
    """Near c = 1 the exponent is ln χ (Poole et al. 2016, Schoenholz et al. 2017), in both phases.

    At N units a layer multiplies 1 - c by a mean over N of ``φ'² δ²``, relative to that of δ², for normal δ. Its relative
    variance is 3 (κ - 1)/N with ``κ = E φ'⁴ / (E φ'²)²``, at most 6/N here. Fluctuations of the norm, which moves χ, add no more.
    The slope over L steps averages with weights whose squares sum to 6/(5 L), and seeds average. The tolerance is four standard
    errors, and the bias of a logarithm, half of a layer's variance. The map bends by 1 - c, which stays below 1e-5.
    """
    width, depth, seeds = 256, 8, 24
    q, chi = tanh_slope(weight_variance, bias_variance)
    kappa = gauss(lambda u: (1 - torch.tanh(u) ** 2) ** 4, q) / (chi / weight_variance) ** 2
    assert kappa < 3
    inputs = close_pair((q - bias_variance) / weight_variance, width, 1e-4)

    def build() -> nn.Module:
        layers = [
            gaussian(width, width, variance=weight_variance / width, bias_variance=bias_variance) for _ in range(depth)
        ]
        return nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())])

    found = measured(build, inputs, seeds=seeds, steps=nn.Linear).angle_exponent
    # The first layer adds the same bias to both inputs, whose variance is below that of pre-activations.
    first = math.log((q - bias_variance) / q)
    expected = slope([0.0, *[first + layer * math.log(chi) for layer in range(depth)]])
    tolerance = 4 * math.sqrt(12 / width * 6 / (5 * depth) / seeds) + 12 / width / 2
    assert tolerance < 0.1
    assert float(found) == pytest.approx(expected, abs=tolerance)


def test_wide_relu_networks_have_the_slope_of_the_arc_cosine_kernel():
    """He's initialization is critical, χ = 1. An angle shrinks by its own size: 1 - c' = (1 - c) - (2√2/3π) (1 - c)^(3/2) + ….

    From 1 - c = 1/2 on, the whole sequence of the kernel decides (Cho & Saul 2009). A layer of N units estimates
    1 - c with a relative deviation below √(6/N), that of products of two normal numbers on half of the units.
    """
    width, depth, seeds = 256, 8, 24
    c = [0.5]
    for _ in range(depth):
        c.append((math.sqrt(1 - c[-1] ** 2) + (math.pi - math.acos(c[-1])) * c[-1]) / math.pi)

    def build() -> nn.Module:
        layers = [part for _ in range(depth) for part in (gaussian(width, width, variance=2 / width), nn.ReLU())]
        return nn.Sequential(*layers, gaussian(width, width, variance=2 / width))

    found = measured(build, close_pair(0.5, width, math.pi / 3), seeds=seeds, steps=nn.Linear).angle_exponent
    # Pre-activations of the first layer have the cosine of the inputs.
    expected = slope([math.log(1 - value) for value in (c[0], *c)])
    tolerance = 4 * math.sqrt(6 / width * 6 / (5 * depth) / seeds) + 6 / width / 2
    assert tolerance < 0.08
    assert expected < -0.15
    assert float(found) == pytest.approx(expected, abs=tolerance)
