"""Jacobian-vector products, against the transposed products and against forward-mode differentiation."""

from __future__ import annotations

import models
import pytest
import torch
from custom_functions import Blocked, Detached, Doubled
from models import ARCHITECTURES, BATCH, WIDTH, Architecture
from products import some_cotangents
from torch import Tensor, nn

from pytest_trainability.engine.jacobian.jvp import Backward, push_forward
from pytest_trainability.engine.jacobian.trajectories import Division, Trajectories
from pytest_trainability.engine.jacobian.vjp import pull_back
from pytest_trainability.errors import CutError

F64 = torch.float64
BY_ID = {case.id: case for case in ARCHITECTURES}
BACKWARD_ONLY = {"custom-function", "scaled-gradient", "scaled-skips"}
"""Architectures whose backward passes leave autograd, or are changed by hooks."""


@pytest.mark.parametrize("case", ARCHITECTURES, ids=lambda case: case.id)
def test_push_forward_is_the_transpose_of_pull_back(case: Architecture) -> None:
    """⟨u, J v⟩ = ⟨Jᵀ u, v⟩ for every segment, with skips, several tensors and complex tensors."""
    if case.id in BACKWARD_ONLY:
        pytest.skip("its backward pass is not differentiable, or passes hooks")
    chain = models.cut_case(case, dtype=F64).chain
    joint = Trajectories(chain, Division(1))
    generator = torch.Generator().manual_seed(3)
    for index in range(1, len(chain) + 1):
        v, u = (torch.randn(1, 2, joint.dimensions(i), generator=generator, dtype=F64) for i in (index - 1, index))
        pushed = push_forward(chain, index, joint.as_columns(index - 1, v))
        pulled = pull_back(chain, index, joint.as_columns(index, u))
        forward = u[0] @ joint.as_rows(index, pushed)[0].T
        backward = joint.as_rows(index - 1, pulled)[0] @ v[0].T
        assert torch.allclose(forward, backward, rtol=0, atol=1e-12 * float(forward.abs().max()))


def test_product_of_segments_is_the_forward_derivative() -> None:
    """``J v`` of the whole model, by forward-mode differentiation; in float64 to round-off of four layers."""
    torch.manual_seed(0)
    model, x, v = models.mlp().double(), torch.randn(BATCH, WIDTH, dtype=F64), torch.randn(BATCH, WIDTH, dtype=F64)
    chain = models.cut(model, x).chain
    columns: list[Tensor | None] = [v[None]]
    for index in range(1, len(chain) + 1):
        columns = push_forward(chain, index, columns)
    # The last state is the output of the last linear layer.
    _, expected = torch.func.jvp(model[:-1], (x,), (v,))
    assert columns[0] is not None
    torch.testing.assert_close(columns[0][0], expected, rtol=1e-13, atol=1e-14)


def test_zero_tangents_stay_zero() -> None:
    chain = models.cut_case(BY_ID["unet"]).chain
    for index in range(1, len(chain) + 1):
        assert push_forward(chain, index, [None] * len(chain.cut.states[index - 1])) == [None] * len(
            chain.cut.states[index]
        )


@pytest.mark.parametrize("name", ["unet", "add-outside", "encoder-decoder"])
def test_a_missing_tangent_is_zero(name: str) -> None:
    """With a tangent of only one tensor of a state, the others may as well be zeros."""
    chain = models.cut_case(BY_ID[name], dtype=F64).chain
    joint = Trajectories(chain, Division(1))
    for index in range(1, len(chain) + 1):
        shapes = [shape for shape, _ in chain.shapes(index - 1)]
        for present in range(len(shapes)):
            sparse = [torch.ones(2, *s, dtype=F64) if i == present else None for i, s in enumerate(shapes)]
            full = [torch.zeros(2, *s, dtype=F64) if c is None else c for c, s in zip(sparse, shapes)]
            found, expected = (joint.as_rows(index, push_forward(chain, index, c), count=2) for c in (sparse, full))
            assert torch.allclose(found, expected, rtol=0, atol=1e-14)


def test_a_backward_pass_that_leaves_autograd_has_no_derivative() -> None:
    """The singular values compare this product with the transposed one, and raise."""
    chain = models.cut(nn.Sequential(nn.Linear(3, 3), Applied(Detached)), torch.randn(2, 3), "*").chain
    assert push_forward(chain, len(chain), [torch.randn(1, 2, 3)]) == [None]


def test_a_step_without_a_gradient_has_a_jacobian_of_zero() -> None:
    chain = models.cut(nn.Sequential(nn.Linear(3, 3), Applied(Blocked)), torch.randn(2, 3), "*").chain
    assert push_forward(chain, len(chain), [torch.randn(1, 2, 3)]) == [None]


class Unbatched(Doubled):
    """Doubles; its backward pass needs every number, which is impossible under vmap."""

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return Reading.apply(grad)


class Reading(Doubled):
    """Doubles, with a backward pass that reads a number."""

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        assert float(grad.sum()) == float(grad.sum())
        return 2 * grad


class Applied(nn.Module):
    """Applies a custom function."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)


def test_operators_without_a_batching_rule_take_one_tangent_after_the_other() -> None:
    chain = models.cut(
        nn.Sequential(nn.Linear(3, 3), Applied(Unbatched)), torch.randn(2, 3, dtype=torch.float32), "*"
    ).chain
    tangents = torch.randn(4, 2, 3)
    (found,) = push_forward(chain, len(chain), [tangents])
    assert found is not None and torch.equal(found, 2 * tangents)


def test_a_kept_backward_pass_gives_the_same_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A further product takes one backward pass instead of two."""
    chain = models.cut(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.randn(2, 3, dtype=torch.float32), "*").chain
    grad, passes = torch.autograd.grad, []
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or grad(*a, **k))
    kept: dict[int, Backward] = {}
    for count in (1, 4):
        tangents = torch.randn(count, 2, 3)
        (expected,) = push_forward(chain, len(chain), [tangents])
        passes.clear()
        (found,) = push_forward(chain, len(chain), [tangents], kept=kept)
        assert found is not None and expected is not None and torch.equal(found, expected)
        assert len(passes) == (2 if count == 1 else 1)


def test_hooks_that_change_gradients_are_refused() -> None:
    """A hook changes the backward pass, so that its derivative is no longer the Jacobian."""
    chain = models.cut_case(BY_ID["scaled-gradient"]).chain
    with pytest.raises(CutError, match=r"must have no gradient hooks.*noticed at step"):
        push_forward(chain, 1, some_cotangents(chain, 1))


class Refusing(Doubled):
    """Doubles, and cannot be differentiated."""

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        raise RuntimeError("no second derivative.\nDetails.")


class OnceOnly(Doubled):
    """Doubles, with a backward pass that cannot be differentiated."""

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return Refusing.apply(grad)


def test_a_backward_pass_that_raises_when_differentiated_is_named() -> None:
    chain = models.cut(nn.Sequential(nn.Linear(3, 3), Applied(OnceOnly)), torch.randn(2, 3), "*").chain
    with pytest.raises(
        CutError, match=r"must itself be differentiable.*step '1' is not: no second derivative\. Choose"
    ):
        push_forward(chain, len(chain), [torch.randn(2, 2, 3)])
