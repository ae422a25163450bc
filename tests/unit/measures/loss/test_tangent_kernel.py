"""The rows of the tangent kernel, its condition number, and refusals."""

from __future__ import annotations

import math
from typing import Any

import models
import pytest
import torch
from models import BATCH, WIDTH, Lightning, mean_square
from torch import Tensor, nn

from pytest_trainability import InapplicableError, UsageError, measure
from pytest_trainability.measures.loss.tangent_kernel import (
    ROWS,
    TangentKernel,
    _functionals,
    main_output,
)

F64 = torch.float64


@pytest.mark.parametrize(
    ("values", "eps", "expected"),
    [
        ([4.0, 2.0], 1e-16, 2.0),
        ([1.0, 1e-6], 1e-3, math.inf),
        ([1.0, 1e-6], 1e-5, 1e6),
        ([1.0, 0.0], 1e-16, math.inf),
        ([0.0, 0.0], 1e-16, math.nan),
        ([1.0, math.nan], 1e-16, math.nan),
        ([1.0, math.inf], 1e-16, math.nan),
    ],
)
def test_the_condition_number_knows_round_off(values: list[float], eps: float, expected: float) -> None:
    """The smallest eigenvalue is round-off below ``(8 eps)²`` of the largest."""
    found = TangentKernel(torch.diag(torch.tensor(values, dtype=F64)), eps).condition_number()
    assert found == pytest.approx(expected, nan_ok=True)


def test_few_outputs_are_functionals_themselves() -> None:
    outputs = torch.zeros(3, 2, dtype=F64)
    functionals = _functionals(outputs, batch=3, size=10, seed=0)
    assert len(functionals) == 6
    assert torch.equal(functionals.cotangents(0, 6).reshape(6, 6), torch.eye(6, dtype=F64))
    assert torch.equal(functionals.cotangents(2, 4).reshape(2, 6), torch.eye(6, dtype=F64)[2:4])


@pytest.mark.parametrize("axis", [0, 1])
def test_many_outputs_have_one_random_functional_for_each_sample(axis: int) -> None:
    shape = (2, ROWS) if axis == 0 else (3, 2, ROWS)
    functionals = _functionals(torch.zeros(shape, dtype=F64), batch=2, size=10, seed=0)
    assert len(functionals) == 2
    first, second = functionals.cotangents(0, 2)
    assert float(first.norm()) == pytest.approx(1)
    assert torch.equal(first.select(axis, 0), second.select(axis, 1))
    assert not first.select(axis, 1).any()
    assert not second.select(axis, 0).any()


def test_weights_of_functionals_have_the_type_of_the_outputs() -> None:
    for dtype in (torch.float32, F64):
        functionals = _functionals(torch.zeros(2, ROWS, dtype=dtype), batch=2, size=10, seed=0)
        assert functionals.weights is not None and functionals.weights.dtype == dtype


def test_too_many_outputs_of_one_sample_are_refused() -> None:
    with pytest.raises(InapplicableError, match=r"at most 512 outputs.*shape \(1, 513\) for a batch of 1"):
        _functionals(torch.zeros(1, 513), batch=1, size=10, seed=0)


def test_logits_are_the_main_output() -> None:
    hidden, logits = (torch.ones(2, 3, requires_grad=True) * k for k in (1, 2))
    loss = logits.sum()
    assert main_output({"hidden": hidden, "logits": logits, "loss": loss}, loss) is logits
    assert main_output((loss, hidden), loss) is hidden
    assert main_output(torch.ones(2, 3), None) is None


def test_a_vector_is_a_main_output_and_the_loss_in_another_shape_is_not() -> None:
    scores = torch.ones(3, requires_grad=True) * 2
    loss, part = scores.sum(), scores.sum().reshape(1) * 1
    assert main_output(scores, loss) is scores
    assert main_output(loss.reshape(1), loss) is None
    assert main_output(part, loss) is part
    assert main_output((loss.reshape(1), part), loss) is part


@pytest.mark.parametrize("shape", [(1, 2), (2, 1)])
def test_two_outputs_are_few(shape: tuple[int, int]) -> None:
    assert len(_functionals(torch.zeros(shape), batch=shape[0], size=10, seed=0)) == 2


class Once(torch.autograd.Function):
    """An identity without a batching rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        # A branch on a value cannot be batched.
        return cotangent if bool(cotangent.sum() < 1e9) else cotangent * 0


class Unbatched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x)


def test_operators_without_a_batching_rule_are_differentiated_one_by_one() -> None:
    torch.manual_seed(0)
    plain = models.mlp()
    x = models.vectors()(torch.Generator().manual_seed(0))
    expected = measure(plain, x, dtype=F64).ntk_condition_number.mean
    assert (
        measure(nn.Sequential(plain, Unbatched()), x, dtype=F64, steps="layers").ntk_condition_number.mean == expected
    )


def refused(model, inputs, **options) -> str:
    with pytest.raises(UsageError) as caught:
        measure(model, inputs, seeds=1, measures=["ntk_condition_number"], **options)
    return str(caught.value)


def test_inapplicable_models_are_refused():
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(BATCH, WIDTH, generator=generator), torch.randn(BATCH, generator=generator)
    assert "returns only its loss" in refused(Lightning, batch)
    frozen = models.mlp().requires_grad_(requires_grad=False)
    assert "has no trainable parameters" in refused(frozen, torch.ones(2, WIDTH), loss=mean_square)
    one = refused(lambda: nn.Linear(WIDTH, 600), torch.ones(1, WIDTH))
    assert "for a batch of 1" in one
