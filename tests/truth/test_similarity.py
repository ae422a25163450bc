"""How alike samples and tokens are: correlation maps of wide random networks, and the collapse of attention without skips."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from scipy.optimize import brentq
from torch import Tensor, nn
from towers import F64, gaussian

from pytest_trainability import measure
from pytest_trainability.measures.activations.similarity import mean_cosine


def similarity(model, inputs, **options):
    return measure(model, inputs, measures=["sample_similarity"], **options).sample_similarity


def tower(width: int, depth: int, **options) -> nn.Sequential:
    layers = [layer for _ in range(depth) for layer in (gaussian(width, width, **options), nn.Tanh())]
    return nn.Sequential(*layers)


# What the number is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_it_is_the_mean_over_pairs(dtype, scale):
    vectors = scale * torch.randn(3, 5, 7, dtype=F64, generator=torch.Generator().manual_seed(0)).to(dtype)
    units = F.normalize(vectors.double(), dim=-1, eps=0.0)
    products = units @ units.transpose(1, 2)
    pairs = [float(products[s, i, j]) for s in range(3) for i in range(5) for j in range(i)]
    # Round-off of sums of five.
    assert mean_cosine(vectors) == pytest.approx(sum(pairs) / len(pairs), abs=1e-14)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_vectors_whose_squares_are_out_of_range(scale):
    vectors = torch.randn(3, 5, 7, dtype=F64, generator=torch.Generator().manual_seed(0))
    # Round-off of the scaled vectors' entries, and of sums of five.
    assert mean_cosine(scale * vectors) == pytest.approx(mean_cosine(vectors), abs=1e-14)


def test_vectors_without_a_direction():
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]])
    assert mean_cosine(vectors) == pytest.approx(math.sqrt(0.5), abs=1e-15)
    assert math.isnan(mean_cosine(torch.zeros(1, 3, 2)))
    assert math.isnan(mean_cosine(torch.tensor([[[1.0, 0.0], [math.nan, 1.0]]])))
    assert math.isnan(mean_cosine(torch.tensor([[[1.0, 0.0], [math.inf, 1.0]]])))


def test_identical_samples():
    inputs = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)).expand(6, 32)
    for estimate in similarity(lambda: tower(32, 4, variance=2 / 32), inputs, dtype=F64).values():
        assert float(estimate) == pytest.approx(1, abs=1e-14)


def test_independent_samples():
    """The n(n-1)/2 cosines have mean 0 and variance 1/N, and are uncorrelated."""
    samples, width = 20, 100
    inputs = torch.randn(samples, width, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = similarity(nn.Sequential(gaussian(width, width, variance=1 / width)), inputs)
    assert abs(found["input"]) < 4 * math.sqrt(2 / (samples * (samples - 1) * width))


def test_opposed_samples():
    """The corners of a simplex around zero are as unlike as n vectors can be: -1/(n-1)."""
    corners = torch.eye(5, dtype=F64) - 0.2
    found = similarity(nn.Sequential(gaussian(5, 5, variance=1.0)), corners)
    assert float(found["input"]) == pytest.approx(-1 / 4, abs=1e-14)


def test_two_samples_behind_batch_norm():
    """Normalized, each unit of two samples is (1, -1) or (-1, 1): the joint frame has samples, too."""

    def build() -> nn.Module:
        layers = [nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False)]
        return nn.Sequential(*layers)

    result = measure(build, torch.randn(2, 8), dtype=F64, steps=nn.BatchNorm1d, measures=["sample_similarity"])
    assert result.frame == "joint"
    assert list(result.sample_similarity) == ["input", "1", "3"]
    for step in ("1", "3"):
        # ε of 1e-5 changes the units' sizes, each by its own factor in both samples.
        assert float(result.sample_similarity[step]) == pytest.approx(-1, abs=1e-14)


# Correlation maps -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CorrelationMap:
    """Pre-activations of two samples in a wide network: normal with variance q and correlation c.

    ``c' = (σ_w² E ab + σ_b²) / q``, where a = φ(u) and b = φ(v). At N units E is an average over N, and c' has a variance of its
    own, by the delta method 1/N of that of ``σ_w² (ab - c'(a² + b²)/2) / q``.
    """

    phi: Callable[[Tensor], Tensor]
    weight_variance: float
    bias_variance: float
    q: float

    def pairs(self, c: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return φ(u), φ(v) and their probabilities on a grid."""
        z = torch.linspace(-6, 6, 401, dtype=F64)
        p = torch.exp(-(z**2) / 2)
        p = p / p.sum()
        u, v = torch.broadcast_tensors(z[:, None], c * z[:, None] + math.sqrt(max(1 - c * c, 0.0)) * z)
        return self.phi(math.sqrt(self.q) * u), self.phi(math.sqrt(self.q) * v), p[:, None] * p

    def next(self, c: float) -> float:
        a, b, p = self.pairs(c)
        return (self.weight_variance * float((p * a * b).sum()) + self.bias_variance) / self.q

    def variance(self, c: float) -> float:
        """N Var c' for a given c."""
        a, b, p = self.pairs(c)
        found = self.next(c)
        own = self.weight_variance * (a * b - found * (a**2 + b**2) / 2) / self.q
        mean = float((p * own).sum())
        return float((p * (own - mean) ** 2).sum())

    def slope(self, c: float) -> float:
        return (self.next(c + 1e-3) - self.next(c - 1e-3)) / 2e-3

    def after(self, c: float, layers: int, width: int) -> tuple[float, float]:
        """Return the correlation of the last pre-activations of ``layers`` layers, and the variance of what is measured."""
        variance = 0.0
        for _ in range(layers - 1):
            variance = self.slope(c) ** 2 * variance + self.variance(c) / width
            c = self.next(c)
        # What is measured is the cosine of N normal units, each a draw of that correlation.
        return c, variance + (1 - c * c) ** 2 / width

    @staticmethod
    def tolerance(variance: float, seeds: int) -> float:
        """Four standard errors, and the bias of a map that bends at finite width.

        Half a second derivative of the map (0.2 for ReLU) times a layer's variance, and what of it the following layers hand on
        (a slope of 0.85): below twice the variance in all.
        """
        return 4 * math.sqrt(variance / seeds) + 2 * variance


def two_samples(cosine: float, width: int, square: float) -> Tensor:
    """Return two vectors of that cosine, whose entries have this mean square."""
    x = torch.zeros(2, width, dtype=F64)
    x[:, 0] = 1
    x[1, 0], x[1, 1] = cosine, math.sqrt(1 - cosine**2)
    return x * math.sqrt(square * width)


def test_relu_correlation_is_the_arc_cosine_kernel():
    """Quadrature and closed form of Cho & Saul, NeurIPS 2009, agree: c' = [√(1 - c²) + (π - arccos c) c] / π."""
    relu = CorrelationMap(torch.relu, 2.0, 0.0, 1.0)
    for c in (-0.5, 0.0, 0.3, 0.9):
        kernel = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi
        # The kink is met to the square of the grid's 0.03, a few times less for what falls on either side.
        assert relu.next(c) == pytest.approx(kernel, abs=1e-4)


@pytest.mark.parametrize("depth", [2, 4, 12])
def test_relu_tower(depth):
    """Under He's initialization samples become alike layer by layer: 0, 0.32, 0.49, … 0.89 at the twelfth."""
    width, seeds = 256, 24
    relu = CorrelationMap(torch.relu, 2.0, 0.0, 1.0)
    expected, variance = relu.after(0.0, depth, width)

    def build() -> nn.Module:
        layers = [layer for _ in range(depth) for layer in (gaussian(width, width, variance=2 / width), nn.ReLU())]
        return nn.Sequential(*layers)

    found = similarity(build, two_samples(0.0, width, 0.5), seeds=seeds, steps=nn.Linear)
    tolerance = relu.tolerance(variance, seeds)
    assert tolerance < 0.08
    assert abs(found[str(2 * depth - 2)] - expected) < tolerance


def fixed_point(weight_variance: float, bias_variance: float) -> CorrelationMap:
    """Return the map of tanh networks at the variance q* that pre-activations settle at."""

    def excess(q: float) -> float:
        return CorrelationMap(torch.tanh, weight_variance, bias_variance, q).next(1.0) - 1

    q = float(brentq(excess, 1e-3, 50, xtol=1e-10))
    return CorrelationMap(torch.tanh, weight_variance, bias_variance, q)


@pytest.mark.parametrize(
    ("weight_variance", "bias_variance", "start"),
    [(1.0, 0.05, 0.05), (9.0, 1.0, 0.9), (9.0, 1.0, 0.05)],
    ids=["ordered", "chaotic from above", "chaotic from below"],
)
def test_tanh_correlation_map(weight_variance, bias_variance, start):
    """Poole et al., NeurIPS 2016: ordered networks draw samples together, c* = 1; chaotic ones to a c* below it."""
    width, depth, seeds = 256, 6, 24
    tanh = fixed_point(weight_variance, bias_variance)
    # The first layer mixes inputs whose variance gives q*, and adds its bias.
    square = (tanh.q - bias_variance) / weight_variance
    first = (weight_variance * square * start + bias_variance) / tanh.q
    expected, variance = tanh.after(first, depth, width)

    def build() -> nn.Module:
        return tower(width, depth, variance=weight_variance / width, bias_variance=bias_variance)

    found = similarity(build, two_samples(start, width, square), seeds=seeds, steps=nn.Linear)
    tolerance = tanh.tolerance(variance, seeds)
    assert tolerance < 0.1
    assert abs(found[str(2 * depth - 2)] - expected) < tolerance
    limit = expected
    for _ in range(40):
        limit = tanh.next(limit)
    assert limit == pytest.approx(1.0 if weight_variance == 1 else 0.4616, abs=1e-3)


# Tokens ----------------------------------------------------------------------------------------------------------------

TOKENS, CHANNELS = 12, 32


class Attention(nn.Module):
    """One head, with a skip or without."""

    def __init__(self, *, skip: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (gaussian(CHANNELS, CHANNELS, variance=1 / CHANNELS) for _ in range(3))
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-2, -1) / math.sqrt(CHANNELS)
        found = scores.softmax(-1) @ self.v(x)
        return x + found if self.skip else found


def attention(depth: int, *, skip: bool) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*[Attention(skip=skip) for _ in range(depth)])


def text(batch: int = 4) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(batch, TOKENS, CHANNELS, generator=generator, dtype=F64)


def test_attention_without_skips_collapses_doubly_exponentially():
    """Dong, Cordonnier & Loukas, ICML 2021: what tokens differ by falls with its third power, not by a factor."""
    found = similarity(attention(6, skip=False), text(), steps=Attention, seeds=4)
    rest = [1 - float(found[f"{layer} tokens"]) for layer in range(3)]
    # 1 - cosine is the square of what they differ by: it is cubed, too.
    assert 0 < rest[2] < rest[1] ** 3 < rest[0] ** 9 < 0.1
    # With skips they stay apart; the first input has independent tokens.
    kept = similarity(attention(6, skip=True), text(), steps=Attention, seeds=4)
    assert abs(kept["input tokens"]) < 4 * math.sqrt(2 / (4 * 4 * TOKENS * (TOKENS - 1) * CHANNELS))
    assert kept["5 tokens"] < 0.9 < 1 - 1e-9 < found["5 tokens"]


def test_tokens_and_samples_are_told_apart():
    """A sample of one token repeated, and samples that are alike token by token."""
    generator = torch.Generator().manual_seed(0)
    repeated = torch.randn(6, 1, CHANNELS, generator=generator, dtype=F64).expand(6, TOKENS, CHANNELS)
    alike = torch.randn(1, TOKENS, CHANNELS, generator=generator, dtype=F64).expand(6, TOKENS, CHANNELS)
    layer = nn.Sequential(gaussian(CHANNELS, CHANNELS, variance=1 / CHANNELS))
    first, second = similarity(layer, repeated), similarity(layer, alike)
    for name in ("input", "0"):
        assert float(first[f"{name} tokens"]) == pytest.approx(1, abs=1e-13)
        assert first[name] < 0.5
        assert float(second[name]) == pytest.approx(1, abs=1e-13)
        assert second[f"{name} tokens"] < 0.5


LAYOUTS = [
    pytest.param(lambda: nn.Linear(4, 6), (3, 5, 4), True, id="sequence"),
    pytest.param(lambda: nn.Linear(4, 4), (4, 4, 4), True, id="all alike"),
    pytest.param(lambda: nn.Linear(4, 6), (3, 5, 7, 4), True, id="patches"),
    pytest.param(lambda: nn.Conv1d(4, 6, 3, padding=1), (3, 4, 6), False, id="signal"),
    pytest.param(lambda: nn.Conv1d(4, 4, 3, padding=1), (4, 4, 4), False, id="signal, all alike"),
    pytest.param(lambda: nn.Conv2d(4, 6, 3, padding=1), (3, 4, 6, 6), False, id="image"),
    pytest.param(lambda: nn.Linear(4, 6), (3, 4), False, id="vectors"),
    pytest.param(lambda: nn.Linear(4, 6), (3, 1, 4), False, id="one token"),
]


@pytest.mark.parametrize(("layer", "shape", "has_tokens"), LAYOUTS)
def test_which_states_have_tokens(layer, shape, has_tokens):
    found = list(similarity(layer, torch.randn(shape)))
    name = layer.__class__.__name__
    assert found[0] == "input"
    assert ("input tokens" in found) == has_tokens
    assert len(found) == (4 if has_tokens else 2), name


class Gate(nn.Module):
    """A layer of twice as many units as it returns, half of which are gates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.both = nn.Linear(width, 48)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.both(x).chunk(2, -1)
        return gate.sigmoid() * value


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.gates = nn.Sequential(Gate(16), Gate(24))

    def forward(self, x: Tensor) -> Tensor:
        return self.gates(self.embed(x).flatten(2).transpose(1, 2)).mean(1)


@pytest.mark.parametrize("batch", [3, 8, 16, 24, 48])
def test_gated_layers_have_tokens_whatever_the_batch(batch):
    """No parameter is as long as the 24 units; the batch may be as long as some."""
    found = similarity(Patches, torch.randn(batch, 3, 8, 8), seeds=1, steps=Gate)
    assert list(found) == ["input", "input tokens", "gates.0", "gates.0 tokens", "gates.1", "gates.1 tokens"]


def test_a_batch_of_one_has_tokens_only():
    assert list(similarity(attention(2, skip=True), text(1))) == ["input tokens", "0 tokens", "1 tokens"]
    assert list(similarity(nn.Linear(4, 4), torch.randn(1, 4))) == []


def test_a_state_that_is_no_vector_is_left_out():
    """The last step computes the loss."""

    class Losing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).square().mean()

    assert list(similarity(nn.Sequential(nn.Linear(4, 4), Losing()), torch.randn(3, 4), steps=["0", "1"])) == [
        "input",
        "0",
    ]


def test_a_recurrence():
    """The initial state of zeros has no direction; the ones after it are those of an RNN that is run by hand."""
    rnn = nn.RNN(3, 5, batch_first=True, dtype=F64)
    inputs = torch.randn(4, 6, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = similarity(Recurrent(rnn), inputs, steps="time")
    assert list(found) == [f"rnn[{time}]" for time in range(6)]
    for state, estimate in zip(rnn(inputs)[0].detach().unbind(1), found.values()):
        assert float(estimate) == pytest.approx(mean_cosine(state[None]), abs=1e-12)


class Recurrent(nn.Module):
    def __init__(self, rnn: nn.RNN) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0][:, -1]


def test_samples_along_the_second_dimension():
    """As ``nn.TransformerEncoder`` has them unless told otherwise, (tokens, samples, channels)."""
    layer = nn.TransformerEncoderLayer(CHANNELS, 2, 16, dropout=0.0, dtype=F64)
    turned = nn.TransformerEncoderLayer(CHANNELS, 2, 16, dropout=0.0, batch_first=True, dtype=F64)
    turned.load_state_dict(layer.state_dict())
    inputs = torch.randn(5, TOKENS, CHANNELS, dtype=F64, generator=torch.Generator().manual_seed(0))
    inputs = inputs + inputs.mean(1, keepdim=True)
    expected = similarity(nn.Sequential(turned), inputs)
    second = similarity(SecondDimension(layer), inputs)
    for before, after in zip(expected.values(), second.values()):
        # The same arithmetic in another order.
        assert float(after) == pytest.approx(float(before), abs=1e-12)


class SecondDimension(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.transpose(0, 1))


def test_tensors_of_a_state_count_by_their_entries():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList([Twofold(), Twofold()])

        def forward(self, wide: Tensor, narrow: Tensor) -> Tensor:
            for step in self.steps:
                wide, narrow = step(wide, narrow)
            return wide.sum(1) + narrow.sum(1)

    class Twofold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Linear(6, 6), nn.Linear(2, 2)

        def forward(self, wide: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor]:
            return self.wide(wide), self.narrow(narrow)

    alike, opposed = torch.ones(2, 6), torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    found = similarity(Both, (alike, opposed), steps=Twofold)
    assert float(found["input"]) == pytest.approx((6 * 1 - 2 * 1) / 8, abs=1e-6)
