"""Time as depth: recurrences whose exponents are known. Rows 9, 9b, 9c of the table, faults 24, 25, 33, and mean field.

One matrix for all time steps is not a product of independent ones: its exponents are the logarithms of its eigenvalues'
moduli, which the frame finds as fast as their ratios let it (`alignment`).
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from scipy import integrate, optimize
from torch import Tensor, nn
from towers import F64, linear

from pytest_trainability import Rollout, UsageError, measure

EPS = 1e-12


def inputs(*shape: int, scale: float = 1.0):
    return lambda generator: scale * torch.randn(*shape, generator=generator)


def means(spectrum) -> list[float]:
    return [float(exponent) for exponent in spectrum]


# Row 9: one tied matrix ------------------------------------------------------------------------------------------


def with_eigenvalues(*values: float) -> Tensor:
    """A matrix in a general basis, far from normal."""
    torch.manual_seed(0)
    basis = torch.randn(len(values), len(values), dtype=F64)
    return basis @ torch.diag(torch.tensor(values, dtype=F64)) @ torch.linalg.inv(basis)


def test_a_tied_matrix_has_the_moduli_of_its_eigenvalues():
    """λ_i = ln|eigenvalue|. The frame is there after 150 steps of ratio 0.8 at most: 0.8^300 is below 1e-28."""
    values = (1.3, -1.0, 0.8, -0.5, 0.3, 0.1)
    matrix = with_eigenvalues(*values)
    result = measure(
        lambda: Rollout(linear(matrix), steps=300),
        torch.randn(2, 6, dtype=F64),
        exponents=6,
        alignment=150,
        measures=["lyapunov_spectrum", "spectral_radius"],
    )
    # What round-off of one step turns the frame by, the basis amplifies by its condition number.
    tolerance = 1e-15 * float(torch.linalg.cond(matrix)) ** 2
    assert tolerance < 1e-9
    assert means(result.lyapunov_spectrum) == pytest.approx([math.log(abs(v)) for v in values], abs=tolerance)
    assert all(float(radius) == pytest.approx(1.3, rel=tolerance) for radius in result.spectral_radius.values())


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_the_exponents_sum_to_the_determinant(steps):
    """Row 13 along time: Σλ = ln|det W| from the first step on, whatever the frame."""
    torch.manual_seed(1)
    matrix = torch.randn(6, 6, dtype=F64) / math.sqrt(6)
    result = measure(lambda: Rollout(linear(matrix), steps=steps), torch.randn(2, 6, dtype=F64), exponents=6)
    determinant = float(torch.linalg.slogdet(matrix).logabsdet)
    assert math.fsum(means(result.lyapunov_spectrum)) == pytest.approx(determinant, abs=EPS)


def test_complex_eigenvalues():
    """A rotation in the plane, in a skewed basis, times 0.9: growth swings from step to step, the average does not."""
    angle, skew = 0.7, torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=F64)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=F64)
    matrix = 0.9 * skew @ turn @ torch.linalg.inv(skew)
    result = measure(lambda: Rollout(linear(matrix), steps=1000), torch.randn(2, 2, dtype=F64), exponents=2)
    # ln‖W^n u‖ - n ln 0.9 is bounded by the logarithm of the basis' condition number.
    bound = math.log(float(torch.linalg.cond(skew))) / 1000
    assert means(result.lyapunov_spectrum) == pytest.approx([math.log(0.9)] * 2, abs=2 * bound)
    assert float(result.spectral_radius.max) == pytest.approx(0.9, rel=1e-9)
    rates = [float(rate) for rate in result.growth_rate.values()]
    assert max(rates) - min(rates) > 0.5


def test_normal_and_not():
    """A Jordan block of 0.9: the spectral radius is below one, and the gradient grows at first all the same."""
    matrix = 0.9 * torch.eye(8, dtype=F64) + torch.diag(torch.ones(7, dtype=F64), 1)
    result = measure(lambda: Rollout(linear(matrix), steps=8), torch.randn(2, 8, dtype=F64), seeds=4)
    # The eight eigenvalues of a Jordan block of size n are good to eps^(1/n) only.
    assert float(result.spectral_radius.max) == pytest.approx(0.9, abs=(2.2e-16) ** (1 / 8) * 4)
    assert result.log_gain > 1


# Row 9b: an LSTM without weights -----------------------------------------------------------------------------------


def lstm_without_weights(forget: float, units: int = 8, **options) -> nn.LSTM:
    lstm = nn.LSTM(3, units, dtype=F64, **options)
    for parameter in lstm.parameters():
        nn.init.zeros_(parameter)
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias_"):
            parameter.data[units : 2 * units] = forget / 2
    return lstm


@pytest.mark.parametrize(("forget", "expected"), [(0, -0.693147), (1, -0.313262), (2, -0.126928), (-5, -5.006715)])
def test_lstm_without_weights(forget, expected):
    """c_t = σ(b_f) c_{t-1}, b_f = b_ih + b_hh: N exponents ln σ(b_f); h is made anew: the other N are -∞."""
    result = measure(
        lambda: lstm_without_weights(forget),
        torch.randn(50, 2, 3, dtype=F64),
        steps="time",
        exponents=16,
        alignment=1,  # in the last step the frame leaves the hidden states, which lead nowhere
    )
    exponents = means(result.lyapunov_spectrum)
    assert exponents[:8] == pytest.approx([expected] * 8, abs=1e-6)
    assert exponents[8:] == [-math.inf] * 8
    assert all(float(r) == pytest.approx(math.exp(expected), rel=1e-6) for r in result.spectral_radius.values())
    assert len(result.steps) == 50 and result.frame == "per sample"


def test_every_recurrence_of_a_bidirectional_lstm():
    """Each direction of each layer is a recurrence of its own."""

    def build():
        lstm = lstm_without_weights(0, num_layers=2, bidirectional=True)
        for number, name in enumerate(("l0", "l0_reverse", "l1", "l1_reverse")):
            getattr(lstm, f"bias_ih_{name}").data[8:16] = number
        return lstm

    result = measure(build, torch.randn(50, 2, 3, dtype=F64), steps="time", measures=["recurrence_lyapunov_max"])
    found = {name: float(exponent) for name, exponent in result.recurrence_lyapunov_max.items()}
    # A random cotangent loses its hidden part in the last of 50 steps: on average half its square, give or take.
    for number, name in enumerate(("l0", "l0_reverse", "l1", "l1_reverse")):
        expected = -math.log1p(math.exp(-number))
        assert found[name] == pytest.approx(expected, abs=2 / 50)


# Row 9c: chaos -----------------------------------------------------------------------------------------------------


class Autonomous(nn.Module):
    """`h ← tanh(W h)`, entries of variance g²/N."""

    def __init__(self, gain: float, units: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(gain / math.sqrt(units) * torch.randn(units, units, dtype=dtype))

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(h @ self.weight.T)


def test_chaotic_network():
    """g = 3, N = 256: 0.310 in mean field, 0.300 at this width, where networks scatter."""
    result = measure(lambda: Rollout(Autonomous(3, 256), steps=300), inputs(4, 256), seeds=8, warmup=100, alignment=50)
    error = float(torch.tensor(result.lyapunov_max.values).std()) / math.sqrt(8)
    assert error < 0.003
    assert result.lyapunov_max == pytest.approx(0.300, abs=4 * error)


# Mean field of driven networks ---------------------------------------------------------------------------------------


def gaussian_mean(function) -> float:
    return integrate.quad(lambda z: function(z) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi), -9, 9)[0]


def driven_mean_field(gain: float, drive: float) -> float:
    """½ ln χ with χ = g² E[tanh'(√v z)²] at the fixed point v = g² E[tanh(√v z)²] + drive²."""

    def excess(v: float) -> float:
        return gain**2 * gaussian_mean(lambda z: math.tanh(math.sqrt(v) * z) ** 2) + drive**2 - v

    v = optimize.brentq(excess, 1e-9, gain**2 + drive**2 + 1)
    return math.log(gain**2 * gaussian_mean(lambda z: (1 - math.tanh(math.sqrt(v) * z) ** 2) ** 2)) / 2


def rnn(gain: float, units: int = 128, *, orthogonal: bool = False, features: int = 16) -> nn.RNN:
    """Recurrent weights of variance g²/N, input weights of variance 1/features, no biases."""
    layer = nn.RNN(features, units, bias=False, batch_first=True)
    if orthogonal:
        nn.init.orthogonal_(layer.weight_hh_l0, gain=gain)
    else:
        nn.init.normal_(layer.weight_hh_l0, std=gain / math.sqrt(units))
    nn.init.normal_(layer.weight_ih_l0, std=1 / math.sqrt(features))
    return layer


@pytest.mark.parametrize("gain", [0.7, 1.0, 1.6])
@pytest.mark.parametrize("drive", [0.5, 1.0])
def test_driven_network(gain, drive):
    """Independent inputs decorrelate the steps: N → ∞ is the mean field of untied layers.

    The quenched exponent lies below the annealed ½ ln χ by half the variance of ln‖u‖ per step, which is of order 1/N; four
    standard errors are allowed beside it.
    """
    result = measure(partial(rnn, gain, 256), inputs(8, 100, 16, scale=drive), steps="time", seeds=4, alignment=10)
    error = float(torch.tensor(result.lyapunov_max.values).std()) / 2
    assert error < 0.01
    assert result.lyapunov_max == pytest.approx(driven_mean_field(gain, drive), abs=4 * error + 4 / 256)


@pytest.mark.parametrize(("gain", "orthogonal"), [(0.7, True), (1.0, True), (1.6, True)])
def test_orthogonal_weights_at_rest(gain, orthogonal):
    """Without inputs, and the state at rest, the Jacobian is W: λ = ln g for all exponents."""
    result = measure(
        partial(rnn, gain, 32, orthogonal=orthogonal), torch.zeros(2, 100, 16), steps="time", exponents=4, seeds=2
    )
    assert means(result.lyapunov_spectrum) == pytest.approx([math.log(gain)] * 4, abs=1e-6)


# What float32 cannot say -----------------------------------------------------------------------------------------------


def test_sixty_nats_are_measured():
    """Fault 24: a tanh RNN of gain 0.7 loses about 61 nats over 100 steps, which a float32 norm reports as exactly zero."""
    result = measure(
        partial(rnn, 0.7), inputs(8, 100, 16, scale=0.57), steps="time", seeds=4, measures=["precision_horizon"]
    )
    assert result.log_gain == pytest.approx(-61, abs=3)
    torch.manual_seed(0)
    layer, x = rnn(0.7), 0.57 * torch.randn(8, 100, 16)
    initial = torch.zeros(1, 8, 128, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x, initial)[1].sum(), initial)
    assert float(gradient.square().sum().sqrt()) == 0.0
    # eps of float32 is e^-15.9, and every step loses 0.61.
    assert result.precision_horizon == pytest.approx(15.9 / 0.61, rel=0.1)
    assert result.memory_horizon == pytest.approx(4.6 / 0.61, rel=0.15)


def test_growth_over_time_is_seen():
    """Fault 25: gain 1.6, at rest, is chaotic."""
    result = measure(partial(rnn, 1.6), torch.zeros(4, 100, 16), steps="time", seeds=4)
    assert result.lyapunov_max > 0.3
    assert result.memory_horizon == math.inf


def lstm(forget: float) -> nn.LSTM:
    layer = nn.LSTM(16, 64, batch_first=True)
    nn.init.zeros_(layer.bias_hh_l0)
    nn.init.constant_(layer.bias_ih_l0[64:128].detach(), forget)
    return layer


def test_forget_bias():
    """Fault 33: with -5 the cell forgets within three steps; with 1, the healthy one, it remembers longer than with 0."""
    horizons = {
        forget: float(measure(partial(lstm, forget), inputs(4, 60, 16), steps="time", seeds=3).memory_horizon)
        for forget in (-5, 0, 1)
    }
    assert horizons[-5] < 3 < horizons[0] < horizons[1]


@pytest.mark.parametrize("layer", [nn.RNN, nn.LSTM, nn.GRU])
def test_five_hundred_steps(layer):
    """Ten times the horizon in float32: every step is measured, none is zero, and the exponent does not depend on length."""
    long = measure(partial(layer, 8, 32, batch_first=True), inputs(2, 500, 8), steps="time", alignment=20)
    short = measure(partial(layer, 8, 32, batch_first=True), inputs(2, 100, 8), steps="time", alignment=20)
    assert len(long.steps) == 500
    assert all(math.isfinite(rate) for rate in long.growth_rate.values())
    # Per seed, the average over 480 steps and that over 80: means of steps that are nearly independent.
    for one, other in zip(long.lyapunov_max.values, short.lyapunov_max.values):
        rates = torch.tensor([float(rate) for rate in short.growth_rate.values()])
        assert one == pytest.approx(other, abs=6 * float(rates.std()) * math.sqrt(1 / 80 + 1 / 480) + 0.02)


# Warm-up, history, horizon ------------------------------------------------------------------------------------------------


def test_the_history_ends_at_the_exponent():
    result = measure(
        partial(rnn, 1.0, 32),
        inputs(2, 60, 16),
        steps="time",
        seeds=2,
        exponents=2,
        warmup=10,
        alignment=5,
        measures=["lyapunov_history"],
    )
    history = list(result.lyapunov_history.items())
    assert len(history) == 2 * 45
    assert [name for name, _ in history[:3]] == ["RNN[10]", "RNN[10] exponent 2", "RNN[11]"]
    assert history[-1][0] == "RNN[54] exponent 2"
    found = [float(value) for _, value in history[:2]]
    assert found == pytest.approx(means(result.lyapunov_spectrum), abs=1e-12)
    rates = [float(rate) for rate in result.growth_rate.values()]
    assert float(result.lyapunov_max) == pytest.approx(sum(rates[10:55]) / 45, abs=1e-12)
    assert float(result.log_gain) == pytest.approx(sum(rates), abs=1e-9)


def test_warmup_must_leave_a_step():
    with pytest.raises(UsageError, match=r"warmup and alignment must leave a step.*Got 30 and 30 for a chain of 60"):
        measure(partial(rnn, 1.0, 8), inputs(2, 60, 16), steps="time", warmup=30, alignment=30)
    with pytest.raises(UsageError, match="warmup must be a whole number of at least 0"):
        measure(partial(rnn, 1.0, 8), inputs(2, 60, 16), steps="time", warmup=-1)


@pytest.mark.parametrize("steps", [3, 50])
def test_horizons_of_a_steady_decay(steps):
    """x ← x/2: 1 % is left after ln 100 / ln 2 steps, eps of float64 after 52, within the chain or beyond it."""
    result = measure(lambda: Rollout(linear(torch.eye(3, dtype=F64) / 2), steps=steps), torch.ones(2, 3, dtype=F64))
    assert result.memory_horizon == pytest.approx(math.log(100) / math.log(2), abs=1e-9)
    assert result.precision_horizon == pytest.approx(52, abs=1e-9)


@pytest.mark.parametrize("dt", [0.1, 2.0])
def test_time_has_a_unit(dt):
    """dx/dt = -x in steps of dt: λ = -1 per unit of time, horizons are times."""
    result = measure(
        lambda: Rollout(linear(math.exp(-dt) * torch.eye(3, dtype=F64)), steps=20, dt=dt), torch.ones(2, 3, dtype=F64)
    )
    assert result.lyapunov_max == pytest.approx(-1, abs=EPS)
    assert result.lyapunov_max.unit == "nats/time"
    assert result.log_gain == pytest.approx(-20 * dt, abs=20 * EPS)
    assert result.memory_horizon == pytest.approx(math.log(100), abs=1e-9)
    assert result.memory_horizon.unit == "time"


# What is not finite, dead, over or beside ---------------------------------------------------------------------------------


def test_an_exploding_map_has_an_answer():
    """LAPACK looks for eigenvalues of NaN for ever; a bound on them fails instead."""
    result = measure(Rollout(lambda x: 1e30 * x * x, steps=20), torch.rand(4, 3) + 1, measures=["spectral_radius"])
    assert any(math.isnan(float(radius)) for radius in result.spectral_radius.values())


def test_the_radius_of_a_packed_sequence_is_of_the_samples_that_go_on():
    """Samples that are over keep their state: an identity that is none of the recurrence's."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 8, batch_first=True, dtype=F64)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(nn.utils.rnn.pack_padded_sequence(x, [60, 5, 5, 5], batch_first=True))[1]

    x = torch.randn(4, 60, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = Packed()
    packed = measure(model, x, steps="time", measures=["spectral_radius"]).spectral_radius
    alone = measure(model.rnn, x[:1], steps="time", measures=["spectral_radius"]).spectral_radius
    late = [name for name in packed if int(name.strip("]").rpartition("[")[2]) > 5]
    assert late
    for name in late:
        assert float(packed[name]) == pytest.approx(float(alone[name.replace("rnn", "RNN")]), rel=1e-9)


def test_a_horizon_is_that_of_most_trajectories():
    """One dead sample of four does not make the horizon one step."""
    state = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [3.0, 1.0], [1.0, 1.0]], dtype=F64)
    result = measure(Rollout(lambda s: 0.5 * torch.relu(s), steps=20), state)
    expected = (1 * (math.log(100) / math.log(2)) ** 3) ** (1 / 4)
    assert result.memory_horizon == pytest.approx(expected, rel=1e-9)


def test_a_shared_activation_is_no_recurrence():
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(30))
            self.act, self.rnn = nn.Tanh(), nn.GRU(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = self.act(layer(x))
            return self.rnn(x)[0]

    result = measure(Tower, torch.randn(2, 10, 4), steps="time", seeds=1, measures=["recurrence_lyapunov_max"])
    assert result.steps.description == "10 × GRU"
    assert list(result.recurrence_lyapunov_max) == ["rnn"]


def test_states_that_change_places_are_told_apart():
    """A slow part that is updated every third step: eigenvalues are those of the map, not of a permuted one."""

    class Clockwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.number = 0

        def forward(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            fast, slow = state
            self.number += 1
            if self.number % 3 == 0:
                slow = 2 * slow
            return 0.5 * fast, slow

    state = (torch.ones(2, 3, dtype=F64), torch.ones(2, 3, dtype=F64))
    result = measure(Rollout(Clockwork(), steps=12), (state,), measures=["spectral_radius"])
    found = {int(name.strip("]").rpartition("[")[2]): float(r) for name, r in result.spectral_radius.items()}
    assert len(found) == 5
    assert found == pytest.approx({n: 2.0 if n % 3 == 2 else 1.0 for n in found}, rel=1e-12)


# Loops that update the state themselves -----------------------------------------------------------------------------------


class Euler(nn.Module):
    """`x ← x + dt f(x)` over a hundred steps, with a module for f only."""

    def __init__(self, dt: float) -> None:
        super().__init__()
        self.field, self.dt = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).to(F64), dt

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(100):
            x = x + self.dt * self.field(x)
        return x


@pytest.mark.parametrize("dt", [1e-5, 0.01, 0.1])
def test_what_the_loop_carries_is_the_state(dt):
    """After a call of f, x and f(x) are carried, before the next one only x: the chain is that of a rollout of one step less."""
    torch.manual_seed(0)
    model, x = Euler(dt), torch.randn(4, 4, dtype=F64)
    looped = measure(model, x, steps="time", exponents=4)
    rolled = measure(Rollout(lambda x: x + dt * model.field(x), steps=99), x, exponents=4)
    assert means(looped.lyapunov_spectrum) == pytest.approx(means(rolled.lyapunov_spectrum), abs=EPS)
    assert float(looped.log_gain) == pytest.approx(float(rolled.log_gain), abs=100 * EPS)
    assert any("ends before the last step" in note for note in looped.notes)


def test_a_loop_that_keeps_volumes():
    """Symplectic Euler with a module for the force: all six exponents cancel, whatever the force."""

    class Symplectic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.force = nn.Linear(3, 3).to(F64)

        def forward(self, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
            for _ in range(50):
                p = p + 0.1 * self.force(q)
                q = q + 0.1 * p
            return q, p

    state = torch.randn(4, 3, dtype=F64), torch.randn(4, 3, dtype=F64)
    result = measure(Symplectic(), state, steps="time", exponents=6)
    assert sum(means(result.lyapunov_spectrum)) == pytest.approx(0, abs=EPS)
