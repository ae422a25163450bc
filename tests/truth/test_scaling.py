"""Slopes over width and depth whose value is known: exact power laws, Gaussian towers, residual stacks and µP.

The least-squares slope over ln n is linear in what is measured, `Σ w_i y_i` with `w_i = (x_i - x̄)/Σ(x - x̄)²`: its expectation
is the slope of the expectations, and `Σ |w_i| σ_i` bounds its standard deviation however the sizes are correlated (with
one seed the layers of a shallow tower are the first ones of a deep tower). Tolerances are four of those over √seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import digamma, polygamma
from torch import Tensor, nn
from towers import F64, Residual, gaussian, linear, normal, on_sphere, orthogonal, repeated, standard_error

from pytest_trainability import TrainabilityFailure, at_most, depth_sweep, width_sweep, within

WIDTHS = (8, 16, 32, 64)
DEPTHS = (4, 8, 16, 32)


def fitted(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Fit the slope of values over ln n with another library."""
    return float(np.polynomial.Polynomial.fit(np.log(sizes), values, 1).convert().coef[1])


def tolerance(sizes: Sequence[int], deviations: Sequence[float], seeds: int) -> float:
    """Return four standard errors of a slope, whatever the correlation between sizes."""
    x = np.log(sizes)
    weights = (x - x.mean()) / np.square(x - x.mean()).sum()
    return 4 * float(np.abs(weights) @ np.asarray(deviations)) / math.sqrt(seeds)


# Exact power laws ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-1.5, -0.5, 0.01, 0.3, 2.0])
def test_a_power_law_has_its_exponent(exponent):
    """A multiple n^p of the identity: to round-off, for every seed, on every segment."""

    def build(n: int) -> nn.Module:
        return nn.Sequential(linear(torch.eye(3, dtype=F64) * n**exponent), linear(torch.eye(3, dtype=F64)))

    found = width_sweep(build, (3, 10, 100, 1000), on_sphere(2, 3), seeds=3)
    assert list(found.slope) == ["input", "0", "1"]
    for element, expected in (("input", 0.0), ("0", exponent), ("1", exponent)):
        slopes = (found.slope[element], *(local[element] for local in found.local_slopes))
        assert all(abs(value - expected) < 1e-12 for slope in slopes for value in slope.values), element


def test_a_logarithmic_gain_has_its_coefficient():
    """Orthogonal weights of gain n^(1/L): the log gain is ln n, one nat for each factor of e."""

    def build(n: int) -> nn.Module:
        return nn.Sequential(*[orthogonal(6, n**0.25) for _ in range(4)])

    found = width_sweep(build, (2, 5, 50), on_sphere(2, 6), measure="log_gain", seeds=2)
    assert abs(found.slope - 1) < 1e-12
    assert found.slope.unit == "nats per e-fold"


def test_a_tower_grows_linearly_which_no_power_law_does():
    """Gain g per layer: y = L ln g, whose local slope ln g (L' - L)/ln(L'/L) doubles with each doubling."""
    gain = 1.2
    found = depth_sweep(lambda depth: repeated(lambda: orthogonal(5, gain), depth)(), DEPTHS, on_sphere(2, 5), seeds=2)
    expected = [math.log(gain) * (b - a) / math.log(b / a) for a, b in pairwise(DEPTHS)]
    assert [local.mean for local in found.local_slopes] == pytest.approx(expected, rel=1e-9)
    assert abs(found.slope - fitted(DEPTHS, [L * math.log(gain) for L in DEPTHS])) < 1e-9
    assert abs(found.last.slope - expected[-1]) < 1e-9
    assert "in proportion to depth: 0.182 nats per unit of depth" in found.reading


def test_the_largest_and_the_smallest_activation_are_followed_over_depth():
    """Names of steps change with depth: the largest RMS is g^L at the end, the smallest 1 at the beginning."""
    gain = 1.1

    def tower(depth: int) -> nn.Module:
        return repeated(lambda: orthogonal(5, gain), depth)()

    found = depth_sweep(tower, DEPTHS, on_sphere(2, 5), measure="activation_rms", seeds=2)
    assert list(found.slope) == ["max", "min"]
    assert abs(found.slope["max"] - fitted(DEPTHS, [L * math.log(gain) for L in DEPTHS])) < 1e-9
    assert abs(found.slope["min"]) < 1e-9
    mean = depth_sweep(tower, DEPTHS, on_sphere(2, 5), measure="activation_rms", seeds=2, summary="mean")
    # The geometric mean of g⁰ … g^L is g^(L/2).
    assert abs(mean.slope - fitted(DEPTHS, [L / 2 * math.log(gain) for L in DEPTHS])) < 1e-9


# Gaussian towers: rows 1 and 1b -------------------------------------------------------------------------------------


def log_growth(n: int, variance: float) -> float:
    """E ln‖Wx‖/‖x‖ of n × n Gaussian entries of this variance."""
    return 0.5 * (math.log(2 * variance) + float(digamma(n / 2)))


@pytest.mark.parametrize("scaled", [True, False], ids=["1/sqrt(fan_in)", "fixed std"])
def test_activations_of_a_gaussian_tower_over_width(scaled):
    """Layer l of weights of one std grows like width^(l/2); scaled by 1/sqrt(fan_in) it stays, but for E ln χ²_n/n ≈ -1/n."""
    layers, seeds = 3, 60

    def variance(n: int) -> float:
        return 1 / n if scaled else 0.01

    def build(n: int) -> nn.Module:
        return repeated(lambda: gaussian(n, n, variance=variance(n)), layers)()

    found = width_sweep(build, WIDTHS, inputs_of=lambda n: on_sphere(1, n), seeds=seeds)
    assert abs(found.slope["input"]) < 1e-12
    for layer in range(1, layers + 1):
        expected = fitted(WIDTHS, [layer * log_growth(n, variance(n)) for n in WIDTHS])
        assert abs(expected - (0 if scaled else layer / 2)) < 0.04 * layer  # what a reader expects
        deviations = [math.sqrt(layer * float(polygamma(1, n / 2)) / 4) for n in WIDTHS]
        error = tolerance(WIDTHS, deviations, seeds)
        assert error < 0.25  # half a layer's slope would be seen
        assert abs(found.slope[str(layer - 1)] - expected) < error, layer
    if scaled:
        found.check(within(0.25))
    else:
        with pytest.raises(TrainabilityFailure, match=r"activation_rms of 2 grows like width\^1\."):
            found.check(within(0.25))


def test_the_log_gain_of_a_gaussian_tower_over_depth():
    """L steps of ½[ln 2s² + ψ(N/2)] each, with variance ψ'(N/2)/4."""
    width, seeds, variance = 16, 60, 1.5 / 16
    found = depth_sweep(
        lambda depth: repeated(lambda: gaussian(width, width, variance=variance), depth)(),
        DEPTHS,
        normal(1, width),
        seeds=seeds,
    )
    expected = [depth * log_growth(width, variance) for depth in DEPTHS]
    deviations = [math.sqrt(depth * float(polygamma(1, width / 2)) / 4) for depth in DEPTHS]
    error = tolerance(DEPTHS, deviations, seeds)
    assert abs(found.slope - fitted(DEPTHS, expected)) < error < 0.5 * fitted(DEPTHS, expected)
    ends = DEPTHS[-2:]
    assert abs(found.last.slope - fitted(ends, expected[-2:])) < tolerance(ends, deviations[-2:], seeds)
    with pytest.raises(TrainabilityFailure, match="in proportion to depth"):
        found.check(within(0.5))


# Residual stacks: rows 6 and 8 --------------------------------------------------------------------------------------


def residual(width: int, depth: int, scale: float) -> nn.Module:
    """`x + scale · V relu(W x)` with σ_v² σ_w²/2 = 1."""

    def layer() -> nn.Module:
        inner = gaussian(width, width, variance=2 / width)
        return Residual(inner, nn.ReLU(), gaussian(width, width, variance=1 / width), scale=scale)

    return repeated(layer, depth)()


def test_a_scaled_residual_stack_stays_and_an_unscaled_one_grows():
    """E‖Ju‖² = (1 + c)^L with c = 1/L: from (5/4)⁴ to e; with c = 1/4 whatever the depth it is (5/4)^L."""
    width, seeds = 64, 12
    for scaled in (True, False):
        found = depth_sweep(
            lambda depth, scaled=scaled: residual(width, depth, math.sqrt(1 / depth if scaled else 1 / 4)),
            DEPTHS,
            on_sphere(1, width),
            seeds=seeds,
        )
        shares = [1 / depth if scaled else 1 / 4 for depth in DEPTHS]
        annealed = [depth * math.log1p(share) / 2 for depth, share in zip(DEPTHS, shares)]
        # Relative variance of a step's ‖Ju‖², from `ReLUBranch.mean_fourth` for M = N: (4c + 7c²)/(1 + c)²/N to first order. ln's
        # curvature lowers the mean of ½ ln by a quarter of it.
        spread = [L * (4 * c + 7 * c**2) / (1 + c) ** 2 / width for L, c in zip(DEPTHS, shares)]
        typical = [value - variance / 4 for value, variance in zip(annealed, spread)]
        error = tolerance(DEPTHS, [math.sqrt(variance) / 2 for variance in spread], seeds)
        assert abs(found.slope - fitted(DEPTHS, typical)) < error
        if scaled:
            assert abs(fitted(DEPTHS, annealed)) + error < 0.25
            found.check(within(0.25))
        else:
            with pytest.raises(TrainabilityFailure, match="in proportion to depth"):
                found.check(within(0.25))


def test_a_pre_norm_stack_grows_by_half_the_logarithm_of_its_depth():
    """½ ln(1 + cL/p₀), whose slope over ln L tends to one half: no O(1), and no exponential either."""
    width, seeds, share = 128, 24, 1.0

    def build(depth: int) -> nn.Module:
        def layer() -> nn.Module:
            inner = gaussian(width, width, variance=2 / width)
            norm = nn.LayerNorm(width, dtype=F64)
            return Residual(norm, inner, nn.ReLU(), gaussian(width, width, variance=share / width))

        return repeated(layer, depth)()

    found = depth_sweep(build, (2, 4, 8, 16), on_sphere(1, width), seeds=seeds)
    expected = [0.5 * math.log1p(share * depth) for depth in found.sizes]
    # As in test_normalisation: LN takes two of N directions, and spreads of stream and tangent bend the logarithm.
    ratios = [[share / (1 + share * step) for step in range(depth)] for depth in found.sizes]
    spread = [sum((4 * r + 7 * r**2) / (1 + r) ** 2 for r in steps) / width for steps in ratios]
    bias = [(sum(2 * r / (1 + r) for r in steps) / width + s) / 2 for steps, s in zip(ratios, spread)]
    # Both lower the gain, by no more than this, and most at the largest depth: the slope by what they tilt.
    error = 4 * standard_error(found.slope.values) + fitted(found.sizes, bias)
    assert error < 0.12
    assert abs(found.slope - fitted(found.sizes, expected)) < error
    assert found.slope < 0.5 + error
    assert "in proportion" not in found.reading


# Coordinate checks (Yang et al. 2022) -------------------------------------------------------------------------------


def test_one_step_of_gradient_descent_changes_the_output_in_proportion_to_the_width():
    """y = w x with n ones for x: Δw = -η x, so that Δy = -η n exactly."""
    found = width_sweep(
        lambda n: linear(torch.full((1, n), 1 / n)),
        (4, 16, 64),
        inputs_of=lambda n: torch.ones(2, n, dtype=F64),
        loss=Tensor.mean,
        measure="activation_change",
        after_steps=1,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.125),
        seeds=2,
    )
    assert abs(found.slope["output"] - 1) < 1e-12
    assert [value["output"].mean for value in found.values] == pytest.approx([0.5, 2.0, 8.0], rel=1e-12)


def test_activations_after_training_are_those_of_the_trained_model():
    """Two steps on the same y: y₂ = y₀ - 2 η n, which the RMS sees only where it outgrows y₀ = 1."""
    found = width_sweep(
        lambda n: nn.Sequential(linear(torch.full((1, n), 1 / n)), nn.Identity()),
        (4, 16, 64),
        inputs_of=lambda n: torch.ones(2, n, dtype=F64),
        loss=Tensor.mean,
        after_steps=2,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.125),
        seeds=1,
    )
    after = [abs(1 - 2 * 0.125 * n) for n in found.sizes]
    assert after[0] == 0  # at width 4 the output is exactly zero: no slope, and no bound holds
    assert [value["0"].mean for value in found.values] == pytest.approx(after, abs=1e-12)
    assert math.isnan(found.slope["0"].mean)
    with pytest.raises(TrainabilityFailure, match="is zero at width 4"):
        found.check(at_most(100))


def mlp(width: int, *, output_std: float) -> nn.Module:
    """Return an MLP with one hidden matrix of width × width; the sizes of its input and its output are fixed."""
    return nn.Sequential(
        gaussian(8, width, variance=1 / 8),
        nn.ReLU(),
        gaussian(width, width, variance=2 / width),
        nn.ReLU(),
        gaussian(width, 1, variance=output_std**2),
    )


def standard(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=2e-4)


def maximal_update(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam's rows of Table 3: learning rates of matrices whose fan-in grows with the width are divided by it."""
    groups = [{"params": [p], "lr": 2e-4 if p.shape[1] == 8 else 2e-4 * 32 / p.shape[1]} for p in parameters]
    return torch.optim.Adam(groups)


def regression(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


COORDINATES = {
    "loss": regression,
    "target": lambda generator: torch.randn(4, 1, generator=generator, dtype=F64),
    "after_steps": 3,
    "seeds": 4,
}
COORDINATE_WIDTHS = (64, 128, 256, 512)


def standard_mlp(width: int) -> nn.Module:
    return mlp(width, output_std=width**-0.5)


def maximal_update_mlp(width: int) -> nn.Module:
    return mlp(width, output_std=32**0.5 / width)


def coordinate_check(build: Callable[[int], nn.Module], optimizer: Callable[..., torch.optim.Optimizer]):
    return width_sweep(
        build, COORDINATE_WIDTHS, normal(4, 8), measure="activation_change", optimizer=optimizer, **COORDINATES
    )


# Exponents of the input's, the hidden and the output layer's change. Adam moves each weight by about η, and those of one unit in
# unison: a sum over a fan-in of n moves by η n. The output sums n terms of Δh, which align with its weights: n · n^-½ · n, or
# n · n^-1 · n where they are of order 1/n. Both of µP's rules are needed.
PARAMETRIZATIONS = [
    pytest.param(standard_mlp, standard, (0, 1, 1.5), id="standard"),
    pytest.param(maximal_update_mlp, standard, (0, 1, 1), id="learning rate not scaled"),
    pytest.param(standard_mlp, maximal_update, (0, 0, 0.5), id="output weights not scaled"),
    pytest.param(maximal_update_mlp, maximal_update, (0, 0, 0), id="maximal update"),
]


@pytest.mark.parametrize(("build", "optimizer", "exponents"), PARAMETRIZATIONS)
def test_a_coordinate_check_has_the_exponents_of_its_parametrization(build, optimizer, exponents):
    """Asymptotic ones: 0.2 covers corrections of order 1/√n at widths from 64 on, and the noise of four seeds (standard errors of
    0.03 to 0.06); exponents are half a unit apart."""
    found = coordinate_check(build, optimizer)
    for layer, expected in zip(("0", "2", "4"), exponents):
        assert abs(found.slope[layer] - expected) < 0.2, layer
    if not any(exponents):
        found.check(within(0.25))
        return
    with pytest.raises(TrainabilityFailure, match=r"activation_change of .* grows like width") as failure:
        found.check(within(0.25))
    assert "slope of activation_change" in str(failure.value)


def test_the_activations_themselves_hide_what_the_change_shows():
    """After three small steps the RMS is still that of the initialization: a check of it passes standard parametrization."""
    sizes = {"optimizer": standard, **COORDINATES}
    hidden = width_sweep(standard_mlp, COORDINATE_WIDTHS, normal(4, 8), **sizes).matching("0", "2")
    hidden.check(within(0.1))
    assert abs(coordinate_check(standard_mlp, standard).slope["2"]) > 0.8


def test_it_is_the_same_twice():
    first, second = (coordinate_check(standard_mlp, standard) for _ in range(2))
    assert [[e.values for e in value.values()] for value in first.values] == [
        [e.values for e in value.values()] for value in second.values
    ]
