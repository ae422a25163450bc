"""The Jacobian of a chain as an operator on vectors, against the product of weights."""

from __future__ import annotations

import math

import models
import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.engine.jacobian import chain_product
from pytest_trainability.engine.jacobian.chain_product import ChainProduct
from pytest_trainability.engine.jacobian.trajectories import Division, Trajectories

F64 = torch.float64
SAMPLES, USED = 4, 3


@pytest.fixture
def layers() -> nn.Sequential:
    """Return a linear map from 5 dimensions over 7 to 6, so that ``J`` is the product of its weights."""
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 6)).double()


@pytest.fixture
def trajectories(layers: nn.Sequential) -> Trajectories:
    return Trajectories(models.cut(layers, torch.randn(SAMPLES, 5, dtype=F64)).chain, Division(SAMPLES))


@pytest.fixture
def dense(layers: nn.Sequential) -> Tensor:
    return layers[1].weight.detach() @ layers[0].weight.detach()


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("at_once", [1, 2, 64])
@pytest.mark.parametrize("kept", [True, False])
def test_products_are_those_of_the_weights(
    trajectories: Trajectories, dense: Tensor, forward: bool, at_once: int, kept: bool
) -> None:
    """Steps return unit vectors, and the lengths that each step has multiplied."""
    product = ChainProduct(trajectories, USED, forward, at_once, {} if kept else None)
    J = dense if forward else dense.mT
    rows = product.draw(3, 0, "vectors")
    units, factors = product.steps(rows, forward=forward)
    assert units.shape == (USED, 3, len(J)) and factors.shape == (2, USED, 3)
    torch.testing.assert_close(units * factors.prod(dim=0)[:, :, None], rows @ J.mT)
    back, _ = product.steps(units, forward=not forward)
    torch.testing.assert_close(back, nn.functional.normalize(units @ J, dim=2))


def test_a_vector_that_vanishes_stays_zero(layers: nn.Sequential) -> None:
    nn.init.zeros_(layers[1].weight)
    chain = models.cut(layers, torch.randn(2, 5, dtype=F64)).chain
    product = ChainProduct.of(Trajectories(chain, Division(2)), 2, forward=True)
    units, factors = product.steps(product.draw(1, 0, "vectors"), forward=True)
    assert not units.any() and factors[1].tolist() == [[0.0], [0.0]]


def test_sizes_are_those_of_the_states(trajectories: Trajectories) -> None:
    forward, backward = (ChainProduct.of(trajectories, USED, forward=forward) for forward in (True, False))
    assert (forward.size, backward.size) == (5, 6)
    assert forward.least == forward.count == 5
    assert list(forward.order(forward=True)) == [1, 2] and list(forward.order(forward=False)) == [2, 1]
    assert forward.time().tolist() == [2.0] * USED


def test_backward_passes_are_kept_unless_states_are_large(
    trajectories: Trajectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = SAMPLES * (5 + 7 + 6)
    monkeypatch.setattr(chain_product, "KEPT", numbers)
    assert ChainProduct.of(trajectories, 1, forward=True).kept == {}
    monkeypatch.setattr(chain_product, "KEPT", numbers - 1)
    assert ChainProduct.of(trajectories, 1, forward=True).kept is None


def test_round_off_grows_with_the_root_of_the_dimensions(trajectories: Trajectories) -> None:
    product = ChainProduct.of(trajectories, 1, forward=True)
    assert product.precision(1, 16) == pytest.approx(2 * product.precision(1, 4))
    assert product.precision(1, 1) < math.sqrt(torch.finfo(F64).eps)


def test_draws_are_made_on_the_cpu_whatever_the_default_device(trajectories: Trajectories) -> None:
    """The default device of a run is the model's, and generators are those of the CPU."""
    product = ChainProduct.of(trajectories, 2, forward=True)
    expected = product.draw(3, 0, "basis")
    with torch.device("meta"):
        assert torch.equal(product.draw(3, 0, "basis"), expected)
