"""Lyapunov exponents as measures: closed forms for towers of scaled orthogonal layers, and what each measure returns."""

from __future__ import annotations

import math
from typing import Any

import loops
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from towers import F64, Elementwise, linear, orthogonal, repeated, stacked

from pytest_trainability import Rollout, measure
from pytest_trainability.errors import InapplicableError
from pytest_trainability.measures.depth.lyapunov import _time_to_lose

WIDTH = 5
HALVING = repeated(lambda: orthogonal(WIDTH, 0.5), 6)
"""Six layers that halve every gradient."""
NATS = math.log(2)


def inputs(batch: int = 3) -> Tensor:
    return torch.randn(batch, WIDTH, dtype=F64, generator=torch.Generator().manual_seed(0))


def test_every_measure_of_a_tower_that_halves_gradients() -> None:
    """Orthogonal layers are exact to round-off of float64, in six layers with a gain each."""
    names = ["log_gain", "lyapunov_max", "lyapunov_spectrum", "growth_rate", "lyapunov_history", "loss_log_gain"]
    found = measure(HALVING, inputs(), loss=lambda y: y.sum(), seeds=2, exponents=3, measures=names)
    assert found.log_gain.values == pytest.approx([-6 * NATS] * 2, abs=1e-12)
    assert found.lyapunov_max.values == pytest.approx([-NATS] * 2, abs=1e-13)
    assert [e.mean for e in found.lyapunov_spectrum] == pytest.approx([-NATS] * 3, abs=1e-13)
    assert {name: e.mean for name, e in found.growth_rate.items()} == pytest.approx(
        {str(i): -NATS for i in range(6)}, abs=1e-12
    )
    assert found.loss_log_gain.mean == pytest.approx(-6 * NATS, abs=1e-12)
    assert len(found.lyapunov_history) == 18
    assert found.lyapunov_history["0 exponent 3"].mean == pytest.approx(-NATS, abs=1e-13)


def test_growth_rates_are_those_of_the_steps_in_program_order() -> None:
    gains = [1.0, 2.0, 0.25, 8.0]
    found = measure(stacked(*[lambda g=g: orthogonal(WIDTH, g) for g in gains]), inputs(), seeds=1)
    assert [e.mean for e in found.growth_rate.values()] == pytest.approx([math.log(g) for g in gains], abs=1e-12)
    assert found.log_gain.mean == pytest.approx(math.log(4), abs=1e-12)


def test_warmup_and_alignment_leave_out_the_first_and_the_last_steps() -> None:
    gains = [100.0, 2.0, 8.0, 1e-3, 1e3]
    tower = stacked(*[lambda g=g: orthogonal(WIDTH, g) for g in gains])
    found = measure(tower, inputs(), seeds=1, warmup=1, alignment=2, measures=["lyapunov_max", "lyapunov_history"])
    assert found.lyapunov_max.mean == pytest.approx(math.log(4), abs=1e-12)
    history = {name: e.mean for name, e in found.lyapunov_history.items()}
    assert history == pytest.approx({"1": math.log(4), "2": math.log(8)}, abs=1e-12)


def test_the_spectrum_of_equal_diagonal_layers() -> None:
    """The frame converges to the axes like (1/2)^(2·20), and exponents are averaged over the last steps before it does."""
    matrix = torch.diag(torch.tensor([4.0, 1.0, 0.25], dtype=F64))
    x = torch.ones(2, 3, dtype=F64)
    found = measure(repeated(lambda: linear(matrix), 60), x, seeds=1, exponents=3, alignment=40)
    expected = [math.log(4), 0.0, -math.log(4)]
    assert [e.mean for e in found.lyapunov_spectrum] == pytest.approx(expected, abs=1e-10)


def test_exponents_are_averaged_over_samples() -> None:
    """One sample's gradient is doubled by every step, the other one's is kept."""
    factors = torch.tensor([[2.0], [1.0]], dtype=F64)
    step = lambda: nn.Sequential(orthogonal(WIDTH, 1.0), Elementwise(lambda x: factors * x))  # noqa: E731
    found = measure(repeated(step, 4), inputs(2), seeds=1, steps=["0", "1", "2", "3"])
    assert found.frame == "per sample"
    assert found.lyapunov_max.mean == pytest.approx(NATS / 2, abs=1e-12)


def test_the_loss_gradient_may_grow_at_another_rate() -> None:
    """The loss depends on the first unit only, along which the layers shrink gradients; others keep them."""
    matrix = torch.diag(torch.tensor([0.5, 1.0, 1.0], dtype=F64))
    model = repeated(lambda: linear(matrix), 30)
    found = measure(model, torch.ones(1, 3, dtype=F64), loss=lambda y: y[:, 0].sum(), measures=["loss_log_gain"])
    assert found.loss_log_gain.mean == pytest.approx(-30 * NATS, abs=1e-11)
    assert abs(found.log_gain.mean) < 3


def test_samples_that_the_loss_does_not_depend_on_are_left_out() -> None:
    found = measure(HALVING, inputs(3), loss=lambda y: y[1:].sum(), seeds=1, measures=["loss_log_gain"])
    assert found.loss_log_gain.mean == pytest.approx(-6 * NATS, abs=1e-12)


def test_a_loss_gain_requires_a_loss() -> None:
    with pytest.raises(InapplicableError, match="loss_log_gain needs a loss"):
        _ = measure(HALVING, inputs(), seeds=1).loss_log_gain


@pytest.mark.parametrize(
    ("gain", "memory", "precision"),
    [
        (0.1, 2.0, -math.log10(torch.finfo(F64).eps)),
        (0.5, math.log2(100), 52.0),
        (1.0, math.inf, math.inf),
        (2.0, math.inf, math.inf),
    ],
    ids=["within", "mostly", "isometry", "growing"],
)
def test_horizons_of_a_steady_decay(gain: float, memory: float, precision: float) -> None:
    """ln(100) and 52 ln 2 nats over the decay per step, extrapolated beyond the six steps."""
    found = measure(repeated(lambda: orthogonal(WIDTH, gain), 6), inputs(), seeds=1)
    if gain == 1.0:
        # An exponent of zero up to round-off, of either sign.
        assert found.memory_horizon.mean > 1e12 and found.precision_horizon.mean > 1e12
    else:
        assert found.memory_horizon.mean == pytest.approx(memory, rel=1e-12)
        assert found.precision_horizon.mean == pytest.approx(precision, rel=1e-12)


def test_the_precision_horizon_is_that_of_the_last_states_dtype() -> None:
    single = measure(HALVING, inputs(), seeds=1, dtype="float32")
    assert single.precision_horizon.mean == pytest.approx(23.0, rel=1e-5)


@pytest.mark.parametrize(
    ("steps", "average", "expected"),
    [
        pytest.param([(-1.0, 1.0), (-4.0, 1.0)], -2.5, 1.75, id="interpolated"),
        pytest.param([(-1.0, 0.5), (-4.0, 2.0)], -2.5, 2.0, id="durations"),
        pytest.param([(2.0, 1.0), (-3.0, 1.0), (-8.0, 1.0)], -3.0, 2.375, id="growth-first"),
        pytest.param([(-1.0, 1.0), (-1.0, 1.0)], -0.5, 2 + 2 / 0.5, id="extrapolated"),
        pytest.param([(-1.0, 1.0), (-math.inf, 3.0)], -math.inf, 4.0, id="vanishing"),
        pytest.param([(-4.0, 1.0)], -4.0, 1.0, id="at-the-end-of-a-step"),
        pytest.param([(1.0, 1.0)], 1.0, math.inf, id="growing"),
        pytest.param([(0.0, 1.0)], 0.0, math.inf, id="constant"),
    ],
)
def test_time_to_lose_four_nats(steps: list[tuple[float, float]], average: float, expected: float) -> None:
    assert _time_to_lose(4.0, steps, average) == pytest.approx(expected)


def test_time_to_lose_is_nan_without_a_rate() -> None:
    assert math.isnan(_time_to_lose(4.0, [], math.nan))


def test_horizons_are_geometric_means_over_samples() -> None:
    """Gradients shrink by e^-1 and e^-4 per step: sqrt(4.6 · 1.15) steps to one hundredth."""
    factors = torch.exp(-torch.tensor([[1.0], [4.0]], dtype=F64))
    step = lambda: nn.Sequential(orthogonal(WIDTH, 1.0), Elementwise(lambda x: factors * x))  # noqa: E731
    found = measure(repeated(step, 8), inputs(2), seeds=1, steps=[str(i) for i in range(8)])
    assert found.memory_horizon.mean == pytest.approx(math.log(100) / 2, rel=1e-12)


def test_a_dead_step_is_named_and_gives_minus_infinity() -> None:
    model = HALVING()
    with torch.no_grad():
        model[3].weight.zero_()
    found = measure(model, inputs())
    assert [e.mean for e in found.growth_rate.values()] == pytest.approx(
        [math.nan] * 3 + [-math.inf] + [-NATS] * 2, nan_ok=True
    )
    assert found.log_gain == found.lyapunov_max == -math.inf
    # The cotangent vanishes in the third step from the end.
    assert found.memory_horizon.mean == pytest.approx(3, rel=1e-15)


# Recurrences -----------------------------------------------------------------------------------------------------


def test_every_direction_of_a_recurrent_layer_has_an_exponent() -> None:
    torch.manual_seed(0)
    model, x = nn.LSTM(3, 4, bidirectional=True, batch_first=True), torch.randn(2, 6, 3)
    found = measure(model, x, steps="time", warmup=2)
    assert len(found.recurrence_lyapunov_max) == 2
    for name, exponent in found.recurrence_lyapunov_max.items():
        # All steps are averaged, whatever warm-up the other measures have.
        alone = measure(model, x, steps=f"time:{name}").lyapunov_max
        assert exponent.mean == pytest.approx(alone.mean, abs=1e-6)


def test_there_are_no_recurrences_along_depth() -> None:
    assert dict(measure(HALVING, inputs(), seeds=1).recurrence_lyapunov_max) == {}


# Horizons and histories ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("rate", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(("steps", "dt"), [(4, None), (30, None), (12, 0.1)])
def test_horizons_of_a_linear_recurrence_are_known_in_closed_form(rate: float, steps: int, dt: float | None) -> None:
    """An isotropic contraction loses ``-ln rate`` nats per step, within the chain and beyond its end."""
    result = measure(
        Rollout(loops.linear(loops.rotation(0.3, rate)), steps=steps, dt=dt),
        loops.start(2),
        measures=["memory_horizon", "precision_horizon"],
    )
    unit = 1.0 if dt is None else dt
    assert float(result.memory_horizon) == pytest.approx(unit * math.log(100) / -math.log(rate), rel=1e-10)
    assert float(result.precision_horizon) == pytest.approx(unit * 52 * math.log(2) / -math.log(rate), rel=1e-10)
    assert float(result.lyapunov_max) == pytest.approx(math.log(rate) / unit, rel=1e-12)


def test_horizons_without_contraction() -> None:
    """They are infinite if the rate is not negative, and end at the first dead step."""
    for rate in (1.5, 2.0):
        result = measure(Rollout(loops.linear(loops.rotation(0.3, rate)), steps=5), loops.start(2))
        assert float(result.memory_horizon) == math.inf
        assert float(result.precision_horizon) == math.inf
    dead = measure(Rollout(lambda state: 0.0 * state, steps=5), loops.start(2))
    assert float(dead.memory_horizon) == float(dead.precision_horizon) == 1.0


def test_the_horizon_is_where_the_gradient_is_first_below_the_threshold() -> None:
    """After one step of growth by e, steps of decay by e² must undo the growth first."""
    factors = torch.tensor([-2.0] * 6 + [1.0], dtype=torch.float64).exp()[:, None, None]
    model = Rollout(lambda state, factor: state * factor, steps=7)
    result = measure(
        model, (loops.start(2), factors.expand(-1, loops.BATCH, 2).contiguous()), measures=["memory_horizon"]
    )
    # From the end: +1 nat in one step, then -2 per step until ln 100 are lost.
    assert float(result.memory_horizon) == pytest.approx(1 + (math.log(100) + 1) / 2, rel=1e-12)


@pytest.mark.parametrize(("warmup", "alignment"), [(0, 0), (2, 0), (0, 3), (1, 2)])
def test_the_history_ends_with_the_exponents(warmup: int, alignment: int) -> None:
    """At the first step that counts, the running averages equal the exponents, for packed sequences as well."""
    torch.manual_seed(0)

    def run(model: Any, x: Tensor) -> Any:
        return model.rnn(pack_padded_sequence(x, [6, 2], batch_first=True))[1]

    for model, x in (
        (loops.Loop(run, rnn=loops.fused()).double(), loops.inputs(2, 6, loops.FEATURES)),
        (
            loops.Loop(loops.lstm_loop, cell=nn.LSTMCell(loops.FEATURES, loops.WIDTH)).double(),
            loops.inputs(loops.BATCH, 6, loops.FEATURES),
        ),
        (Rollout(loops.linear(loops.random_matrix(3)), steps=6, dt=0.2), loops.start(3)),
    ):
        result = measure(
            model, x, steps="time", exponents=2, warmup=warmup, alignment=alignment, measures=["lyapunov_history"]
        )
        first = result.steps.names[warmup]
        history = [float(result.lyapunov_history[name]) for name in (first, f"{first} exponent 2")]
        # The same logarithms, added up in another order.
        assert sorted(history, reverse=True) == pytest.approx([float(e) for e in result.lyapunov_spectrum], abs=1e-12)
        assert len(result.lyapunov_history) == 2 * (6 - warmup - alignment)


def test_the_history_of_a_dead_sample_ends_with_minus_infinity() -> None:
    """One of two samples is dead. The exponent is -inf, and the history must not end with that of the other sample."""
    x = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    result = measure(Rollout(lambda s: 0.5 * torch.relu(s), steps=4), x, measures=["lyapunov_history"])
    assert float(result.lyapunov_max) == -math.inf
    last = float(result.lyapunov_history["step[0]"])
    assert last == -math.inf or math.isnan(last)


def test_every_recurrence_is_measured_by_name() -> None:
    """One profile holds for each recurrence the value that ``steps='time:NAME'`` gives."""
    torch.manual_seed(0)
    model, x = (
        loops.Loop(loops.two_lengths, long=loops.cell(), short=loops.cell()).double(),
        loops.inputs(loops.BATCH, loops.LENGTH, loops.FEATURES),
    )
    result = measure(model, x, steps="time", measures=["recurrence_lyapunov_max"])
    assert set(result.recurrence_lyapunov_max.keys()) == {"long", "short"}
    for name in ("long", "short"):
        alone = measure(model, x, steps=f"time:{name}")
        assert float(result.recurrence_lyapunov_max[name]) == pytest.approx(float(alone.lyapunov_max), abs=1e-12)
    assert "steps='time:short'" in result.steps.left_out
