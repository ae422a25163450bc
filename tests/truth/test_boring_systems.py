"""Systems with nothing in them, or one thing: where estimators that are right on random matrices go wrong.

A vanished direction is `-inf`, never the logarithm of round-off; a neutral one is 0; one of anything is enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from towers import F64, Block, Elementwise, Residual, gaussian, linear, normal, orthogonal, repeated

from pytest_trainability import measure
from pytest_trainability.errors import UsageError
from pytest_trainability.records.estimates import Estimate, Spectrum

BATCHES = pytest.mark.parametrize("batch", [1, 3], ids=["joint", "per sample"])

EPS = 1e-14
"""A few tens of float64's 2e-16, for maps whose QR has nothing to round but a handful of products."""


def means(estimates: Sequence[Estimate] | Spectrum) -> list[float]:
    return [estimate.mean for estimate in estimates]


def spectrum_of(model, inputs, exponents: int, **settings) -> list[float]:
    found = measure(model, inputs, exponents=exponents, measures=["lyapunov_spectrum"], **settings)
    assert len(found.lyapunov_spectrum) == exponents
    return means(found.lyapunov_spectrum)


# Neutral -----------------------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """`x → a x` with one number for a parameter."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Permutation(nn.Module):
    """A map without parameters that moves every entry and changes none."""

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(2, dims=-1)


NEUTRAL = [
    pytest.param(lambda: linear(torch.eye(5)), id="identity matrix"),
    pytest.param(lambda: linear(-torch.eye(5)), id="minus the identity"),
    pytest.param(Permutation, id="permutation"),
    pytest.param(partial(Scale, 1.0), id="times one"),
    pytest.param(partial(Elementwise, torch.clone), id="copy"),
    pytest.param(lambda: Residual(linear(torch.zeros(5, 5))), id="empty branch"),
]


@BATCHES
@pytest.mark.parametrize("layer", NEUTRAL)
def test_neutral_maps_have_exponents_of_zero(layer, batch):
    model = repeated(layer, 6)
    wanted = ["lyapunov_spectrum", "forward_log_gain", "activation_rms"]
    result = measure(model, normal(batch, 5), seeds=2, steps=type(layer()), exponents=5, measures=wanted)
    assert len(result.steps) == 6
    assert max(map(abs, means(result.lyapunov_spectrum))) < EPS
    assert max(map(abs, means(result.growth_rate.values()))) < EPS
    assert abs(result.lyapunov_max) < EPS
    assert abs(result.log_gain) < 6 * EPS
    assert abs(result.forward_log_gain) < EPS
    assert len({round(rms.mean, 12) for rms in result.activation_rms.values()}) == 1


# Vanishing ---------------------------------------------------------------------------------------------------------

DEAD = [
    pytest.param(lambda: linear(torch.zeros(5, 5)), id="zero matrix"),
    pytest.param(partial(Scale, 0.0), id="times zero"),
    pytest.param(lambda: Block(orthogonal(5, 1.0), Elementwise(lambda x: (x - 1e6).relu())), id="dead units"),
    pytest.param(
        lambda: Block(orthogonal(5, 1.0), Elementwise(lambda x: (9 + x.tanh()).clamp(max=7))), id="saturated units"
    ),
    pytest.param(lambda: Block(orthogonal(5, 1.0), Elementwise(torch.sign)), id="constant pieces"),
]


@BATCHES
@pytest.mark.parametrize("layer", DEAD)
@pytest.mark.parametrize("exponents", [1, 5])
def test_zero_maps_have_exponents_of_minus_infinity(layer, batch, exponents):
    """The last step lets nothing through; to the steps before it nothing arrives: no number, rather than a wrong one."""
    wanted = ["lyapunov_spectrum"]
    result = measure(
        repeated(layer, 3), normal(batch, 5), seeds=2, steps=type(layer()), exponents=exponents, measures=wanted
    )
    assert means(result.lyapunov_spectrum) == [-math.inf] * exponents
    assert result.lyapunov_max == -math.inf
    assert result.log_gain == -math.inf
    assert result.log_gain.values == (-math.inf, -math.inf)
    first, second, last = means(result.growth_rate.values())
    assert last == -math.inf
    assert math.isnan(first) and math.isnan(second)


def test_one_dead_step_is_named():
    """Upstream of the step that is dead, no growth is known; downstream of it, growth is what it is."""
    layers = [orthogonal(4, 2.0), orthogonal(4, 3.0), linear(torch.zeros(4, 4)), orthogonal(4, 5.0)]
    rates = means(measure(nn.Sequential(*layers), torch.ones(1, 4, dtype=F64)).growth_rate.values())
    assert math.isnan(rates[0]) and math.isnan(rates[1])
    assert rates[2] == -math.inf
    assert abs(rates[3] - math.log(5)) < EPS


def test_zero_activations_have_a_forward_gain_of_minus_infinity():
    result = measure(linear(torch.zeros(5, 5)), normal(2, 5), measures=["forward_log_gain", "activation_rms"])
    assert result.forward_log_gain == -math.inf
    assert means(result.activation_rms.values())[-1] == 0


class Constant(nn.Module):
    """Forget the input by value, in a way that leaves a path for autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(3, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x + self.value


@BATCHES
def test_constant_output(batch):
    """Activations that look healthy, and a gradient that is exactly zero."""
    model = repeated(lambda: Block(orthogonal(3, 1.0), Constant()), 3)
    result = measure(model, normal(batch, 3), seeds=2, measures=["log_gain", "activation_rms"])
    assert result.log_gain == -math.inf
    assert means(result.activation_rms.values())[1:] == pytest.approx([1, 1, 1], abs=EPS)


# Rank --------------------------------------------------------------------------------------------------------------


@BATCHES
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_rank_deficient_maps(rank, batch):
    """A projection P of rank r: exponents past r are -inf; the others go to 0 as 1/L, as P² = P."""
    torch.manual_seed(rank)
    basis = orthogonal(6, 1.0).weight.detach()[:, :rank]
    once, many = (
        spectrum_of(nn.Sequential(*[linear(basis @ basis.T) for _ in range(depth)]), normal(batch, 6), 6)
        for depth in (1, 8)
    )
    for exponents in (once, many):
        assert all(math.isfinite(exponent) for exponent in exponents[:rank])
        assert exponents[rank:] == [-math.inf] * (6 - rank)
    # Only the first application changes a vector.
    assert all(abs(8 * long - short) < 8 * EPS for long, short in zip(many[:rank], once))


def test_different_rank_deficient_maps():
    """The product of Gaussian matrices of ranks 5, 3 and 4 has rank 3."""
    torch.manual_seed(0)
    ranks = (5, 3, 4)
    layers = [linear(torch.randn(6, r, dtype=F64) @ torch.randn(r, 6, dtype=F64)) for r in ranks]
    found = spectrum_of(nn.Sequential(*layers), normal(2, 6), 6)
    assert [math.isfinite(exponent) for exponent in found] == [True] * 3 + [False] * 3


def test_bottleneck_limits_the_rank():
    """6 → 2 → 6: states of different size, and two exponents."""
    model = repeated(lambda: Block(gaussian(6, 2, variance=1.0), gaussian(2, 6, variance=1.0)), 3)
    found = spectrum_of(model, normal(1, 6), 6, seeds=2)
    assert [math.isfinite(exponent) for exponent in found] == [True] * 2 + [False] * 4
    # The states inside the blocks do not count, those between layers do: only so many exponents are there to ask for.
    layers = nn.Sequential(gaussian(6, 2, variance=1.0), gaussian(2, 6, variance=1.0), gaussian(6, 2, variance=1.0))
    assert len(spectrum_of(layers, normal(1, 6), 2)) == 2
    with pytest.raises(UsageError, match="at most"):
        spectrum_of(layers, normal(1, 6), 3)


@pytest.mark.parametrize("depth", [1, 2, 4, 5, 6])
def test_shift_loses_one_dimension_a_step(depth):
    """A nilpotent matrix has no exponent but -inf; at a finite depth L its power still has rank N - L."""
    shift = torch.diag(torch.ones(4, dtype=F64), 1)
    found = spectrum_of(nn.Sequential(*[linear(shift) for _ in range(depth)]), normal(1, 5), 5)
    left = max(5 - depth, 0)
    assert [math.isfinite(exponent) for exponent in found] == [True] * left + [False] * (5 - left)


@pytest.mark.parametrize("exponents", [1, 3, 6])
def test_nilpotent_map_in_a_general_basis(exponents):
    """A² = 0, but not in floating point: what two steps leave over is round-off, which must not pass for an exponent."""
    torch.manual_seed(0)
    basis = torch.randn(6, 6, dtype=F64)
    square_zero = torch.zeros(6, 6, dtype=F64)
    square_zero[0, 1] = square_zero[2, 3] = square_zero[4, 5] = 1
    matrix = basis @ square_zero @ torch.linalg.inv(basis)
    assert float((matrix @ matrix).abs().max()) < 1e-12 * float(matrix.abs().max())
    found = spectrum_of(nn.Sequential(*[linear(matrix) for _ in range(4)]), torch.ones(1, 6, dtype=F64), exponents)
    assert found == [-math.inf] * exponents


class NormInFloat32(nn.Module):
    """An orthogonal map and a norm that computes in float32, as those of transformers do: one direction, the length, is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = orthogonal(6, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.turn(x).to(torch.float32)
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True))).to(F64)


def test_round_off_is_that_of_the_coarsest_type_on_the_way():
    """States in float64 say nothing of what a step computes in: what float32 leaves of a lost direction is no exponent."""
    found = spectrum_of(repeated(NormInFloat32, 6), normal(2, 6), 6, seeds=2)
    assert found[-1] == -math.inf
    assert all(abs(exponent) < 1 for exponent in found[:-1])


def test_tiny_but_regular_maps_keep_their_rank():
    """Rank is relative: a map of 1e-12 times an orthogonal matrix loses no exponent."""
    found = spectrum_of(repeated(partial(orthogonal, 5, 1e-12), 4), normal(2, 5), 5, seeds=2)
    assert all(abs(exponent - math.log(1e-12)) < 1e-12 for exponent in found)


# One of everything -------------------------------------------------------------------------------------------------


def test_depth_one():
    """Sum, mean and profile of one step are one number."""
    result = measure(partial(gaussian, 6, 6, variance=1.0), normal(2, 6), seeds=3)
    (only,) = result.growth_rate.values()
    assert len(result.steps) == 1
    assert result.log_gain.values == result.lyapunov_max.values == only.values
    assert any("one step" in note for note in result.notes)


@BATCHES
def test_width_one(batch):
    """Products of numbers: λ = (1/L) Σ ln|w|, whatever the signs."""
    factors = [-0.5, 3.0, -7.0, 0.01]
    model = nn.Sequential(*[linear(torch.tensor([[factor]], dtype=F64)) for factor in factors])
    result = measure(model, normal(batch, 1), measures=["lyapunov_spectrum", "forward_log_gain"])
    logs = [math.log(abs(factor)) for factor in factors]
    assert means(result.growth_rate.values()) == pytest.approx(logs, abs=EPS)
    assert means(result.lyapunov_spectrum) == pytest.approx([sum(logs) / 4], abs=EPS)
    assert float(result.forward_log_gain) == pytest.approx(sum(logs), abs=EPS)
    with pytest.raises(UsageError, match="at most"):
        measure(model, normal(batch, 1), exponents=2)


@pytest.mark.parametrize("factor", [0.3, -2.0])
def test_a_single_parameter(factor):
    """One number shared by six calls: every direction grows alike."""
    scale = Scale(factor)
    model = nn.Sequential(*[scale] * 6)
    result = measure(model, normal(2, 4), steps="time", exponents=4, measures=["lyapunov_spectrum"])
    assert list(result.growth_rate) == [f"0[{call}]" for call in range(6)]
    expected = math.log(abs(factor))
    assert all(abs(exponent - expected) < EPS for exponent in result.lyapunov_spectrum)
    assert abs(result.log_gain - 6 * expected) < 6 * EPS


def test_a_batch_of_one_is_one_of_a_batch():
    """The sum of all exponents does not depend on the frame drawn: alone or beside others, a sample has the same."""
    torch.manual_seed(0)
    model = nn.Sequential(*[Block(nn.Linear(5, 5, dtype=F64), nn.Tanh()) for _ in range(4)])
    x = torch.randn(3, 5, dtype=F64)
    together = measure(model, x, exponents=5, measures=["lyapunov_spectrum"])
    alone = [measure(model, x[i : i + 1], exponents=5, measures=["lyapunov_spectrum"]) for i in range(3)]
    assert (together.frame, alone[0].frame) == ("per sample", "joint")
    sums = [math.fsum(means(result.lyapunov_spectrum)) for result in alone]
    # QR is right to eps·κ, κ ~ 1e3.
    assert math.fsum(means(together.lyapunov_spectrum)) == pytest.approx(sum(sums) / 3, abs=1e-11)
    assert max(sums) - min(sums) > 1e-3


def test_diagonal_maps_have_the_logarithms_of_their_entries():
    """A frame turns into the axes, the largest first, whichever order the axes have."""
    entries = torch.tensor([0.125, 2.0, 0.5, 8.0], dtype=F64)
    depth = 200
    found = spectrum_of(nn.Sequential(*[linear(entries.diag()) for _ in range(depth)]), normal(1, 4), 4)
    expected = sorted((math.log(float(entry)) for entry in entries), reverse=True)
    # What remains of the random start is the angle to the axes, the same few nats over any depth: a frame of N = 4
    # normal vectors has an R[i,i] below e^-5 less than once in a hundred.
    assert found == pytest.approx(expected, abs=5 / depth)
    assert math.fsum(found) == pytest.approx(math.fsum(expected), abs=1e-12)
