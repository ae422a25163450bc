"""Signal and noise of per-sample gradients: linear regression, where every one of them is known.

The loss ``½ (w·x − y)²`` has the gradient ``(w·x − y) x`` on a sample. For x ~ N(0, I_d) and y ~ N(0, σ²), independent,
the mean gradient is G = w, and by Isserlis' theorem ``E (w·x)² x xᵀ = ‖w‖² I + 2 w wᵀ``, so that
``Σ = (‖w‖² + σ²) I + w wᵀ`` and ``tr Σ = ‖w‖² (d + 1) + σ² d``: the noise scale is ``d + 1 + d σ²/‖w‖²`` samples.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from towers import F64, linear

from pytest_trainability import UsageError, measure

NOISE = ["gradient_snr", "gradient_confusion", "gradient_noise_scale"]


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output[:, 0] - target).square().mean()


def regression(weights: Tensor, x: Tensor, y: Tensor, **options):
    """Measure one linear unit on samples."""
    return measure(linear(weights[None]), x, target=y, loss=half_square, measures=NOISE, **options)


def test_finite_batch_in_closed_form():
    """Seven samples in five dimensions: mean, covariance and cosines written out."""
    generator = torch.Generator().manual_seed(3)
    w, x, y = (torch.randn(*shape, generator=generator, dtype=F64) for shape in ((5,), (7, 5), (7,)))
    result = regression(w, x, y)
    g = (x @ w - y)[:, None] * x
    mean, variance = g.mean(dim=0), torch.trace(torch.cov(g.T))
    unit = g / g.norm(dim=1, keepdim=True)
    pairs = (g @ g.T)[~torch.eye(7, dtype=torch.bool)].mean()
    # float64: 35 entries and a handful of operations lose some 1e-15; the pairs cancel by a factor of ten at most.
    assert result.gradient_snr["weight"] == pytest.approx(float(mean.norm() / variance.sqrt()), rel=1e-12)
    assert result.gradient_confusion == pytest.approx(float((unit @ unit.T).min()), rel=1e-12)
    assert result.gradient_noise_scale == pytest.approx(float(variance / pairs), rel=1e-11)


def test_float32_agrees():
    generator = torch.Generator().manual_seed(3)
    w, x, y = (torch.randn(*shape, generator=generator, dtype=F64) for shape in ((5,), (7, 5), (7,)))
    fine, coarse = regression(w, x, y), regression(w, x, y, dtype="float32")
    for name in NOISE:
        left, right = getattr(fine, name), getattr(coarse, name)
        left, right = (left["weight"], right["weight"]) if name == "gradient_snr" else (left, right)
        # Rounding of inputs and weights, 6e-8 each, in sums of 35 terms that cancel by a factor of ten at most.
        assert float(right) == pytest.approx(float(left), rel=1e-5), name


@pytest.mark.parametrize("noise", [0.0, 1.0], ids=["noiseless", "noisy"])
def test_noise_scale_of_gaussian_regression(noise):
    """The estimate from 4096 samples agrees with that of the whole distribution."""
    d, batch, seeds = 8, 4096, 8
    w = torch.full((1, d), 1 / math.sqrt(d), dtype=F64)

    def draw(*shape: int):
        return lambda generator: torch.randn(*shape, generator=generator, dtype=F64)

    result = measure(
        lambda: linear(w),
        draw(batch, d),
        target=lambda generator: noise * draw(batch)(generator),
        loss=half_square,
        seeds=seeds,
        measures=["gradient_noise_scale", "gradient_snr"],
    )
    s = noise**2
    trace = d + 1 + d * s
    # Relative errors of one seed, ‖w‖ = 1. Of ‖G‖², a U-statistic: variance 4 Gᵀ Σ G / B + 2 tr Σ² / B².
    squares = (1 + s) ** 2 * (d - 1) + (2 + s) ** 2
    of_signal = math.sqrt(4 * (2 + s) / batch + 2 * squares / batch**2)
    # Of tr Σ: less than E ‖g‖⁴ / B with ‖g‖² = (u − ε)² r, u along w and r = u² + χ²_{d-1} the square of x:
    # E u⁴ r² + 6 s E u² r² + 3 s² E r².
    rest, rest_squared = d - 1, (d - 1) * (d + 1)
    fourth = 105 + 30 * rest + 3 * rest_squared + 6 * s * (15 + 6 * rest + rest_squared) + 3 * s**2 * d * (d + 2)
    of_trace = math.sqrt(fourth / batch) / trace
    tolerance = 4 * (of_signal + of_trace) / math.sqrt(seeds)
    assert tolerance < 0.2
    assert float(result.gradient_noise_scale) == pytest.approx(trace, rel=tolerance)
    # E ‖ḡ‖² = ‖G‖² + tr Σ / B.
    expected = math.sqrt(1 / trace + 1 / batch)
    assert float(result.gradient_snr["weight"]) == pytest.approx(expected, rel=tolerance)


def test_samples_that_agree_on_nothing_have_an_snr_of_one_over_root_batch():
    """Zero weights and independent targets: G = 0, and what is left is the mean of 16 random vectors."""
    d, batch, seeds = 64, 16, 20
    result = measure(
        lambda: linear(torch.zeros(1, d, dtype=F64)),
        lambda generator: torch.randn(batch, d, generator=generator, dtype=F64),
        target=lambda generator: torch.randn(batch, generator=generator, dtype=F64),
        loss=half_square,
        seeds=seeds,
        measures=["gradient_snr"],
    )
    # Given the targets, ‖ḡ‖² is χ²_d times a number: Var ln snr is ¼ · 2/d, beside that of tr Σ, which is
    # ¼ · Var ‖g‖² / (B E² ‖g‖²) = ¼ · (3 (d+2)/d − 1)/B. A mean of logarithms lies below the logarithm of the mean by about half
    # its variance.
    variance = 0.25 * (2 / d + (3 * (d + 2) / d - 1) / batch)
    error = abs(math.log(float(result.gradient_snr["weight"]) * math.sqrt(batch)))
    assert error < 4 * math.sqrt(variance / seeds) + variance


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_identical_samples_have_no_noise(dtype):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.linspace(-1, 1, 6).expand(5, 6)
    result = measure(model, x, target=torch.ones(5), loss=half_square, dtype=dtype, measures=NOISE)
    assert all(math.isinf(snr.mean) for snr in result.gradient_snr.values())
    assert result.gradient_confusion == pytest.approx(1, abs=1e-6)
    assert float(result.gradient_noise_scale) == 0


def test_two_opposed_samples():
    """The same input with opposite residuals: gradients cancel."""
    x = torch.ones(2, 3, dtype=F64)
    result = regression(torch.zeros(3, dtype=F64), x, torch.tensor([1.0, -1.0], dtype=F64))
    assert result.gradient_confusion == pytest.approx(-1, abs=1e-15)
    assert float(result.gradient_snr["weight"]) == 0
    assert math.isinf(float(result.gradient_noise_scale))


def test_orthogonal_samples():
    """No two samples share a direction: their mean is all noise, and the unbiased signal nothing."""
    x = torch.eye(4, dtype=F64)
    result = regression(torch.zeros(4, dtype=F64), x, torch.ones(4, dtype=F64))
    assert float(result.gradient_confusion) == 0
    # ‖ḡ‖² = 1/4 and tr Σ = (4 − 4/4)/3 = 1: the estimate of ‖G‖² is 1/4 − 1/4.
    assert float(result.gradient_snr["weight"]) == pytest.approx(1 / 2, rel=1e-14)
    assert float(result.gradient_noise_scale) > 1e14


def test_zero_gradients_are_no_numbers():
    """Every sample is fitted already."""
    x = torch.ones(3, 2, dtype=F64)
    result = regression(torch.zeros(2, dtype=F64), x, torch.zeros(3, dtype=F64))
    assert math.isnan(float(result.gradient_snr["weight"]))
    assert math.isnan(float(result.gradient_confusion))
    assert math.isnan(float(result.gradient_noise_scale))


def test_a_sample_without_a_gradient_is_in_no_pair():
    x = torch.eye(3, dtype=F64)
    y = torch.tensor([1.0, 0.0, 1.0], dtype=F64)
    result = regression(torch.zeros(3, dtype=F64), x, y)
    assert float(result.gradient_confusion) == 0


def test_units_of_loss_and_input_do_not_matter():
    """A loss times 1e-12 has gradients whose squares vanish in float32."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 4, generator=generator), torch.randn(6, generator=generator)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    plain = measure(model, x, target=y, loss=half_square, measures=NOISE)
    tiny = measure(model, x, target=y, loss=lambda o, t: 1e-24 * half_square(o, t), measures=NOISE)
    # float32 gradients of 1e-24 have the same relative precision.
    assert float(tiny.gradient_confusion) == pytest.approx(float(plain.gradient_confusion), rel=1e-5)
    assert float(tiny.gradient_noise_scale) == pytest.approx(float(plain.gradient_noise_scale), rel=1e-4)
    for name, snr in plain.gradient_snr.items():
        assert float(tiny.gradient_snr[name]) == pytest.approx(float(snr), rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("copies", [1, 6], ids=["samples differ", "samples are equal"])
def test_what_is_not_finite_has_no_numbers(value, copies):
    """One weight that is none: a numerical outcome, as of every measure, and no error."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    nn.init.constant_(model[2].weight[0, :1], value)
    x = torch.randn(6 // copies, 4, generator=torch.Generator().manual_seed(0)).repeat(copies, 1)
    result = measure(model, x, target=torch.ones(6), loss=half_square, measures=NOISE)
    assert len(result.gradient_snr) == 4
    assert all(math.isnan(snr.mean) for snr in result.gradient_snr.values())
    assert math.isnan(float(result.gradient_confusion))
    assert math.isnan(float(result.gradient_noise_scale))


def test_a_sample_that_is_not_finite_hides_no_interaction():
    """One sample's outputs overflow; the others are still seen to depend on each other."""

    class Centered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.inner(x)
            return h - torch.tanh(h).mean(dim=0)

    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    x[0, 0] = math.inf
    with pytest.raises(UsageError, match="samples that do not interact"):
        measure(Centered, x, target=torch.ones(6), loss=half_square, measures=NOISE)
