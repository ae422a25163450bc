"""Saturated and dead units in closed form, however the activation is written.

Pre-activations are the quantiles of a normal distribution, so that a share of n of them is a probability to 1/n for each end of
the interval that it is the probability of.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from scipy.stats import norm
from torch import Tensor, nn
from towers import F64, Elementwise

from pytest_trainability import measure

SAMPLES, UNITS = 64, 64
COUNT = SAMPLES * UNITS


def quantiles(mean: float = 0.0, deviation: float = 1.0) -> Tensor:
    """Return a batch of N(mean, deviation²), by its quantiles."""
    ranks = (torch.arange(COUNT, dtype=F64) + 0.5) / COUNT
    values = mean + deviation * math.sqrt(2) * torch.erfinv(2 * ranks - 1)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    return values[order].reshape(SAMPLES, UNITS)


def passing(width: int = UNITS, bias: float = 0.0) -> nn.Linear:
    """Return a layer that adds a bias and does nothing else."""
    layer = nn.Linear(width, width, dtype=F64)
    nn.init.eye_(layer.weight)
    nn.init.constant_(layer.bias, bias)
    return layer


def around(activation: nn.Module) -> nn.Module:
    """Return a model whose second layer is the activation, applied to the model's inputs."""
    return nn.Sequential(passing(), activation, passing())


def fractions(activation: nn.Module, inputs: Tensor) -> tuple[float, float]:
    """Return the saturated and the dead fraction of the one activation that there is."""
    result = measure(around(activation), inputs, measures=["saturated_fraction", "dead_fraction"])
    ((_, saturated),) = result.saturated_fraction.items()
    ((_, dead),) = result.dead_fraction.items()
    return float(saturated), float(dead)


# Saturated fractions -------------------------------------------------------------------------------------------------


def probability(slope: Callable[[Tensor], Tensor], mean: float, deviation: float) -> float:
    """P(|φ'(x)| < 0.01 max |φ'|), by the midpoint rule on a million quantiles."""
    ranks = (torch.arange(1_000_000, dtype=F64) + 0.5) / 1_000_000
    values = mean + deviation * math.sqrt(2) * torch.erfinv(2 * ranks - 1)
    steepest = slope(torch.linspace(-20, 20, 400_001, dtype=F64)).abs().max()
    return float((slope(values).abs() < 0.01 * steepest).double().mean())


def gelu_slope(x: Tensor) -> Tensor:
    return torch.special.ndtr(x) + x * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def silu_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x)))


TANH_END = math.atanh(math.sqrt(0.99))
SIGMOID_END = math.log((1 + math.sqrt(0.99)) / (1 - math.sqrt(0.99)))
"""σ'(x) = σ (1 - σ) is a hundredth of its maximum ¼ where (2σ - 1)² = 0.99."""
ERF_END = math.sqrt(math.log(100))

CLOSED_FORMS = [
    pytest.param(nn.Tanh(), lambda p: p(-TANH_END) + 1 - p(TANH_END), id="tanh"),
    pytest.param(nn.Sigmoid(), lambda p: p(-SIGMOID_END) + 1 - p(SIGMOID_END), id="sigmoid"),
    pytest.param(Elementwise(torch.erf), lambda p: p(-ERF_END) + 1 - p(ERF_END), id="erf"),
    pytest.param(nn.ReLU(), lambda p: p(0), id="relu"),
    pytest.param(nn.ReLU6(), lambda p: p(0) + 1 - p(6), id="relu6"),
    pytest.param(nn.Hardtanh(), lambda p: p(-1) + 1 - p(1), id="hardtanh"),
    pytest.param(nn.Hardsigmoid(), lambda p: p(-3) + 1 - p(3), id="hardsigmoid"),
    pytest.param(nn.Softplus(), lambda p: p(-math.log(99)), id="softplus"),
    pytest.param(nn.ELU(), lambda p: p(-math.log(100)), id="elu"),
    # The steepest slope of SELU is that left of zero, λα.
    pytest.param(nn.SELU(), lambda p: p(-math.log(100)), id="selu"),
    pytest.param(nn.Softshrink(), lambda p: p(0.5) - p(-0.5), id="softshrink"),
    pytest.param(nn.LeakyReLU(0.02), lambda p: 0.0, id="leaky relu"),
    pytest.param(nn.LeakyReLU(0.005), lambda p: p(0), id="leaky relu that is flat"),
]


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-1.0, 2.5)])
@pytest.mark.parametrize(("activation", "expected"), CLOSED_FORMS)
def test_saturated_fraction(activation, expected, mean, deviation):
    truth = expected(lambda end: norm.cdf(end, mean, deviation))
    # An interval has two ends at most, a pair of tails has two.
    assert fractions(activation, quantiles(mean, deviation))[0] == pytest.approx(truth, abs=2 / COUNT)


@pytest.mark.parametrize(
    ("activation", "slope"),
    [
        pytest.param(nn.GELU(), gelu_slope, id="gelu"),
        pytest.param(nn.SiLU(), silu_slope, id="silu"),
        pytest.param(nn.Softsign(), lambda x: (1 + x.abs()) ** -2, id="softsign"),
        pytest.param(Elementwise(torch.atan), lambda x: 1 / (1 + x**2), id="atan"),
    ],
)
def test_saturated_fraction_by_quadrature(activation, slope):
    """The slopes of GELU and SiLU pass through zero where they turn, and vanish far to the left."""
    truth = probability(slope, 0.0, 4.0)
    # Four ends, and a steepest slope that is found to 1e-4.
    assert fractions(activation, quantiles(0.0, 4.0))[0] == pytest.approx(truth, abs=4 / COUNT + 1e-4)
    assert truth > 0.01


def test_inputs_of_0_to_255_saturate():
    torch.manual_seed(0)
    bytes_ = torch.randint(256, (32, 64)).double()
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 8)).double()
    healthy = measure(model, (bytes_ - 127.5) / 74, measures=["saturated_fraction"])
    assert healthy.saturated_fraction < 0.01
    shifted = measure(model, bytes_, measures=["saturated_fraction"])
    # Pre-activations have a deviation of ‖x‖ √(1/3 / 64) ≈ 148/√3 = 85: all but P(|z| < 2.99/85) = 3 %.
    assert shifted.saturated_fraction["1"] > 0.9


# However it is written ------------------------------------------------------------------------------------------------


class Swish(torch.autograd.Function):
    """As many write it, to save memory."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * silu_slope(x)


swish = Swish.apply


class OwnReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x > 0)


class Scaled(nn.Module):
    """x σ(βx), with a β that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(1, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


SILU = {
    "module": nn.SiLU(),
    "module in place": nn.SiLU(inplace=True),
    "function": Elementwise(F.silu),
    "function in place": Elementwise(lambda x: F.silu(x, inplace=True)),
    "operations": Elementwise(lambda x: x * torch.sigmoid(x)),
    "methods": Elementwise(lambda x: x.sigmoid().mul(x)),
    "learned": Scaled(),
    "autograd function": Elementwise(swish),
}
RELU = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "function": Elementwise(F.relu),
    "function in place": Elementwise(F.relu_),
    "torch": Elementwise(torch.relu),
    "method": Elementwise(Tensor.relu),
    "method in place": Elementwise(Tensor.relu_),
    "clamp": Elementwise(lambda x: x.clamp(min=0)),
    "clamp in place": Elementwise(lambda x: x.clamp_(min=0)),
    "maximum": Elementwise(lambda x: torch.maximum(x, torch.zeros_like(x))),
    "where": Elementwise(lambda x: torch.where(x > 0, x, 0.0)),
    "mask": Elementwise(lambda x: x * (x > 0)),
    "threshold": nn.Threshold(0, 0),
    "prelu": nn.PReLU(UNITS, init=0.0, dtype=F64),
    "leaky": nn.LeakyReLU(0.0),
    "autograd function": Elementwise(OwnReLU.apply),
}


@pytest.mark.parametrize("way", SILU)
def test_silu_however_it_is_written(way):
    inputs = quantiles(0.0, 4.0)
    assert fractions(SILU[way], inputs) == fractions(nn.SiLU(), inputs)


@pytest.mark.parametrize("way", RELU)
def test_relu_however_it_is_written(way):
    inputs = quantiles(-1.0, 0.5)
    saturated, dead = fractions(nn.ReLU(), inputs)
    assert saturated == pytest.approx(norm.cdf(2), abs=1 / COUNT)
    assert dead > 0.05
    assert fractions(RELU[way], inputs) == (saturated, dead)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_other_types(dtype):
    model = around(nn.Tanh())
    result = measure(model, quantiles(), dtype=dtype, measures=["saturated_fraction"], steps=nn.Linear)
    # 1 - y² is known to 2 eps; it falls through 0.01 by 0.02 per unit of x.
    tolerance = 2 / COUNT + 2 * norm.pdf(TANH_END) * 2 * torch.finfo(dtype).eps / 0.02
    assert result.saturated_fraction["1"] == pytest.approx(2 * norm.cdf(-TANH_END), abs=tolerance)


# Dead fractions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_dead_fraction_of_independent_samples(batch):
    """A bias of -1 before a ReLU: a unit is off in one sample with probability Φ(1/σ), in n with Φ(1/σ)ⁿ."""
    units, deviation = 20_000, 0.8
    torch.manual_seed(0)
    inputs = deviation * torch.randn(batch, units, dtype=F64) - 1

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(units, dtype=F64))
            self.head = nn.Linear(units, 2, dtype=F64)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(x + self.bias))

    result = measure(Shifted(), inputs, measures=["dead_fraction"])
    truth = norm.cdf(1 / deviation) ** batch
    # Four standard errors.
    tolerance = 4 * math.sqrt(truth * (1 - truth) / units)
    assert result.dead_fraction["Shifted relu"] == pytest.approx(truth, abs=tolerance)


def with_dead(layer: nn.Module, dead: int) -> nn.Module:
    """Bury the first units of a layer under a bias."""
    with torch.no_grad():
        layer.bias[:dead] = -1e3
    return layer


class ChannelsLast(nn.Module):
    """A linear layer on images whose channels come last, as in Swin and ConvNeXt."""

    def __init__(self, channels: int, dead: int) -> None:
        super().__init__()
        self.up = with_dead(nn.Linear(3, channels), dead)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.up(x.movedim(1, -1)))


class Merged(ChannelsLast):
    """Samples and positions are one dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sum() + F.relu(self.up(x.movedim(1, -1).flatten(0, -2)))


class Buried(nn.Module):
    """A layer without a bias, two units of which have weights of zero and a slope of zero at zero."""

    def __init__(self, layer: nn.Module, rows: int) -> None:
        super().__init__()
        self.layer = layer
        with torch.no_grad():
            layer.weight.narrow(rows, 6, 2).zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class OneChannel(nn.Module):
    """All channels but the first are dark."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], 1)


UNITS_OF = [
    pytest.param(lambda: nn.Sequential(with_dead(nn.Linear(8, 8), 2), nn.ReLU()), (8, 8), id="batch as long as units"),
    pytest.param(lambda: nn.Sequential(with_dead(nn.Linear(5, 8), 2), nn.ReLU()), (4, 6, 5), id="sequence"),
    pytest.param(lambda: nn.Sequential(with_dead(nn.Linear(5, 8), 2), nn.ReLU()), (8, 8, 5), id="all as long as units"),
    pytest.param(lambda: nn.Sequential(with_dead(nn.Conv2d(3, 8, 3), 2), nn.ReLU()), (4, 3, 10, 10), id="square image"),
    pytest.param(lambda: nn.Sequential(with_dead(nn.Conv2d(3, 8, 3), 2), nn.ReLU()), (4, 3, 9, 11), id="image"),
    pytest.param(lambda: nn.Sequential(with_dead(nn.Conv1d(3, 8, 3), 2), nn.ReLU()), (8, 3, 10), id="signal"),
    pytest.param(
        lambda: nn.Sequential(with_dead(nn.ConvTranspose2d(3, 8, 3), 2), nn.ReLU()), (4, 3, 6, 6), id="transposed"
    ),
    pytest.param(
        lambda: nn.Sequential(with_dead(nn.ConvTranspose2d(8, 8, 3, padding=1), 2), nn.ReLU()),
        (8, 8, 8, 8),
        id="transposed, all as long as units",
    ),
    pytest.param(
        lambda: nn.Sequential(with_dead(nn.ConvTranspose2d(4, 8, 3, padding=1, groups=2), 2), nn.ReLU()),
        (4, 4, 4, 4),
        id="transposed groups, all as long as weights",
    ),
    pytest.param(
        lambda: nn.Sequential(Buried(nn.ConvTranspose2d(8, 8, 3, padding=1, bias=False), 1), nn.ReLU()),
        (8, 8, 8, 8),
        id="transposed without a bias",
    ),
    pytest.param(
        lambda: nn.Sequential(OneChannel(), Buried(nn.Conv2d(8, 8, 3, padding=1, bias=False), 0), nn.ReLU()),
        (8, 8, 8, 8),
        id="without a bias, of one channel",
    ),
    pytest.param(lambda: ChannelsLast(8, 2), (4, 3, 8, 7), id="channels last"),
    pytest.param(lambda: Merged(8, 2), (4, 3, 8, 7), id="merged"),
]


@pytest.mark.parametrize(("build", "shape"), UNITS_OF)
def test_a_unit_is_what_has_weights_of_its_own(build, shape):
    """Two of eight units are buried; by entries of a sample, or along another dimension, the share were another."""
    result = measure(build, lambda generator: torch.randn(shape, generator=generator), measures=["dead_fraction"])
    for fraction in result.dead_fraction.values():
        assert float(fraction) == 0.25


def test_leaky_units_never_die():
    result = measure(around(nn.LeakyReLU(0.01)), quantiles(-100.0), measures=["dead_fraction"])
    assert result.dead_fraction["1"] == 0


def test_a_slope_that_underflows_is_dead():
    """1 - tanh² is zero in float32 from x = 9.01 on, where tanh rounds to one, in float64 from 19.06 on."""
    for dtype, dead in ((torch.float32, 1.0), (torch.float64, 0.0)):
        result = measure(around(nn.Tanh()), torch.full((2, UNITS), 12.0), dtype=dtype, measures=["dead_fraction"])
        assert result.dead_fraction["1"] == dead
