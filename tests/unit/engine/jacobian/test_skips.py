"""The log gain with and without the edges that pass by steps."""

from __future__ import annotations

import math

import models
import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.engine.jacobian.sample_independence import find_trajectories
from pytest_trainability.engine.jacobian.skips import is_multiplied_by_zero, log_gain_without_skips, runs_side_by_side
from pytest_trainability.engine.jacobian.trajectories import Division, Trajectories

WIDTH = 64


class Scale(nn.Module):
    """An orthogonal map that multiplies every norm by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.orthogonal_(self.layer.weight, gain=factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Shaped(nn.Module):
    """A way down and up again, with a skip around the middle."""

    def __init__(self, *, skip: bool) -> None:
        super().__init__()
        self.down, self.middle, self.up = Scale(0.1), Scale(0.01), Scale(0.1)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        down = self.down(x)
        middle = self.middle(down)
        return self.up(middle + down if self.skip else middle)


def gains(model: nn.Module, *, reuse: bool) -> tuple[float, float] | None:
    cutting = models.cut(model, torch.ones(3, WIDTH), steps=Scale)
    trajectories, sweep = find_trajectories(cutting.chain, 3, 0)
    return log_gain_without_skips(trajectories, sweep if reuse else None, 0)


@pytest.mark.parametrize("reuse", [False, True])
def test_a_skip_carries_the_gain(reuse: bool) -> None:
    torch.manual_seed(0)
    found = gains(Shaped(skip=True), reuse=reuse)
    assert found is not None
    with_skips, without = found
    # Orthogonal maps of gains 0.1, 0.01 and 0.1; the skip adds the identity to the middle: within 1 % of gain 1.
    assert without == pytest.approx(math.log(1e-4), abs=1e-5)
    assert with_skips == pytest.approx(math.log(1e-2), abs=0.0101)


def test_a_plain_chain_has_no_skips() -> None:
    assert gains(Shaped(skip=False), reuse=False) is None


def test_the_sums_of_a_residual_stream_are_no_skips() -> None:
    """Where the layers are the steps, each sum belongs to the segment after its layer."""

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Scale(0.1) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x)
            return x

    assert gains(Stream(), reuse=False) is None


def test_a_chain_that_exists_through_skips_only() -> None:
    class Dead(Shaped):
        def forward(self, x: Tensor) -> Tensor:
            down = self.down(x)
            return self.up(self.middle(down) * 0 + down)

    cutting = models.cut(Dead(skip=True), torch.ones(1, WIDTH), steps=Scale)
    found = log_gain_without_skips(Trajectories(cutting.chain, Division(1)), None, 0)
    assert found is not None and found[1] == -math.inf and math.isfinite(found[0])


class Pair(nn.Module):
    """Two networks on the same inputs, or one that is called twice."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(Scale(1.0), nn.Tanh(), Scale(1.0))
        self.second = self.first if shared else nn.Sequential(Scale(1.0), nn.Tanh(), Scale(1.0))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.first(x) - self.second(2 * x)
        return found


@pytest.mark.parametrize("shared", [False, True])
def test_networks_on_the_same_inputs_run_side_by_side(shared: bool) -> None:
    cutting = models.cut(Pair(shared=shared), torch.ones(3, WIDTH), steps=Scale)
    assert len(cutting.chain) == 4 and runs_side_by_side(cutting.chain)


@pytest.mark.parametrize("skip", [False, True])
def test_steps_that_follow_each_other_do_not(skip: bool) -> None:
    model = Shaped(skip=skip)
    nn.init.zeros_(model.middle.layer.weight)
    assert not runs_side_by_side(models.cut(model, torch.ones(3, WIDTH), steps=Scale).chain)


class Gated(nn.Module):
    """Two layers, between which something with a parameter that is zero stands."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.kind = kind
        self.zeros = nn.Parameter(torch.zeros(1 if kind == "gate" else WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        for module in (self.down, self.up):
            nn.init.zeros_(module.bias)
        if kind == "weight":
            nn.init.zeros_(self.up.weight)
        if kind == "gain":
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x)
        if self.kind in {"gate", "scale"}:
            y = self.zeros.expand(WIDTH) * y
        elif self.kind == "offset":
            y = y + self.zeros.view(1, WIDTH)
        found: Tensor = self.up(self.norm(y))
        return found


@pytest.mark.parametrize(
    ("kind", "is_zero"),
    [("gate", True), ("scale", True), ("weight", True), ("gain", True), ("offset", False), ("biases", False)],
)
def test_a_parameter_that_multiplies_is_told_from_one_that_is_added(kind: str, is_zero: bool) -> None:
    chain = models.cut(Gated(kind), torch.ones(3, WIDTH), steps=nn.Linear).chain
    assert any(is_multiplied_by_zero(chain, index) for index in range(1, len(chain) + 1)) is is_zero
