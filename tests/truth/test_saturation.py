"""Saturated and dead units in closed form, however the activation is written.

Pre-activations are the quantiles of a normal distribution, so that a share of n of them is a probability to 1/n for each end of
the interval that it is the probability of.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from scipy.stats import norm
from torch import Tensor, nn
from towers import F64, Elementwise

from pytest_trainability import measure
from pytest_trainability.engine.capture.recorder import edge_of
from pytest_trainability.measures.activations.elementwise import Application, steepest_slope
from pytest_trainability.measures.activations.unit_axes import Layout

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


def test_each_activation_has_a_steepest_slope_of_its_own():
    """One function, called by two modules with slopes of their own: 1 is flat beside 200, and neither is beside 0.25."""
    first, second = (nn.PReLU(init=slope, dtype=F64) for slope in (0.25, 200.0))
    model = nn.Sequential(passing(), first, passing(), second, passing())
    found = measure(model, quantiles(), measures=["saturated_fraction"]).saturated_fraction
    assert found["1"] == 0
    assert found["3"] == pytest.approx(0.5, abs=1 / COUNT)


@pytest.mark.parametrize(
    ("function", "steepest"),
    [
        pytest.param(torch.tanh, 1.0, id="tanh"),
        # GELU'' = (2 - x²) φ(x)
        pytest.param(F.gelu, float(gelu_slope(torch.tensor(math.sqrt(2), dtype=F64))), id="gelu"),
        # SiLU'' = σ (1 - σ) (2 + x (1 - 2σ)) is zero where x tanh(x/2) = 2
        pytest.param(F.silu, float(silu_slope(torch.tensor(2.3993572805154678, dtype=F64))), id="silu"),
        # steepest at ±1
        pytest.param(lambda x: torch.exp(-(x**2) / 2), math.exp(-0.5), id="bell"),
    ],
)
def test_the_largest_slope_is_found_to_1e_4(function, steepest):
    inputs = torch.zeros(SAMPLES, UNITS, dtype=F64, requires_grad=True) * 1.0
    application = Application(function, (inputs,), {}, inputs, inputs.detach(), ())
    assert steepest_slope(application) == pytest.approx(steepest, rel=1e-4)


class Counting(nn.Module):
    """A SiLU that grows with every call, by a buffer that is replaced or written to."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("calls", torch.zeros((), dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.calls.add_(1)
        else:
            self.calls = self.calls + 1
        return x * torch.sigmoid(x) * self.calls.clone()


@pytest.mark.parametrize("in_place", [False, True])
def test_it_leaves_the_run_as_it_is(in_place):
    """An activation that is tried out, several times, does so with buffers that are lent to it."""
    layer, swish = passing(), Counting(in_place=in_place)
    model = nn.Sequential(layer, swish, layer, swish, layer)
    alone = measure(model, quantiles(), measures=["activation_rms"], steps=nn.Linear)
    both = measure(model, quantiles(), measures=["activation_rms", "saturated_fraction"], steps=nn.Linear)
    assert len(both.saturated_fraction) == 2
    assert both.activation_rms == alone.activation_rms


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


def with_dead(layer: nn.Module, dead: int, *, above: float = 0.0) -> nn.Module:
    """Bury the first units of a layer under a bias, and lift the others."""
    with torch.no_grad():
        layer.bias[:dead] = -1e3
        layer.bias[dead:] += above
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


class Part(nn.Module):
    """An activation of a part of a layer's units, as in gated layers and the cells of recurrent ones."""

    def __init__(self, layer: nn.Module, part: Callable[[Tensor], Tensor], dead: slice) -> None:
        super().__init__()
        self.layer, self.part = layer, part
        with torch.no_grad():
            layer.bias[dead] = -1e3

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.part(self.layer(x)))


class Gated(Part):
    """ReGLU."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.layer(x).chunk(2, -1)
        return F.relu(gate) * value


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


class AddedPerPosition(nn.Module):
    """Positions have parameters of their own, too, which are those of no unit."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.positions


class Attending(nn.Module):
    """Attention, whose scores depend on all units and whose values do not mix them."""

    def __init__(self, channels: int, dead: int) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.v = with_dead(nn.Linear(channels, channels), dead)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-2, -1)
        return F.relu(scores.softmax(-1) @ self.v(x))


FIRST, LAST = slice(0, 2), slice(-2, None)

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
    pytest.param(lambda: Gated(nn.Linear(5, 16), nn.Identity(), FIRST), (32, 5), id="gated"),
    pytest.param(lambda: Gated(nn.Linear(5, 16), nn.Identity(), FIRST), (4, 6, 5), id="gated sequence"),
    pytest.param(lambda: Gated(nn.Linear(8, 16), nn.Identity(), FIRST), (8, 8, 8), id="gated, all as long as units"),
    pytest.param(lambda: Gated(nn.Linear(8, 16), nn.Identity(), FIRST), (16, 16, 8), id="gated, all as long as both"),
    pytest.param(lambda: Part(nn.Linear(5, 16), lambda x: x.chunk(2, -1)[1], LAST), (4, 6, 5), id="second of two"),
    pytest.param(lambda: Part(nn.Linear(5, 21), lambda x: x.split((13, 8), -1)[1], LAST), (9, 6, 5), id="split"),
    pytest.param(lambda: Part(nn.Linear(5, 32), lambda x: x.narrow(-1, 2, 8), slice(8, 10)), (9, 6, 5), id="narrowed"),
    pytest.param(lambda: Part(nn.Conv2d(3, 16, 3), lambda x: x.chunk(2, 1)[0], FIRST), (4, 3, 9, 11), id="gated image"),
    pytest.param(
        lambda: Part(nn.Conv2d(3, 16, 3), lambda x: x.chunk(2, 1)[0], FIRST), (8, 3, 10, 10), id="gated square image"
    ),
    pytest.param(
        lambda: Part(nn.Linear(5, 24), lambda x: x.unflatten(-1, (3, 4, 2)).permute(2, 0, 3, 1, 4)[0], FIRST),
        (9, 6, 5),
        id="heads",
    ),
    pytest.param(lambda: Attending(8, 2), (8, 8, 8), id="attention, all as long as units"),
    pytest.param(
        lambda: nn.Sequential(with_dead(nn.Conv2d(3, 32, 3), 8), nn.PixelShuffle(2), nn.ReLU()),
        (8, 3, 6, 10),
        id="several channels to one",
    ),
    pytest.param(
        lambda: nn.Sequential(with_dead(nn.Conv2d(3, 8, 3), 2, above=1e2), nn.Flatten(), nn.ReLU()),
        (8, 3, 10, 10),
        id="flattened",
    ),
    pytest.param(
        lambda: nn.Sequential(with_dead(nn.Linear(5, 8), 2), nn.LayerNorm(8, elementwise_affine=False), nn.ReLU()),
        (8, 8, 5),
        id="normalized",
    ),
    pytest.param(
        lambda: nn.Sequential(
            with_dead(nn.Conv2d(3, 8, 3), 2), nn.GroupNorm(2, 8, affine=False), AddedPerPosition(8, 8), nn.ReLU()
        ),
        (8, 3, 10, 10),
        id="normalized in groups, behind positions",
    ),
]


@pytest.mark.parametrize(("build", "shape"), UNITS_OF)
def test_a_unit_is_what_has_weights_of_its_own(build, shape):
    """Two of eight units are buried; by entries of a sample, or along another dimension, the share were another.

    But for what is flattened, whose entries are the units; all others are lifted above zero there.
    """
    result = measure(build, lambda generator: torch.randn(shape, generator=generator), measures=["dead_fraction"])
    for fraction in result.dead_fraction.values():
        assert float(fraction) == 0.25


def scores(x: Tensor) -> Tensor:
    """Units are summed over; positions are as many."""
    q, k = nn.Linear(16, 16, dtype=F64), nn.Linear(16, 16, dtype=F64)
    return q(x) @ k(x).transpose(-2, -1)


def flattened(x: Tensor) -> Tensor:
    """Samples are as many as channels are read."""
    return nn.Conv2d(16, 20, 3, bias=False, dtype=F64)(x.reshape(16, 16, 4, 4)).flatten(1)


def looked_up(x: Tensor) -> Tensor:
    """Samples have rows of their own, as units have columns."""
    return nn.Embedding(32, 32, dtype=F64)(torch.arange(len(x))).chunk(2, -1)[0]


def chosen(x: Tensor) -> Tensor:
    """The same, without the name of an embedding."""
    return nn.Parameter(torch.randn(32, 32, dtype=F64))[torch.arange(len(x))].chunk(2, -1)[0]


def without_units(x: Tensor) -> Tensor:
    """Samples have rows of their own, and columns are averaged."""
    return nn.Embedding(32, 32, dtype=F64)(torch.arange(len(x))).mean(-1)


def averaged(x: Tensor) -> Tensor:
    """No unit is left, and the first sample alone reads the first column."""
    samples = torch.tensor([[1.0, 0.0]] + 15 * [[0.0, 1.0]], dtype=F64)
    return nn.Linear(2, 16, bias=False, dtype=F64)(samples).mean(-1)


def scaled(x: Tensor) -> Tensor:
    """The nearest parameter is that of a layer whose units are averaged."""
    gate = nn.Linear(16, 16, dtype=F64)(x).mean(-1, keepdim=True)
    return gate * nn.Linear(16, 16, dtype=F64)(x).transpose(1, 2).contiguous().transpose(1, 2).contiguous()


def normalized(x: Tensor) -> Tensor:
    """A norm without a scale of its own mixes units, each a little."""
    return F.layer_norm(nn.Linear(16, 16, dtype=F64)(x), (16,))


def heads(x: Tensor) -> Tensor:
    """Units are four heads of four dimensions each, positions and samples are four, too."""
    return nn.Linear(16, 48, dtype=F64)(x[:4, :4]).reshape(4, 4, 3, 4, 4).permute(2, 0, 3, 1, 4)[1]


TOLD = [
    (normalized, (2,)),
    (scores, ()),
    (flattened, ()),
    (looked_up, (1,)),
    (chosen, (1,)),
    (without_units, ()),
    (averaged, ()),
    (scaled, (2,)),
    (heads, (1, 3)),
]


@pytest.mark.parametrize(("compute", "expected"), TOLD)
@pytest.mark.parametrize("seed", range(4))
def test_units_are_told_from_samples_and_positions(compute, expected, seed):
    """All of them are sixteen."""
    torch.manual_seed(seed)
    found = compute(torch.randn(16, 16, 16, dtype=F64))
    assert Layout(()).unit_axes(edge_of(found), found.shape) == expected


GROUP_NORM = """
import torch
from torch import nn
from pytest_trainability import measure

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 2)
        self.norm = nn.GroupNorm(4, 16)
        self.unused = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU())
        with torch.no_grad():
            self.norm.bias[:4] = -1e3

    def forward(self, x):
        self.unused(x)
        x = self.norm(self.first(x)).relu()
        return self.norm(self.second(x)).relu()

images = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
result = measure(lambda: Twice().to(memory_format=torch.channels_last), images, measures=["dead_fraction"], seeds=1)
print(len(result.dead_fraction), float(result.dead_fraction["Twice relu[0]"]))
"""


def test_a_group_norm_that_reads_channels_last():
    """PyTorch 2.13 dies where its parameters' gradients alone are asked for: in a process of its own, not to die with it.

    One norm is used twice: what it read the first time is to be asked for, too. The output does not depend on the other.
    """
    found = subprocess.run([sys.executable, "-c", GROUP_NORM], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["3", "0.25"]


def test_leaky_units_never_die():
    result = measure(around(nn.LeakyReLU(0.01)), quantiles(-100.0), measures=["dead_fraction"])
    assert result.dead_fraction["1"] == 0


def test_a_slope_that_underflows_is_dead():
    """1 - tanh² is zero in float32 from x = 9.01 on, where tanh rounds to one, in float64 from 19.06 on."""
    for dtype, dead in ((torch.float32, 1.0), (torch.float64, 0.0)):
        result = measure(around(nn.Tanh()), torch.full((2, UNITS), 12.0), dtype=dtype, measures=["dead_fraction"])
        assert result.dead_fraction["1"] == dead
