"""Factors with names: the module that performs each, its parameters, and the numbers that explain its gain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.records.factors import FactorRecord


def factors(build: Callable[[], nn.Module], x: Any, **options: Any) -> tuple[FactorRecord, ...]:
    result = measure(build, x, seeds=1, dtype="float64", **options)
    found = result._seed_runs.take_apart()
    assert found, "the steps could not be taken apart"
    assert sum(f.gain for f in found) == pytest.approx(result.log_gain.mean, abs=1e-9)
    return found


def of_kind(found: tuple[FactorRecord, ...], kind: str) -> list[FactorRecord]:
    return [f for f in found if f.kind == kind]


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_weights_have_their_name_size_and_number_of_inputs() -> None:
    def build() -> nn.Module:
        net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        nn.init.constant_(net[2].weight, 0.25)
        return net

    found = of_kind(factors(build, inputs(4, 8)), "weights")
    assert [(f.module, f.module_kind, f.weight, f.fan_in) for f in found] == [
        ("0", "Linear", "0.weight", 8),
        ("2", "Linear", "2.weight", 8),
    ]
    assert found[1].weight_rms == 0.25 and found[1].is_whole_module


@pytest.mark.parametrize(
    ("activation", "slope", "operations"),
    [
        (torch.relu, lambda x: (x > 0).double(), ("Relu",)),
        (lambda x: x * x.sigmoid(), lambda x: x.sigmoid() * (1 + x * (1 - x.sigmoid())), ("Sigmoid", "Mul")),
        (torch.sin, torch.cos, ("Sin",)),
        (
            lambda x: F.prelu(x, torch.tensor(0.25, dtype=x.dtype)),
            lambda x: torch.where(x > 0, 1.0, 0.25),
            ("PreluKernel",),
        ),
        (F.hardswish, lambda x: torch.where(x.abs() < 3, (2 * x + 3) / 6, (x > 0).double()), ("Hardswish",)),
        (lambda x: 1e-3 * x, lambda x: torch.full_like(x, 1e-3), ("Mul",)),
    ],
    ids=["relu", "swish by hand", "sin", "prelu", "hardswish", "scale"],
)
def test_slopes_are_measured_whatever_the_function_is_called(
    activation: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], operations: tuple[str, ...]
) -> None:
    class Act(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return activation(x)

    seen: list[Tensor] = []
    (act,) = of_kind(factors(lambda: nn.Sequential(nn.Linear(8, 8), Act(), nn.Linear(8, 8)), inputs(4, 8)), "entrywise")
    expected = slope(seen[-1]).double()
    assert act.operations == operations and act.slopes is not None
    assert act.slopes.rms == pytest.approx(float(expected.square().mean().sqrt()), rel=1e-9)
    assert (act.slopes.low, act.slopes.high) == pytest.approx((float(expected.min()), float(expected.max())), abs=1e-9)
    assert act.slopes.zeros == float((expected == 0).double().mean())
    assert act.slopes.is_constant == (operations == ("Mul",))


def test_a_normalization_shows_its_groups_their_deviation_and_its_gain() -> None:
    def build() -> nn.Module:
        net = nn.Sequential(nn.Linear(8, 8), nn.GroupNorm(2, 8, eps=1e-3), nn.Linear(8, 8))
        nn.init.constant_(net[1].weight, 3.0)
        return net

    (norm,) = of_kind(factors(build, inputs(4, 8)), "normalization")
    assert (norm.module, norm.module_kind, norm.group_size) == ("1", "GroupNorm", 4)
    assert (norm.weight, norm.weight_rms) == ("1.weight", 3.0)
    assert 0.05 < norm.input_deviation < 5


def test_a_normalization_written_by_hand_is_recognized() -> None:
    class Rms(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

    (norm,) = of_kind(
        factors(lambda: nn.Sequential(nn.Linear(8, 8), Rms(), nn.Linear(8, 8)), inputs(4, 8)), "normalization"
    )
    assert norm.module_kind == "Rms"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def test_a_residual_block_shows_its_branches() -> None:
    found = of_kind(factors(lambda: nn.Sequential(*[Block() for _ in range(3)]), inputs(4, 8)), "parallel")
    assert [f.module for f in found] == ["0", "1", "2"]
    for block in found:
        skip, branch = sorted(block.branches, key=len)
        assert skip == () and block.branch_gains[block.branches.index(skip)] == 0
        assert [f.kind for f in branch if f.kind != "layout"] == ["normalization", "weights", "entrywise", "weights"]
        assert branch[-1].weight == f"{block.module}.down.weight"


def test_attention_is_one_factor_between_projections() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(x, x, x)[0]
            return found

    found = factors(lambda: nn.Sequential(Attention(), Attention()), inputs(2, 5, 8), steps="blocks")
    assert len(of_kind(found, "attention")) == 2


def test_gates_of_an_lstm_are_one_factor_per_time_step() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 8, batch_first=True)
            nn.init.constant_(self.rnn.bias_ih_l0, 0.5)
            nn.init.constant_(self.rnn.bias_hh_l0, 0.25)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.rnn(x)[0][:, -1]
            return found

    found = of_kind(factors(Reader, inputs(2, 6, 4), steps="time"), "gated")
    assert len(found) >= 4
    assert {(f.weight, f.fan_in, f.forget_bias) for f in found} == {("rnn.weight_hh_l0", 8, 0.75)}


def test_a_parameter_behind_a_function_is_named() -> None:
    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decay = nn.Parameter(torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.decay.sigmoid()

    found = factors(lambda: nn.Sequential(nn.Linear(8, 8), Decay(), nn.Linear(8, 8)), inputs(4, 8))
    (decay,) = of_kind(found, "entrywise")
    assert decay.parameters == ("1.decay",) and decay.gain == pytest.approx(math.log(0.5))


def test_a_changed_module_is_not_taken_apart() -> None:
    """A finished module whose numbers have changed is another model. The failure stands without an explanation."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    result = measure(net, inputs(4, 8), steps="layers")
    with torch.no_grad():
        net[0].weight.mul_(2)
    assert result._seed_runs.take_apart() == ()


def test_complex_weights_have_the_rms_of_their_magnitudes() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((8, 8), 1 + 1j))

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(self.weight.dtype) @ self.weight).real.float()

    result = measure(lambda: nn.Sequential(nn.Linear(8, 8), Complex(), nn.Linear(8, 8)), inputs(2, 8), seeds=1)
    (found,) = [f for f in result._seed_runs.take_apart() if f.weight == "1.weight"]
    assert found.weight_rms == pytest.approx(math.sqrt(2))


def test_a_cell_that_a_loop_calls_shows_its_recurrent_weights_and_forget_bias() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(8, 3)
            nn.init.constant_(self.cell.bias_ih[3:6], 1.5)
            nn.init.constant_(self.cell.bias_hh[3:6], -0.5)

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(len(x), 3), torch.zeros(len(x), 3)
            for _ in range(4):
                state = self.cell(x, state)
            return state[0]

    result = measure(Loop, inputs(2, 8), seeds=1, steps="time")
    gated = of_kind(result._seed_runs.take_apart(), "gated")
    assert gated and {(f.weight, f.fan_in, f.forget_bias) for f in gated} == {("cell.weight_hh", 3, 1.0)}


def test_a_matrix_that_is_stored_the_other_way_round_has_the_same_inputs() -> None:
    """The GPT-2 of transformers stores (inputs, outputs). The gain is rms × √inputs for random weights."""

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 256) / 8)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), Transposed(), nn.Linear(256, 8))

    (found,) = [f for f in factors(build, inputs(4, 64)) if f.weight == "1.weight"]
    assert found.fan_in == 64
    # The relative deviation of the norm of 4 rows of 64 products is about 1 / sqrt(2 · 256).
    assert math.exp(found.gain) == pytest.approx(found.weight_rms * 8, rel=5 / math.sqrt(512))


class Multiplied(nn.Module):
    """Multiplies with a buffer, and with a decay that a vector, a bias and a weight set."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.inner = nn.Linear(3, 8)
        self.rate = nn.Parameter(torch.linspace(0.5, 1.5, 8))
        self.register_buffer("mixing", torch.full((8, 8), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) @ self.get_buffer("mixing")
        return self.last(h * torch.exp(-self.rate.exp() * self.inner(x.new_ones(3)).exp()))  # type: ignore[no-any-return]


def test_buffers_are_named_and_parameters_that_set_slopes_have_the_derivative_of_the_gain() -> None:
    torch.manual_seed(0)
    model = Multiplied().double()
    found = factors(model, inputs(4, 8).double(), steps=["first", "last"])
    (buffer,) = [b for f in found for b in f.buffers]
    assert (buffer.name, buffer.rms, buffer.row_sum) == ("mixing", 0.25, 2.0)
    (scaled,) = [f for f in found if f.sensitivities]
    effects = dict(zip(scaled.parameters, scaled.sensitivities))

    def gain() -> float:
        decay = torch.exp(-model.rate.exp() * model.inner(torch.ones(3).double()).exp())
        return 0.5 * math.log(float(decay.square().mean()))

    with torch.no_grad():
        for name in ("rate", "inner.bias"):
            # Central differences in float64: the error is of the order of the square of the step.
            parameter, gains = model.get_parameter(name), list[float]()
            for step in (-1e-5, 2e-5):
                parameter.add_(step)
                gains.append(gain())
            parameter.add_(-1e-5)
            assert effects[name] == pytest.approx((gains[1] - gains[0]) / 2e-5, rel=1e-6)
    # Nobody shifts all weights of a product.
    assert effects["inner.weight"] == 0


def test_slopes_are_known_where_the_cotangent_has_become_tiny() -> None:
    """A decay by 0.1 in one entry leaves numbers near the smallest one of float32, 1e-38, after forty steps."""

    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slopes = nn.Parameter(torch.linspace(0.1, 1, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.slopes

    model = nn.Sequential(*[Decay() for _ in range(60)])
    found = measure(model, inputs(4, 8), seeds=1, steps=Decay)._seed_runs.take_apart()
    assert [f.kind for f in found] == ["entrywise"] * 60
