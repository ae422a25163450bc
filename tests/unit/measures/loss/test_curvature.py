"""The Hessian as a linear map, against the dense matrix."""

from __future__ import annotations

import math
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import InapplicableError, measure
from pytest_trainability.engine.runs.ensemble import ensemble
from pytest_trainability.engine.runs.objective import twice_differentiable
from pytest_trainability.engine.runs.run import Need, Run, Stage
from pytest_trainability.measures.loss.curvature import Hessian

F64 = torch.float64


def on_hessian(model: nn.Module, inputs: Tensor, compute: Any, loss: Any = torch.var) -> Any:
    """Return ``compute(hessian)`` of a run's Hessian."""

    def provide(run: Run) -> Any:
        with twice_differentiable():
            return compute(Hessian(run))

    need = Need("test", provide, Stage.RERUN)
    recipe = models.recipe(model, inputs, loss=loss)
    return ensemble(recipe, (0,), [need], lambda run: {"found": run[need]}).readings[0]["found"]


def tower(dtype: torch.dtype = F64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Tanh()).to(dtype)


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=F64)


def columns(hessian: Hessian) -> Tensor:
    """Return the matrix whose columns are the products with the unit vectors."""
    return torch.stack([hessian(unit) for unit in torch.eye(hessian.size, dtype=hessian.dtype)], dim=1)


def test_products_are_those_of_the_dense_hessian() -> None:
    model = tower()
    names, shapes = zip(*[(n, p.shape) for n, p in model.named_parameters()])
    sizes = [math.prod(shape) for shape in shapes]

    def loss(flat: Tensor) -> Tensor:
        parts = [part.reshape(shape) for part, shape in zip(flat.split(sizes), shapes)]
        return torch.func.functional_call(model, dict(zip(names, parts)), (X,)).var()

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    dense = torch.autograd.functional.hessian(loss, flat)
    found = on_hessian(model, X, columns)
    torch.testing.assert_close(found, dense, rtol=1e-10, atol=1e-12)


def test_the_starting_vector_is_a_random_direction_plus_that_of_the_gradient() -> None:
    model = tower()
    gradients = torch.autograd.grad(model(X).var(), list(model.parameters()))
    flat = torch.cat([g.flatten() for g in gradients])

    def vectors(hessian: Hessian) -> tuple[Tensor, Tensor]:
        return hessian.starting_vector(0), hessian.random_direction(0)

    start, drawn = on_hessian(model, X, vectors)
    torch.testing.assert_close(start, drawn / drawn.norm() + flat / flat.norm(), rtol=1e-12, atol=1e-14)
    start, drawn = on_hessian(model, X, vectors, loss=lambda output: 0 * output.var())
    torch.testing.assert_close(start, drawn / drawn.norm())


def test_frozen_parameters_have_no_rows() -> None:
    model = tower()
    model[0].requires_grad_(requires_grad=False)
    assert on_hessian(model, X, lambda hessian: hessian.size) == 10


def test_a_complex_parameter_counts_as_two_real_ones() -> None:
    """``|w|² x`` has the Hessian 2 x in the real and in the imaginary part."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[1.0 + 2.0j]], dtype=torch.complex128))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight.abs().square()

    found = on_hessian(nn.Sequential(Scale()), torch.tensor([[3.0]], dtype=F64), columns, loss=torch.sum)
    torch.testing.assert_close(found, 6 * torch.eye(2, dtype=F64))


def test_a_linear_loss_has_products_of_zero() -> None:
    found = on_hessian(nn.Sequential(nn.Linear(3, 2).double()), X, columns, loss=torch.sum)
    assert not found.any()


def test_the_random_direction_is_a_function_of_the_seed() -> None:
    first, again, other = on_hessian(tower(), X, lambda h: [h.random_direction(seed) for seed in (0, 0, 1)])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_products_match_the_change_of_the_gradient() -> None:
    assert on_hessian(tower(), X, lambda hessian: hessian.matches_gradient_change(hessian.random_direction(0)))


def test_products_through_a_hidden_backward_do_not_match() -> None:
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return cotangent * 2 * x.detach()

    def loss(output: Tensor) -> Tensor:
        return Hidden.apply(output).sum()

    assert not on_hessian(tower(), X, lambda h: h.matches_gradient_change(h.random_direction(0)), loss=loss)
    with pytest.raises(InapplicableError, match=r"is not symmetric|differs from the change of the gradient"):
        _ = measure(tower(), X, loss=loss).sharpness


def test_the_stable_learning_rate_is_two_over_the_sharpness() -> None:
    result = measure(tower(), X, loss=torch.var)
    assert result.stable_learning_rate.mean == pytest.approx(2 / result.sharpness.mean)
    linear = measure(nn.Sequential(nn.Linear(3, 2).double()), X, loss=torch.sum)
    assert linear.sharpness.mean == 0
    assert linear.stable_learning_rate.mean == math.inf


def test_a_complex_parameter_behind_an_odd_number_of_real_ones() -> None:
    """PyTorch views real numbers as complex only if they begin at an even place."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3, bias=False)
            self.layer.weight = nn.Parameter(torch.eye(3))
            self.shift = nn.Parameter(torch.zeros(()))
            self.factor = nn.Parameter(torch.ones((), dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return (self.layer(x).detach() + self.layer(x) * 0) * self.factor + self.shift * 0

    # The loss is |x|² |factor|² / 2, whose curvature is |x|² in the real and in the imaginary part of the factor.
    result = measure(Net(), torch.tensor([[1.0, 2.0, 2.0]]), loss=lambda y: y.abs().square().sum() / 2, steps="layers")
    assert result.sharpness == pytest.approx(9.0, rel=1e-3)


def test_products_and_directions_of_a_short_type_have_single_precision() -> None:
    def types(hessian: Hessian) -> list[torch.dtype]:
        direction = hessian.random_direction(0)
        return [direction.dtype, hessian(direction).dtype]

    assert on_hessian(tower(torch.bfloat16), X.bfloat16(), types) == [torch.float32, torch.float32]
    assert on_hessian(tower(), X, types) == [F64, F64]


def test_the_smallest_step_is_a_ten_thousandth_of_the_parameters_norm() -> None:
    """The curvature of cos(k w) seen over a step h is off by the factor sin(k h) / (k h).

    With w = 0.01 and k = 5e5, k h is 0.5 at the smallest step, and at least 5 at the larger ones.
    """

    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(1, 1, bias=False)).double()
        nn.init.constant_(model[0].weight, 0.01)
        return model

    def match(frequency: float) -> bool:
        return on_hessian(
            build(),
            torch.ones(1, 1, dtype=F64),
            lambda hessian: hessian.matches_gradient_change(hessian.random_direction(0)),
            loss=lambda y: (frequency * y).cos().sum(),
        )

    assert match(5e5)
    assert not match(5e6)
