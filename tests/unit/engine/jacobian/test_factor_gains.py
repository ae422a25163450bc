"""Gains of factors: they add up to the growth of the step, and show slopes and branches."""

from __future__ import annotations

import math

import models
import pytest
import torch
from models import ARCHITECTURES
from products import one_backward, some_cotangents
from torch import Tensor, nn

from pytest_trainability.engine.capture.factors import factorized
from pytest_trainability.engine.capture.operators import operator_name
from pytest_trainability.engine.jacobian.factor_gains import FactorGain, factor_gains
from pytest_trainability.engine.jacobian.qr_sweep import qr_sweep
from pytest_trainability.engine.jacobian.trajectories import Division, Trajectories


def gains(model: nn.Module, x: Tensor, steps: str = "layers", count: int = 1) -> list[FactorGain]:
    cutting = models.cut(model, x, steps=steps)
    trajectories = Trajectories(cutting.chain, Division(count))
    found = factorized(cutting.chain, cutting.graph)
    return factor_gains(found, cutting.graph, trajectories, some_cotangents(cutting.chain, 1))


@pytest.mark.parametrize("case", [c for c in ARCHITECTURES if c.dense], ids=lambda case: case.id)
def test_gains_of_factors_add_up_to_the_growth_of_each_step(case: models.Architecture) -> None:
    cutting = models.cut_case(case, dtype=torch.float64)
    trajectories = Trajectories(cutting.chain, Division(1))
    columns = some_cotangents(cutting.chain, 1)
    rates = qr_sweep(trajectories, columns).logs[:, 0, 0]
    found = factor_gains(factorized(cutting.chain, cutting.graph), cutting.graph, trajectories, columns)
    for step, rate in enumerate(rates.tolist()):
        assert sum(f.gain for f in found if f.step == step) == pytest.approx(rate, abs=1e-10)


def test_gains_are_averaged_over_trajectories() -> None:
    """The last factor doubles one sample and halves the other one: by the mean of the logarithms, it does nothing."""

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor([[2.0], [0.5]], dtype=x.dtype)

    model = nn.Sequential(nn.Linear(4, 4), Scaled(), nn.Linear(4, 4)).double()
    found = gains(model, torch.randn(2, 4, dtype=torch.float64), count=2)
    (scaled,) = [f for f in found if [operator_name(n) for n in f.factor.nodes] == ["Mul"]]
    assert scaled.gain == pytest.approx(0.0, abs=1e-12)


def test_slopes_of_a_function_of_each_entry_are_measured_however_it_is_written() -> None:
    class Swish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.x = x
            return x * x.sigmoid()

    swish = Swish()
    found = gains(
        nn.Sequential(nn.Linear(4, 4), swish, nn.Linear(4, 4)).double(), torch.randn(2, 4, dtype=torch.float64)
    )
    (activation,) = [f for f in found if f.slopes is not None]
    x = swish.x.detach()
    expected = x.sigmoid() * (1 + x * (1 - x.sigmoid()))
    assert activation.slopes is not None
    torch.testing.assert_close(activation.slopes, expected.flatten())


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.LayerNorm(4), nn.Softmax(-1)], ids=lambda m: type(m).__name__)
def test_what_mixes_entries_has_no_slopes(layer: nn.Module) -> None:
    found = gains(
        nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 4)).double(), torch.randn(2, 4, dtype=torch.float64)
    )
    assert all(f.slopes is None for f in found)


class Scaled(nn.Module):
    def __init__(self, skip: float, branch: float) -> None:
        super().__init__()
        self.skip, self.branch = skip, branch

    def forward(self, x: Tensor) -> Tensor:
        return self.skip * x + self.branch * x.flip(-1)


def test_the_gain_of_each_branch_is_that_of_its_path_alone() -> None:
    found = gains(
        nn.Sequential(nn.Linear(4, 4), Scaled(0.5, 3.0), nn.Linear(4, 4)).double(), torch.randn(2, 4).double()
    )
    (parallel,) = [f for f in found if f.branches]
    assert sorted(b.gain for b in parallel.branches) == pytest.approx([math.log(0.5), math.log(3)], abs=1e-12)


def test_a_skip_connection_that_changes_nothing_has_no_factors() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tanh(self.layer(x))

    found = gains(nn.Sequential(Block(), Block()).double(), torch.randn(2, 4).double(), "blocks")
    for factor in found:
        (skip,) = [b for b in factor.branches if not b.factors]
        (branch,) = [b for b in factor.branches if b.factors]
        assert skip.gain == 0.0
        names = [[operator_name(n) for n in f.factor.nodes] for f in branch.factors]
        assert names == [["Addmm"], ["Tanh"]]
        assert sum(f.gain for f in branch.factors) == pytest.approx(branch.gain, abs=1e-12)


def test_a_factor_that_passes_nothing_is_the_first_of_the_list() -> None:
    class Dead(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x - 100.0)

    found = gains(nn.Sequential(nn.Linear(4, 4), Dead(), nn.Linear(4, 4)), torch.randn(2, 4))
    assert found[0].gain == -math.inf
    assert [operator_name(n) for n in found[0].factor.nodes] == ["Relu"]
    assert len(found) == 2


def test_round_off_of_a_normalization_of_one_element_is_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.GroupNorm(16, 16), nn.Tanh(), nn.Linear(16, 4))
    cutting = models.cut(model, torch.randn(8, 4), "layers")
    assert any(
        float(p.abs().max()) for p in one_backward(cutting.chain, some_cotangents(cutting.chain, 1)) if p is not None
    )
    found = gains(model, torch.randn(8, 4), count=8)
    assert [operator_name(n) for n in found[0].factor.nodes] == ["NativeGroupNorm"]
    assert found[0].gain == -math.inf
