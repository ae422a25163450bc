"""Weights whose per-sample gradients are outer products, and that the moments of these are those of dense gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.engine.linalg.outer_products import OuterProducts, dense, first_samples
from pytest_trainability.measures.gradients.statistics import _MomentSums, _OuterMomentSums
from pytest_trainability.measures.gradients.vector_products import ShiftedProducts, VectorProducts

F64 = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def products(samples: int = 6, seed: int = 0) -> OuterProducts:
    return OuterProducts(normal(samples, 3, seed=seed), normal(samples, 5, seed=seed + 1))


class Uses(nn.Module):
    """One weight of every kind of use."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("once", "by_name", "twice", "transposed", "of_many", "elsewhere"):
            setattr(self, name, nn.Parameter(normal(4, 4)))
        self.bias = nn.Parameter(normal(4))

    def forward(self, x: Tensor) -> Tensor:
        assert self.once.shape == (4, 4)  # no use
        x = F.linear(weight=self.by_name, input=F.linear(x, self.once, self.bias))
        x = F.linear(F.linear(x, self.twice), self.twice)
        x = x @ self.transposed.T + F.linear(x.expand(3, 4), self.of_many).sum(dim=0)
        return F.linear(x, self.elsewhere).sum() + self.elsewhere.square().sum()


def test_weights_that_multiply_one_vector_once() -> None:
    model = Uses()
    with VectorProducts(dict(model.named_parameters())) as watched:
        model(normal(1, 4))
    assert watched.found == {"once": (1, 4), "by_name": (1, 4)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])
def test_half_precision_and_complex_numbers_are_left_dense(dtype: torch.dtype) -> None:
    weight = nn.Parameter(normal(4, 4).to(dtype))
    with VectorProducts({"weight": weight}) as watched:
        F.linear(normal(1, 4).to(dtype), weight)
    assert watched.found == {}


def test_the_gradient_with_respect_to_the_shift_is_the_cotangent() -> None:
    weight, x, shift = (
        normal(3, 5).requires_grad_(),
        normal(1, 5, seed=1),
        torch.zeros(1, 3, dtype=F64).requires_grad_(),
    )
    with ShiftedProducts({"weight": weight}, {"weight": shift}) as watched:
        loss = F.linear(x, weight).tanh().sum()
        F.linear(x, weight.detach())
    of_weight, of_shift = torch.autograd.grad(loss, [weight, shift])
    assert watched.vectors.keys() == {"weight"}
    assert torch.allclose(of_weight, dense(OuterProducts(of_shift, watched.vectors["weight"]))[0], rtol=1e-14)


def moments(sums: _MomentSums, *parts: Tensor | OuterProducts) -> tuple[float, float]:
    for part in parts:
        sums.add(part)
    found = sums.moments()
    return found.mean_square, found.variance


def test_moments_are_those_of_dense_gradients() -> None:
    """Of two chunks. float64 to 1e-15, times the number of terms."""
    parts = products(), products(4, seed=2)
    factored = _OuterMomentSums(first_samples(parts[0], 1))
    plain = _MomentSums(dense(parts[0])[:1])
    assert moments(factored, *parts) == pytest.approx(moments(plain, *map(dense, parts)), rel=1e-13)
    pairs = zip(factored.means(), plain.means())
    assert all(torch.allclose(left, right, rtol=1e-13) for left, right in pairs)


@pytest.mark.parametrize("factor", [1.0, 2.0, 3.0])
def test_equal_gradients_of_unequal_factors_have_no_variance(factor: float) -> None:
    """The terms of the difference cancel: it is computed entry by entry."""
    one = products(1)
    other = OuterProducts(one.left / factor, one.right * factor)
    sums = _OuterMomentSums(one)
    _ = moments(sums, one, other)
    assert sums.moments().are_equal


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_factors_that_are_not_finite_have_no_moments(value: float) -> None:
    found = products()
    found.right[1, 0] = value
    assert math.isnan(moments(_OuterMomentSums(first_samples(found, 1)), found)[1])


class Tied(nn.Module):
    """A weight that is also read by a custom autograd function, which no mode sees."""

    class Scale(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor, weight: Tensor) -> Tensor:
            return x * weight.sum()

        @staticmethod
        def setup_context(ctx, inputs, output) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
            x, weight = ctx.saved_tensors
            return gradient * weight.sum(), (gradient * x).sum() * torch.ones_like(weight)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.Scale.apply(self.first(x), self.last.weight)))


@pytest.mark.parametrize("model", [Tied, lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))])
def test_the_measure_is_that_of_dense_gradients(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a use of a weight is not seen: the first sample's gradient shows it."""
    names = ["gradient_snr", "gradient_noise_scale", "gradient_confusion"]

    def found() -> list[float]:
        result = measure(
            model, normal(5, 4), loss=lambda y: y.square().mean(), dtype=F64, seeds=2, measures=names, steps="layers"
        )
        snr = [value for estimate in result.gradient_snr.values() for value in estimate.values]
        return [*snr, *result.gradient_noise_scale.values, *result.gradient_confusion.values]

    factored = found()
    monkeypatch.setattr(VectorProducts, "found", {})
    assert factored == pytest.approx(found(), rel=1e-11)
