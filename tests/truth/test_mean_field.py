"""Wide random networks: rows 3, 3b, 4 and 5 of the table of closed forms.

ReLU with Gaussian weights and no bias is solved exactly at any width and depth (row 3). Other activations are solved as
width → ∞ by mean-field theory (Poole et al., NeurIPS 2016; Schoenholz et al., ICLR 2017): pre-activations are normal
with variance q*, and the squared norm of a cotangent grows by χ₁ = σ_w² E φ'(√q* z)² per step. `MeanField` works out,
beside that value, the leading 1/N terms by which a network of N units may differ from it: these are the tolerances.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import digamma, expit, polygamma
from scipy.stats import binom
from torch import nn
from towers import F64, Block, Elementwise, gaussian, on_sphere, repeated

from pytest_trainability import measure

# Row 3: ReLU, exactly ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReLUTower:
    """`x → relu(W x)`, Gaussian W with variance σ²/N, N units.

    `(w·v)²` is even in w and so does not care on which side of the hyperplane `w·x = 0` the row w lies: for a tangent v
    that is independent of W, `‖D W v‖² = (σ²/N) χ²_K` with K ~ Bin(N, ½) active units, afresh at every step. A random
    cotangent u has the same law, for a given product A of any depth depends on the singular values alone in both
    `‖A v‖` and `‖Aᵀ u‖`. So mean and variance below are exact, at any N and L. (K = 0 has probability 2^-N.)
    """

    width: int
    variance: float

    def expectation(self, function: Callable[[float], float]) -> float:
        """E f(K), given K ≥ 1."""
        weights = [float(binom.pmf(k, self.width, 0.5)) for k in range(1, self.width + 1)]
        return sum(w * float(function(k)) for k, w in enumerate(weights, start=1)) / sum(weights)

    @property
    def exponent(self) -> float:
        return 0.5 * (math.log(2 * self.variance / self.width) + self.expectation(lambda k: digamma(k / 2)))

    @property
    def step_variance(self) -> float:
        """Var ½ ln χ²_K = ¼ (E ψ'(K/2) + Var ψ(K/2)), 5/(4N) for large N."""
        mean = self.expectation(lambda k: digamma(k / 2))
        square = self.expectation(lambda k: digamma(k / 2) ** 2 + polygamma(1, k / 2))
        return (square - mean**2) / 4

    def tolerance(self, depth: int, seeds: int) -> float:
        """Four standard errors."""
        return 4 * math.sqrt(self.step_variance / (depth * seeds))

    def model(self, depth: int) -> Callable[[], nn.Module]:
        def layer() -> nn.Module:
            return Block(gaussian(self.width, self.width, variance=self.variance / self.width), nn.ReLU())

        return repeated(layer, depth)


def test_relu_formula_gives_the_published_value():
    assert ReLUTower(64, 2.0).exponent == pytest.approx(-0.020054, abs=5e-7)  # all digits given
    # N·v = 5/4 + a/N + …: extrapolated from two widths, what is left is of order 1/64² = 2e-4.
    once, twice = (width * ReLUTower(width, 2.0).step_variance for width in (64, 128))
    assert 2 * twice - once == pytest.approx(5 / 4, abs=5e-3)


RELU_CASES = [
    pytest.param(ReLUTower(64, 2.0), 30, 40, id="He N=64"),
    pytest.param(ReLUTower(64, 1.0), 30, 16, id="Xavier N=64"),
    pytest.param(ReLUTower(16, 2.0), 30, 40, id="He N=16"),
    pytest.param(ReLUTower(12, 2.0), 2, 100, id="shallow"),
]


@pytest.mark.parametrize(("tower", "depth", "seeds"), RELU_CASES)
def test_relu_exponent(tower, depth, seeds):
    wanted = ["lyapunov_max", "forward_log_gain"]
    result = measure(tower.model(depth), on_sphere(1, tower.width), seeds=seeds, steps=Block, measures=wanted)
    tolerance = tower.tolerance(depth, seeds)
    # He and Xavier differ by ½ ln 2 per step: one would not pass for the other.
    assert tolerance < math.log(2) / 4
    assert abs(result.lyapunov_max - tower.exponent) < tolerance
    # relu(Wx) = D W x: the activations follow the same law, by a different random vector.
    assert abs(result.forward_log_gain - depth * tower.exponent) < depth * tolerance


def test_relu_exponent_is_the_quenched_one():
    """At N = 16 the He tower shrinks typical gradients by 8 % a step; mean-field theory says 0."""
    tower, depth, seeds = ReLUTower(16, 2.0), 30, 40
    result = measure(tower.model(depth), on_sphere(1, tower.width), seeds=seeds, steps=Block, measures=["lyapunov_max"])
    # The law of large numbers allows nothing up to zero.
    assert result.lyapunov_max < tower.exponent + tower.tolerance(depth, seeds) < 0


def test_relu_second_moment_is_one():
    """E‖Ju‖² = 1 exactly under He, while its logarithm drifts down: the two averages differ."""
    width, depth, seeds = 64, 4, 250
    tower = ReLUTower(width, 2.0)
    result = measure(tower.model(depth), on_sphere(1, width), seeds=seeds, steps=Block, measures=["log_gain"])
    squares = [math.exp(2 * value) for value in result.log_gain.values]
    # E((2/N) χ²_K)² = (4/N²) E[K² + 2K] = 1 + 5/N, so Var = (1 + 5/N)^L - 1 = 0.35: four standard errors of 250 are 0.15.
    assert abs(sum(squares) / seeds - 1) < 4 * math.sqrt(((1 + 5 / width) ** depth - 1) / seeds)


@pytest.mark.parametrize("batch", [1, 3], ids=["joint", "per sample"])
def test_relu_rank_is_finite(batch):
    """The product has the rank of its narrowest step, the fewest active units; exponents past that are -inf."""
    width, depth = 10, 8
    torch.manual_seed(5)
    model = ReLUTower(width, 2.0).model(depth)()
    x = on_sphere(batch, width)(torch.Generator().manual_seed(5))
    ranks, state = torch.full((batch,), width), x
    with torch.no_grad():
        for block in model:
            state = block(state)
            ranks = torch.minimum(ranks, (state > 0).sum(dim=1))
    assert 0 < ranks.min() < width
    spectrum = measure(model, x, exponents=width, measures=["lyapunov_spectrum"]).lyapunov_spectrum
    # A mean over samples is -inf as soon as one of them has no such exponent.
    rank = int(ranks.min())
    assert all(math.isfinite(exponent.mean) for exponent in spectrum[:rank])
    assert all(exponent.mean == -math.inf for exponent in spectrum[rank:])


# Rows 3b, 4, 5: mean field -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activation:
    """A function, its derivative, and the same as a module."""

    name: str
    function: Callable[[float], float]
    derivative: Callable[[float], float]
    module: Callable[[], nn.Module]


def _phi(h: float) -> float:
    return math.exp(-h * h / 2) / math.sqrt(2 * math.pi)


def _cumulative(h: float) -> float:
    return 0.5 * math.erfc(-h / math.sqrt(2))


# Klambauer et al., NeurIPS 2017.
SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717

RELU = Activation("relu", lambda h: max(h, 0.0), lambda h: float(h > 0), nn.ReLU)
TANH = Activation("tanh", math.tanh, lambda h: 1 / math.cosh(h) ** 2, nn.Tanh)
SIGMOID = Activation("sigmoid", expit, lambda h: expit(h) * expit(-h), nn.Sigmoid)
ERF = Activation("erf", math.erf, lambda h: 2 / math.sqrt(math.pi) * math.exp(-h * h), partial(Elementwise, torch.erf))
GELU = Activation("gelu", lambda h: h * _cumulative(h), lambda h: _cumulative(h) + h * _phi(h), nn.GELU)
SELU = Activation(
    "selu",
    lambda h: SELU_SCALE * (h if h > 0 else SELU_ALPHA * math.expm1(h)),
    lambda h: SELU_SCALE * (1.0 if h > 0 else SELU_ALPHA * math.exp(h)),
    nn.SELU,
)


@dataclass(frozen=True)
class MeanField:
    """`h = W φ(h') + b` with weight variance σ_w²/N and bias variance σ_b², as N → ∞ and with its 1/N corrections."""

    activation: Activation
    weight: float
    bias: float

    def average(self, function: Callable[[float], float], q: float) -> float:
        """E f(√q z), z standard normal, in two halves: activations may have a kink at zero."""

        def integrand(z: float) -> float:
            return function(math.sqrt(q) * z) * _phi(z)

        return math.fsum(quad(integrand, *ends, epsabs=1e-13)[0] for ends in ((-12, 0), (0, 12)))

    def square(self, q: float) -> float:
        """p = E φ², the mean square of the activations."""
        return self.average(lambda h: self.activation.function(h) ** 2, q)

    def variance(self, q: float) -> float:
        """The variance map F: q → σ_w² E φ² + σ_b²."""
        return self.weight * self.square(q) + self.bias

    def growth(self, q: float) -> float:
        """½ ln χ₁ at pre-activation variance q."""
        return 0.5 * math.log(self.weight * self.average(lambda h: self.activation.derivative(h) ** 2, q))

    @cached_property
    def q(self) -> float:
        """Fixed point of F; it is stable, so iteration finds it."""
        q = 1.0
        for _ in range(1000):
            q, before = self.variance(q), q
            if abs(q - before) < 1e-14:
                break
        return q

    @property
    def exponent(self) -> float:
        return self.growth(self.q)

    @property
    def rms(self) -> float:
        """Of the activations at the fixed point."""
        return math.sqrt(self.square(self.q))

    def _derivatives(self, function: Callable[[float], float]) -> tuple[float, float]:
        """First and second derivative at q*, by central differences; they only enter tolerances."""
        step = 0.01 * self.q
        below, here, above = (function(self.q + sign * step) for sign in (-1, 0, 1))
        return (above - below) / (2 * step), (above - 2 * here + below) / step**2

    @cached_property
    def corrections(self) -> _Corrections:
        """N times the leading fluctuations, by the delta method.

        Cotangent: `‖Wᵀ D u‖²` is `χ²_N/N` times a mean of N terms `φ'² u²`, so that the log of the norm has variance
        `½ + ¾ (κ - 1)` over N, κ = E φ'⁴ / (E φ'²)² (ReLU: 5/4). Activations: p is a mean of N terms φ², which shakes q
        by `ε²/N = σ_w⁴ Var φ² / N` afresh at every step; the past is forgotten at the rate F'.
        """
        slopes = [self.average(lambda h, n=n: self.activation.derivative(h) ** n, self.q) for n in (2, 4)]
        cotangent = 0.5 + 0.75 * (slopes[1] / slopes[0] ** 2 - 1)
        fourth = self.average(lambda h: self.activation.function(h) ** 4, self.q)
        shake = self.weight * math.sqrt(fourth - self.square(self.q) ** 2)
        (first, second), (slope, curvature) = self._derivatives(self.variance), self._derivatives(self.growth)
        spread = shake**2 / (1 - first**2)
        shift = 0.5 * abs(second) * spread / (1 - first)
        # Wᵀ has seen x: it maps D u to a fresh Gaussian, and in one direction of N to x (Wx)ᵀ D u/‖x‖².
        # Of h, the share r = σ_w² p/q is Wx, the rest is bias: E[(Wx)² φ'²] = r² E[h² φ'²] + r σ_b² E φ'².
        share = self.weight * self.square(self.q) / self.q
        seen = share**2 * self.average(lambda h: (h * self.activation.derivative(h)) ** 2, self.q)
        seen += share * self.bias * slopes[0]
        seen = 0.5 * abs(seen / self.square(self.q) / (self.weight * slopes[0]) - 1)
        # The two sources of noise may be correlated: their standard deviations add at worst.
        step = (math.sqrt(cotangent) + abs(slope) * shake / (1 - first)) ** 2
        bias = step + seen + abs(slope) * shift + 0.5 * abs(curvature) * spread
        return _Corrections(step, bias, spread, shift)

    def tolerance(self, width: int, depth: int, seeds: int) -> float:
        """Four standard errors over L·S steps, and the 1/N bias: `E ln = ln E - Var`, the drift of q, what W has seen."""
        return 4 * math.sqrt(self.corrections.step / (width * depth * seeds)) + self.corrections.bias / width

    def rms_tolerance(self, width: int, seeds: int) -> float:
        """The same for ln rms of one state: δ ln rms = δp/(2p), with δp = δq/σ_w²."""
        scale = 2 * self.square(self.q) * self.weight
        spread = self.corrections.spread / scale**2
        return 4 * math.sqrt(spread / (width * seeds)) + (self.corrections.shift / scale + spread) / width

    def model(self, width: int, depth: int) -> Callable[[], nn.Module]:
        def layer() -> nn.Module:
            weights = gaussian(width, width, variance=self.weight / width, bias_variance=self.bias)
            return Block(weights, self.activation.module())

        return repeated(layer, depth)


@dataclass(frozen=True)
class _Corrections:
    """N times: variance of one step's growth rate, its bias, variance of q, shift of q."""

    step: float
    bias: float
    spread: float
    shift: float


PUBLISHED = [
    pytest.param(MeanField(TANH, 1, 0.05), -0.1378559, 1e-7, id="tanh ordered"),
    pytest.param(MeanField(TANH, 2.5, 0.05), 0.0626620, 1e-7, id="tanh chaotic"),
    pytest.param(MeanField(TANH, 4, 0.05), 0.1472304, 1e-7, id="tanh more chaotic"),
    pytest.param(MeanField(TANH, 1.760955, 0.05), 0.0, 1e-6, id="tanh edge of chaos"),
    pytest.param(MeanField(ERF, 3, 0.1), 0.141217, 1e-6, id="erf"),
    pytest.param(MeanField(SIGMOID, 1, 0), -1.443702, 1e-6, id="sigmoid"),
    pytest.param(MeanField(GELU, 1.5, 0.5), -0.165621, 1e-6, id="gelu"),
    pytest.param(MeanField(SELU, 1, 0), 0.034565, 1e-6, id="selu"),
]


@pytest.mark.parametrize(("theory", "published", "digits"), PUBLISHED)
def test_quadrature_gives_the_published_value(theory, published, digits):
    assert theory.exponent == pytest.approx(published, abs=digits)  # the last digit given


def test_quadrature_gives_the_published_edge_of_chaos():
    edge = brentq(lambda weight: MeanField(TANH, weight, 0.05).exponent, 1.5, 2.0, xtol=1e-9)
    assert edge == pytest.approx(1.760955, abs=1e-6)


@pytest.mark.parametrize(("theory", "published", "digits"), PUBLISHED)
def test_mean_field_exponent(theory, published, digits):
    """Backward growth, and the activations beside it, of networks that start at the fixed point."""
    width, depth, seeds = 384, 24, 8
    inputs = on_sphere(2, width, rms=theory.rms)
    result = measure(theory.model(width, depth), inputs, seeds=seeds, measures=["lyapunov_max", "activation_rms"])
    assert (result.frame, result.steps.description) == ("per sample", "24 × Block")
    # The tolerance is for one sample a seed; two, of their own cotangents, can only be better.
    tolerance = theory.tolerance(width, depth, seeds)
    assert tolerance < 0.03  # tells every one of these exponents, but that of the edge of chaos, from zero
    assert abs(result.lyapunov_max - published) < tolerance
    for rms in result.activation_rms.values():
        assert abs(math.log(rms.mean / theory.rms)) < theory.rms_tolerance(width, seeds)


def test_order_and_chaos_are_told_apart():
    """The sign is what a user asks about: ordered below the edge, chaotic above it, neither at it."""
    edge = 1.760955
    for weight, sign in ((1.0, -1), (edge, 0), (2.5, 1)):
        theory = MeanField(TANH, weight, 0.05)
        tolerance = theory.tolerance(384, 24, 6)
        result = measure(theory.model(384, 24), on_sphere(1, 384, rms=theory.rms), seeds=6, measures=["lyapunov_max"])
        if sign:
            assert sign * result.lyapunov_max.mean > sign * theory.exponent - tolerance > 0
        else:
            assert abs(result.lyapunov_max) < tolerance


# Row 3b: what nn.Linear does unless told otherwise ------------------------------------------------------------------

# U(-1/√N, 1/√N) for weights and biases: σ_w² = 1/3, and σ_b² = 1/(3N) vanishes with width.
DEFAULTS = [
    pytest.param(RELU, -0.906, 128, id="relu"),
    pytest.param(TANH, -0.549, 256, id="tanh"),
    pytest.param(SIGMOID, -1.956, 256, id="sigmoid"),
]


def default_tower(activation: Activation, width: int, depth: int) -> Callable[[], nn.Module]:
    return repeated(lambda: Block(nn.Linear(width, width, dtype=F64), activation.module()), depth)


def test_default_formulas_give_the_published_values():
    assert ReLUTower(128, 1 / 3).exponent == pytest.approx(-0.906, abs=5e-4)  # the finite-width value, three digits
    assert MeanField(TANH, 1 / 3, 0).growth(1e-12) == pytest.approx(-0.549, abs=5e-4)  # q* = 0 without biases
    assert MeanField(SIGMOID, 1 / 3, 0).exponent == pytest.approx(-1.956, abs=5e-4)


@pytest.mark.parametrize(("activation", "published", "width"), DEFAULTS)
def test_default_initialization(activation, published, width):
    depth, seeds = 24, 12
    theory = MeanField(activation, 1 / 3, 1 / (3 * width))
    result = measure(default_tower(activation, width, depth), on_sphere(1, width, rms=theory.rms), seeds=seeds)
    tolerance = theory.tolerance(width, depth, seeds)
    # He initialization would be ½ ln 6 = 0.9 away, Xavier's ½ ln 3.
    assert tolerance < 0.05
    assert abs(result.lyapunov_max - published) < tolerance


def test_default_relu_tower_keeps_its_activations_and_loses_its_gradient():
    """The biases hold the activations up at rms = √(q*/2), q* = σ_b²/(1 - σ_w²/2), while gradients fall by 0.9 a step."""
    width, depth, seeds = 128, 40, 10
    theory = MeanField(RELU, 1 / 3, 1 / (3 * width))
    assert theory.rms == pytest.approx(math.sqrt(0.2 / width), rel=1e-9)
    result = measure(
        default_tower(RELU, width, depth),
        on_sphere(1, width),
        seeds=seeds,
        measures=["log_gain", "forward_log_gain"],
    )
    # 40 steps of F' = 1/6 forget the inputs' rms of 1 to 1e-31.
    assert abs(result.forward_log_gain - math.log(theory.rms)) < theory.rms_tolerance(width, seeds)
    assert abs(result.log_gain / depth - ReLUTower(width, 1 / 3).exponent) < theory.tolerance(width, depth, seeds)
