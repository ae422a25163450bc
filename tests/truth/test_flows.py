"""Flows through solvers: exponents per unit of time, whichever steps a solver takes. Row 10 with an adaptive solver."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from towers import F64

from pytest_trainability import ModelError, lyapunov_spectrum, measure

torchdiffeq = pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed")


def lorenz(t: Tensor, state: Tensor) -> Tensor:
    x, y, z = state.unbind(-1)
    return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], dim=-1)


class Flow(nn.Module):
    """The solution at time `end`, from the input at 0, with another one on the way."""

    def __init__(self, field, end: float, solve=torchdiffeq.odeint, **options) -> None:
        super().__init__()
        self.field, self.end, self.solve, self.options = field, end, solve, options

    def forward(self, y: Tensor) -> Tensor:
        times = torch.tensor([0, 0.37 * self.end, self.end], dtype=F64)
        return self.solve(self.field, y, times, **self.options)[-1]


class Linear(nn.Module):
    """y' = A y with eigenvalues 0.5, -0.3 ± 2i and -1 in a skewed basis."""

    rates = (0.5, -0.3, -0.3, -1.0)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        basis = torch.randn(4, 4, dtype=F64)
        self.condition = float(torch.linalg.cond(basis))
        normal = torch.block_diag(
            torch.tensor([[0.5]]), torch.tensor([[-0.3, 2.0], [-2.0, -0.3]]), torch.tensor([[-1.0]])
        ).to(F64)
        self.matrix = basis @ normal @ torch.linalg.inv(basis)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y @ self.matrix.T


METHODS = {
    "rk4": {"method": "rk4", "options": {"step_size": 0.1}},
    "midpoint": {"method": "midpoint", "options": {"step_size": 0.02}},
    "adams": {"method": "implicit_adams", "options": {"step_size": 0.05, "max_iters": 30, "max_order": 4}},
    "dopri5": {"method": "dopri5", "rtol": 1e-7, "atol": 1e-9},
    "bosh3": {"method": "bosh3", "rtol": 1e-5, "atol": 1e-7},
}
ERRORS = {"rk4": 1e-4, "midpoint": 1e-3, "adams": 1e-4, "dopri5": 1e-4, "bosh3": 1e-3}
"""Local errors per unit of time, relative: h⁴|A|⁵/120 and the like, with |A| about 2. An adaptive solver keeps its tolerance
relative to the solution, in which the growing mode outweighs the others: a hundred to a thousand times that."""


def test_an_unstable_solver_is_seen_as_one():
    """Adams–Bashforth of high order at a step where its parasitic roots grow: the solution explodes, and so do gradients."""
    field, end = Linear(), 2.0
    options = {"method": "explicit_adams", "options": {"step_size": 0.02}}
    start = torch.randn(2, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    solution = torchdiffeq.odeint(field, start, torch.tensor([0, end], dtype=F64), **options)
    growth = float((solution[1].norm() / solution[0].norm()).log()) / end
    assert growth > 10
    assert measure(Flow(field, end, **options), start, steps="time").lyapunov_max == pytest.approx(growth, rel=0.2)


@pytest.mark.parametrize("solve", [torchdiffeq.odeint, torchdiffeq.odeint_adjoint], ids=["odeint", "adjoint"])
@pytest.mark.parametrize("method", METHODS)
def test_linear_flow(method, solve):
    """λ_i are the real parts of the eigenvalues; ln of a product over time T forgets its ends like (condition number) / T."""
    field, end = Linear(), 12.0
    model = Flow(field, end, solve, **METHODS[method])
    result = measure(model, torch.randn(2, 4, dtype=F64), steps="time", exponents=4, measures=["lyapunov_spectrum"])
    found = [float(exponent) for exponent in result.lyapunov_spectrum]
    assert result.lyapunov_max.unit == "nats/time"
    assert found == pytest.approx(Linear.rates, abs=2 * math.log(field.condition) / end)
    # The volume has no ends: Σλ is the trace, to the solver's error.
    assert math.fsum(found) == pytest.approx(sum(Linear.rates), abs=4 * ERRORS[method])
    assert any("odeint_adjoint" in note for note in result.notes) == (solve is not torchdiffeq.odeint)


def test_steps_of_a_fixed_grid_are_known_exactly():
    """One step of the classical method multiplies an eigenvector by 1 + z + z²/2 + z³/6 + z⁴/24, z = h·rate."""
    model = Flow(lambda t, y: -0.7 * y, 2.0, method="rk4", options={"step_size": 0.25})
    result = measure(model, torch.ones(2, 3, dtype=F64), steps="time")
    z = -0.7 * 0.25
    assert len(result.steps) == 8
    assert result.lyapunov_max == pytest.approx(math.log(1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24) / 0.25, abs=1e-12)


def test_lorenz_with_an_adaptive_solver():
    """0.9056, 0, -14.5723; the sum is -(10 + 1 + 8/3) everywhere, to the solver's tolerance."""

    def step(state: Tensor) -> Tensor:
        return torchdiffeq.odeint(lorenz, state, torch.tensor([0, 0.1], dtype=F64), rtol=1e-7, atol=1e-7)[-1]

    start = torch.tensor([1.0, 1.0, 25.0], dtype=F64) + torch.rand(
        60, 3, dtype=F64, generator=torch.Generator().manual_seed(0)
    )
    found = lyapunov_spectrum(step, start, steps=150, dt=0.1, batched=True, warmup=50, alignment=10)
    errors = [float(torch.tensor(e.values, dtype=F64).std()) / math.sqrt(60) for e in found]
    assert max(errors) < 0.02
    for exponent, expected, error in zip(found, (0.9056, 0, -14.5723), errors):
        assert float(exponent) == pytest.approx(expected, abs=4 * error)
    assert math.fsum(map(float, found)) == pytest.approx(-(10 + 1 + 8 / 3), abs=1e-4)


def test_lorenz_through_the_steps_of_a_solver():
    """The same flow as a model: the backward sweep, over the steps that the solver chose, finds the same volume and rate."""
    generator = torch.Generator().manual_seed(0)
    start = torch.tensor([1.0, 1.0, 25.0], dtype=F64) + torch.rand(12, 3, dtype=F64, generator=generator)
    model = Flow(lorenz, 8.0, rtol=1e-5, atol=1e-5)
    result = measure(model, start, steps="time", exponents=3, warmup=20, alignment=20)
    found = [float(exponent) for exponent in result.lyapunov_spectrum]
    # The chain ends with the step that reaches beyond the end.
    assert sum(1 for _ in result.steps) >= 8 and result.steps.description.endswith("dopri5 step")
    assert math.fsum(found) == pytest.approx(-(10 + 1 + 8 / 3), abs=2e-2)
    # Rates over 7 units of time scatter by about 0.2 from trajectory to trajectory.
    assert found[0] == pytest.approx(0.9056, abs=4 * 0.2 / math.sqrt(12))


@pytest.mark.parametrize("calls", [1, 10])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-8])
def test_an_adaptive_solver_ends_where_it_is_told_to(calls, tolerance):
    """It steps beyond the end and interpolates: the chain ends at the end, and y' = y gains just T nats."""

    class Growth(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            for _ in range(calls):
                times = torch.tensor([0, 1.0], dtype=F64)
                y = torchdiffeq.odeint(lambda t, y: y, y, times, rtol=tolerance, atol=tolerance)[-1]
            return y

    result = measure(
        Growth(), torch.ones(2, 3, dtype=F64), steps="time", loss=lambda y: y.sum(), measures=["loss_log_gain"]
    )
    # An interpolant is as good as the solver; its errors add up over the calls.
    assert result.log_gain == pytest.approx(calls, abs=20 * calls * tolerance)
    assert result.loss_log_gain == pytest.approx(calls, abs=20 * calls * tolerance)
    assert result.lyapunov_max == pytest.approx(1, abs=20 * tolerance)


def test_an_adjoint_that_cannot_be_solved_says_what_to_do():
    """What contracts fast explodes on the way back, and an adaptive step becomes zero."""
    flow = Flow(lambda t, y: -10 * y - y**3, 9.0, torchdiffeq.odeint_adjoint, adjoint_params=())
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), flow).double()
    with pytest.raises(
        ModelError, match=r"AssertionError: underflow in dt .* Loosen its tolerances .* instead of odeint_adj"
    ):
        measure(model, torch.ones(2, 3, dtype=F64))
