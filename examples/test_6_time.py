"""Time as depth: recurrent networks, simulators and neural ODEs, with `steps="time"`.

One time step is one step of the chain, and the state is everything that is carried from one time step to the next. Fused
layers (`nn.LSTM`) run step by step during the measurement; the model is not changed.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import Measurement, Rollout, at_least, at_most, within

STEPS, FEATURES, UNITS = 100, 16, 64


class Reader(nn.Module):
    """Reads a sequence and classifies it by the last state."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = layer(FEATURES, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def rnn(gain: float) -> nn.Module:
    """Return a vanilla RNN with orthogonal recurrent weights times a gain."""
    model = Reader(nn.RNN)
    nn.init.orthogonal_(model.rnn.weight_hh_l0, gain=gain)
    return model


def lstm(forget: float) -> nn.Module:
    """Return an LSTM with the given bias of the forget gate."""
    model = Reader(nn.LSTM)
    nn.init.zeros_(model.rnn.bias_hh_l0)
    nn.init.constant_(model.rnn.bias_ih_l0[UNITS : 2 * UNITS].detach(), forget)
    return model


def sequences(generator: torch.Generator) -> Tensor:
    """Draw a batch of long sequences."""
    return torch.randn(8, STEPS, FEATURES, generator=generator)


# Bounds are written as along depth. Some measures exist along time only.
@pytest.mark.trainability(memory_horizon=at_least(15), spectral_radius=within(0.5, 1.1))
def test_lstm_remembers(trainability):
    """With a forget bias of 1 more than 1 % of the gradient reaches 15 steps back."""
    trainability(lambda: lstm(1), sequences, steps="time")


def test_what_the_forget_bias_is_for(trainability):
    """Each unit of the forget bias multiplies the memory horizon."""
    horizons = [
        float(trainability(lambda b=b: lstm(b), sequences, steps="time", name=f"bias {b}").memory_horizon)
        for b in (-5, 0, 1)
    ]
    assert horizons[0] < 3 < horizons[1] < horizons[2] / 2


def test_gru(trainability):
    trainability(lambda: Reader(nn.GRU), sequences, steps="time").check(log_gain=within(-80, 0))


# A vanilla RNN loses a large part of its gradient in every step. A norm in float32 would be 0.0.
@pytest.mark.broken_on_purpose
@pytest.mark.trainability(log_gain=within(20))
def test_rnn_of_gain_0_7(trainability):
    trainability(lambda: rnn(0.7), sequences, steps="time")


# Simulators and rollouts -----------------------------------------------------------------------------------------------


def kicked_pendulum(state: Tensor) -> Tensor:
    """Return the state of a pendulum after the next kick: the standard map, which keeps volumes."""
    angle, momentum = state.unbind(-1)
    momentum = momentum + 0.9 * torch.sin(angle)
    return torch.stack([angle + momentum, momentum], dim=-1)


def test_pendulum(trainability):
    """A map that keeps volumes has exponents that add up to 0; near rest, the gradient of a long rollout grows slowly."""
    generator = torch.Generator().manual_seed(0)
    state = torch.tensor([math.pi, 0.0]) + 0.3 * torch.randn(16, 2, generator=generator)
    pendulum = trainability(Rollout(kicked_pendulum, steps=200), state.double(), exponents=2)
    pendulum.check(lyapunov_max=at_most(0.1))
    assert abs(pendulum.lyapunov_spectrum[0] + pendulum.lyapunov_spectrum[1]) < 1e-9


# Neural ODEs -----------------------------------------------------------------------------------------------------------


class NeuralOde(nn.Module):
    """dy/dt = f(y) from 0 to 1, by an adaptive solver."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8))

    def forward(self, y: Tensor) -> Tensor:
        from torchdiffeq import odeint

        return odeint(lambda t, y: self.field(y), y, torch.tensor([0.0, 1.0]), rtol=1e-5, atol=1e-6)[-1]


def test_neural_ode(trainability):
    """The steps of the solver form the chain. The exponent is per unit of time, whatever the sizes of the steps."""
    pytest.importorskip("torchdiffeq", reason="needs torchdiffeq: pip install 'pytest-trainability[ode]'")
    ode = trainability(NeuralOde, lambda g: torch.randn(8, 8, generator=g), steps="time")
    assert ode.lyapunov_max.unit == "nats/time"
    ode.check(lyapunov_max=within(1))


# The Lorenz system ------------------------------------------------------------------------------------------------------


def lorenz(state: Tensor) -> Tensor:
    """Return the velocity of the Lorenz system."""
    x, y, z = state.unbind(-1)
    return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], dim=-1)


def runge_kutta(state: Tensor, dt: float) -> Tensor:
    """Take a step of the classical Runge–Kutta method of order four."""
    k1 = lorenz(state)
    k2 = lorenz(state + dt / 2 * k1)
    k3 = lorenz(state + dt / 2 * k2)
    k4 = lorenz(state + dt * k3)
    return state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def test_truncation_error_grows_as_gradients_do(trainability):
    """The global error of an ODE solver and a gradient obey the same driven linear recurrence.

    e ← J e + (error of this step), forward in time; u ← Jᵀ u + (gradient of this step's loss), backward in time. J is the same:
    both grow at its leading exponent, whatever drives them.
    """
    dt, count, fine = 0.01, 1200, 8
    generator = torch.Generator().manual_seed(0)
    start = torch.tensor([1.0, 1.0, 25.0], dtype=torch.float64) + torch.rand(24, 3, generator=generator).double()
    with torch.no_grad():
        for _ in range(500):
            start = runge_kutta(start, dt)

        coarse = exact = start
        errors = []
        for _ in range(count):
            coarse = runge_kutta(coarse, dt)
            for _ in range(fine):
                exact = runge_kutta(exact, dt / fine)
            errors.append((coarse - exact).norm(dim=1).log())

    states = [start.clone().requires_grad_()]
    for _ in range(count):
        states.append(runge_kutta(states[-1], dt))
    gradients = torch.autograd.grad(sum(state.sum() for state in states), states)
    norms = [gradient.norm(dim=1).log() for gradient in reversed(gradients)]

    def rate(logs: list[Tensor]) -> float:
        """Return the growth per unit of time, from a tenth of the steps to the end."""
        begin = count // 10
        return float((logs[-1] - logs[begin]).mean()) / ((count - begin) * dt)

    rollout: Measurement = trainability(
        Rollout(lambda x: runge_kutta(x, dt), count, dt=dt), start, alignment=count // 10
    )
    rollout.check(lyapunov_max=within(0.7, 1.1))
    assert abs(rate(errors) - rollout.lyapunov_max) < 0.1
    assert abs(rate(norms) - rollout.lyapunov_max) < 0.1
    print(f"error {rate(errors):.3f}, gradient {rate(norms):.3f}, {rollout.lyapunov_max}")
