"""Runs of several seeds: verdicts on numbers that are not finite, skipped steps, and precision."""

from __future__ import annotations

import math
from typing import Any

import loops
import models
import pytest
import torch
from models import BATCH, WIDTH
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.engine import isolation
from pytest_trainability.errors import CutError, UsageError

FLOATS = torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH)


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(requires_grad=False)


def test_a_frozen_model_with_float_inputs_is_measured() -> None:
    """Its Jacobian is there whether or not it is trained; its parameters have no gradient to speak of."""
    plain = measure(models.mlp, FLOATS, seeds=2)
    result = measure(lambda: frozen(models.mlp()), FLOATS, seeds=2)
    assert result.log_gain.values == plain.log_gain.values
    assert len(result.gradient_norm) == 0
    assert len(result.unused_parameters) == 0


def test_nan_in_weights_is_a_verdict() -> None:
    """Not an exception, never a pass, and it names what is at fault."""

    def broken() -> nn.Module:
        model = models.mlp()
        with torch.no_grad():
            model[2].weight[0, 0] = math.nan
        return model

    for exponents in (1, 3):
        result = measure(broken, FLOATS, seeds=2, exponents=exponents)
        assert math.isnan(result.log_gain.mean)
        assert not result.log_gain < 1e9
        assert not result.log_gain > -1e9
        assert "parameter 2.weight" in result.nonfinite
        assert "state after 2" in result.nonfinite
        assert "state after 0" not in result.nonfinite
        with pytest.raises(AssertionError, match="log_gain"):
            result.check(log_gain=(-1e300, 1e300))


def test_infinite_activations_are_a_verdict() -> None:
    """Overflow in the forward pass."""

    def exploding() -> nn.Module:
        model = models.mlp(4, activation=nn.Identity)
        with torch.no_grad():
            for layer in model[::2]:
                layer.weight.mul_(1e30)
        return model

    result = measure(exploding, FLOATS, seeds=1)
    assert "state after 4" in result.nonfinite
    assert result.log_gain > 200


def test_a_dead_network_has_a_gain_of_minus_infinity() -> None:
    """Every unit dead: no gradient at all, in all that is reported."""

    def dead() -> nn.Module:
        model = models.mlp(3, activation=nn.ReLU)
        with torch.no_grad():
            model[2].bias.fill_(-1e3)
        return model

    for exponents in (1, 3):
        result = measure(dead, FLOATS, seeds=2, exponents=exponents)
        assert result.log_gain.mean == -math.inf
        assert result.lyapunov_max.mean == -math.inf
        assert result.growth_rate["0"].mean != result.growth_rate["0"].mean or result.growth_rate["0"].mean == -math.inf
        assert result.gradient_norm["0.weight"].mean == 0.0


def test_spectrum_is_sorted_also_with_vanished_exponents() -> None:
    """Largest first, minus infinity last."""
    bottleneck = lambda: nn.Sequential(nn.Linear(WIDTH, 2), nn.Linear(2, WIDTH), nn.Linear(WIDTH, WIDTH))  # noqa: E731
    found = [e.mean for e in measure(bottleneck, FLOATS, seeds=2, exponents=4).lyapunov_spectrum]
    assert found == sorted(found, reverse=True)
    assert [math.isfinite(value) for value in found] == [True, True, False, False]


def test_a_seed_may_skip_steps() -> None:
    """Stochastic depth: which blocks run is drawn in the run."""

    class Stochastic(models.Tower):
        def body(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                if torch.rand(()) < 0.7:
                    x = block(x)
            return x

    result = measure(lambda: Stochastic(models.Block, 12), FLOATS, seeds=4, steps="blocks.*")
    assert all(math.isfinite(e.mean) for e in result.growth_rate.values())
    assert all(math.isfinite(value) for value in result.log_gain.values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("width", [64, 512])
def test_half_precision_gives_the_same_gain(dtype: str, width: int) -> None:
    """A healthy tower has the same gain in half precision, to its two or three digits."""

    def tower() -> nn.Module:
        return nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(width, width), nn.Tanh())])

    inputs = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    half, full = measure(tower, inputs, seeds=2, dtype=dtype), measure(tower, inputs, seeds=2)
    # Each of six products rounds to 2^-8 (bfloat16) a few times over.
    assert float(half.log_gain) == pytest.approx(float(full.log_gain), abs=6 * 8 * 2**-8)


def test_the_rank_is_judged_at_the_precision_of_the_states() -> None:
    def rank_one() -> nn.Module:
        layers = [nn.Linear(16, 16, bias=False) for _ in range(3)]
        for layer in layers:
            nn.init.constant_(layer.weight, 0.1)
        return nn.Sequential(*layers)

    for dtype in ("float32", "bfloat16"):
        spectrum = measure(rank_one, torch.randn(2, 16), seeds=1, exponents=3, dtype=dtype).lyapunov_spectrum
        assert [math.isfinite(e) for e in spectrum] == [True, False, False]


def test_a_seed_that_drops_all_layers_is_named() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layers = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            if torch.initial_seed() == isolation.derived_seed(0, "forward"):
                for layer in self.layers:
                    x = layer(x)
            return x

    with pytest.raises(CutError, match="Seed 1 takes none"):
        measure(Dropped, torch.randn(2, 4), steps="layers.*", seeds=2)


# Warm-up and alignment -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("warmup", "alignment"), [(4, 0), (0, 4), (2, 2), (9, 9)])
def test_warmup_and_alignment_must_leave_a_step(warmup: int, alignment: int) -> None:
    with pytest.raises(UsageError, match=rf"must leave a step.*Got {warmup} and {alignment} for a chain of 4"):
        measure(
            loops.Loop(loops.gru_loop, cell=loops.cell()).double(),
            loops.inputs(loops.BATCH, loops.LENGTH, loops.FEATURES),
            steps="time",
            warmup=warmup,
            alignment=alignment,
        )


@pytest.mark.parametrize("what", ["warmup", "alignment"])
@pytest.mark.parametrize("value", [-1, 1.0, True])
def test_warmup_and_alignment_must_be_counts(what: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"{what} must be a whole number of at least 0"):
        measure(
            loops.Loop(loops.gru_loop, cell=loops.cell()).double(),
            loops.inputs(loops.BATCH, loops.LENGTH, loops.FEATURES),
            steps="time",
            **{what: value},
        )
