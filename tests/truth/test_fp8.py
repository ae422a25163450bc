"""What FP8 flushes and clips: shares that real casts of known tensors have."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import measure

ROWS, WIDTH = 40, 8
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


class Identity(nn.Module):
    """A linear layer with the identity as its weight."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale * torch.eye(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Net(nn.Module):
    """Two identities with a factor between them."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.last, self.factor = Identity(), Identity(), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * self.factor)


def of_all_sizes(low: float, high: float) -> Tensor:
    """Return numbers with exponents between two ends, among them zeros and the edges of both formats."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, WIDTH, generator=generator) * torch.exp2(torch.linspace(low, high, ROWS))[:, None]
    x[::7, 0] = 0
    edges = torch.tensor([2.0**-10, 2.0**-9.99, 464.0, 464.001, 2.0**-17, 2.0**-16.99, 61440.0, 61439.0])
    return torch.cat([x, edges[None]]) if high > 10 else x


def clipped(x: Tensor, dtype: torch.dtype) -> float:
    """Return the share of entries that a cast makes infinite or NaN, or replaces by a number that is too small."""
    cast = x.to(dtype).float()
    limit = {E4M3: 464.0, E5M2: math.inf}[dtype]
    return float((~cast.isfinite() | (x.abs() > limit)).float().mean())


def flushed(x: Tensor, dtype: torch.dtype) -> float:
    """Return the share of the nonzero entries that a cast makes zero."""
    return float((x[x != 0].to(dtype).float() == 0).double().mean())


def best_scale(x: Tensor, dtype: torch.dtype) -> float:
    """Try powers of two from a large one on until nothing is clipped."""
    return next(2.0**exponent for exponent in range(60, -60, -1) if clipped(x * 2.0**exponent, dtype) == 0)


def measured(build, x: Tensor, **options):
    names = ["fp8_overflow_fraction", "fp8_underflow_fraction"]
    result = measure(build, x, seeds=1, measures=names, **options)
    return [{name: float(value) for name, value in getattr(result, n).items()} for n in names]


@pytest.mark.parametrize(("low", "high"), [(-20, 20), (-14, 3), (-3, 8), (-2, 2)])
@pytest.mark.parametrize("factor", [1.0, 64.0])
def test_results_of_the_forward_pass(low, high, factor):
    x = of_all_sizes(low, high)
    overflow, underflow = measured(lambda: Net(factor), x)
    results = {"first": x, "Net": factor * x, "last": factor * x}
    assert overflow == pytest.approx({f"E4M3 result of {name}": clipped(y, E4M3) for name, y in results.items()})
    expected = {f"E4M3 result of {name}": flushed(y, E4M3) for name, y in results.items()}
    expected |= {f"scaled E4M3 result of {name}": flushed(y * best_scale(y, E4M3), E4M3) for name, y in results.items()}
    assert underflow == pytest.approx(expected)


@pytest.mark.parametrize(("low", "high"), [(-30, 20), (-25, -5), (-1, 1)])
def test_gradients(low, high):
    """The gradient of a sum with weights has the weights as its gradient at the last state, and their products before."""
    weights, x = of_all_sizes(low, high), torch.ones(ROWS + (high > 10), WIDTH)
    overflow, underflow = measured(lambda: Net(4.0), x, loss=lambda y: (weights * y).sum())
    gradients = {"state after last": weights, "state after first": 4 * weights, "input": 4 * weights}
    # One row of the outer product x^T g is a sum over samples.
    gradients["last.weight"] = 4 * weights.sum(0).expand(WIDTH, WIDTH)
    for name, gradient in gradients.items():
        g = gradient.float()
        assert overflow[f"E5M2 gradient of {name}"] == pytest.approx(clipped(g, E5M2))
        assert underflow[f"E5M2 gradient of {name}"] == pytest.approx(flushed(g, E5M2))
        assert underflow[f"scaled E5M2 gradient of {name}"] == pytest.approx(flushed(g * best_scale(g, E5M2), E5M2))


def test_without_a_loss_only_results_are_judged():
    overflow, underflow = measured(lambda: Net(1.0), torch.ones(2, WIDTH))
    assert overflow.keys() == {f"E4M3 result of {name}" for name in ("first", "Net", "last")}
    assert not any("gradient" in name for name in underflow)


def test_several_results_of_a_module_are_counted_together():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x) * 1024) / 1024

    overflow, underflow = measured(Twice, torch.ones(2, WIDTH))
    # Results: 1, 1024 in the layer; 1024, 1 outside. A fourth of nothing is flushed.
    assert overflow == {"E4M3 result of layer": 0.5, "E4M3 result of Twice": 0.5}
    assert set(underflow.values()) == {0.0}


def test_nan_and_zeros():
    overflow, underflow = measured(lambda: nn.Sequential(Identity(math.nan), Identity()), torch.ones(2, WIDTH))
    assert all(math.isnan(value) for value in (*overflow.values(), *underflow.values()))
    overflow, underflow = measured(lambda: nn.Sequential(Identity(0.0), Identity()), torch.ones(2, WIDTH))
    assert set(overflow.values()) == {0.0}
    assert underflow == {}
