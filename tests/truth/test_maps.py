"""Maps and flows whose exponents are known: row 10 of the table, and boring systems.

Tolerances: the mean over B trajectories of T steps has a standard error that their scatter shows; four of them are allowed. A
volume that a map contracts by the same factor everywhere is exact, up to round-off of T logarithms.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from pytest_trainability import LyapunovExponents, ModelError, UsageError, lyapunov_spectrum

F64 = torch.float64


def start(*shape: int, low: float = 0.1, high: float = 0.2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.empty(*shape, dtype=F64).uniform_(low, high, generator=generator)


def logistic(x: Tensor) -> Tensor:
    return 4 * x * (1 - x)


def henon(state: Tensor) -> Tensor:
    x, y = state.unbind(-1)
    return torch.stack([1 - 1.4 * x**2 + y, 0.3 * x], dim=-1)


def ikeda(state: Tensor) -> Tensor:
    x, y = state.unbind(-1)
    t = 0.4 - 6 / (1 + x**2 + y**2)
    u = 0.9
    return torch.stack([1 + u * (x * t.cos() - y * t.sin()), u * (x * t.sin() + y * t.cos())], dim=-1)


def lorenz(state: Tensor) -> Tensor:
    x, y, z = state.unbind(-1)
    return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], dim=-1)


def runge_kutta(field, dt: float):
    def step(x: Tensor) -> Tensor:
        k1 = field(x)
        k2 = field(x + dt / 2 * k1)
        k3 = field(x + dt / 2 * k2)
        k4 = field(x + dt * k3)
        return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    return step


def standard_error(found: LyapunovExponents, index: int) -> float:
    values = torch.tensor(found[index].values, dtype=F64)
    return float(values.std() / math.sqrt(len(values)))


def test_logistic_map_at_four() -> None:
    """λ = ln 2, by conjugacy with the tent map."""
    found = lyapunov_spectrum(logistic, start(2000, 1, low=0.01, high=0.99), steps=200, batched=True, warmup=20)
    assert float(found[0]) == pytest.approx(math.log(2), abs=4 * standard_error(found, 0))
    assert standard_error(found, 0) < 2e-3


def test_cat_map() -> None:
    """The same matrix everywhere: λ = ± ln((3 + √5)/2), once the frame has turned into the eigenvectors."""
    cat = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=F64)
    found = lyapunov_spectrum(lambda x: (x @ cat.T) % 1, start(2), steps=200, alignment=40)
    assert [float(e) for e in found] == pytest.approx([0.9624236501192069, -0.9624236501192069], abs=1e-12)


def test_henon_map() -> None:
    found = lyapunov_spectrum(henon, start(500, 2), steps=500, batched=True, warmup=200, alignment=50)
    assert float(found[0]) == pytest.approx(0.41922, abs=4 * standard_error(found, 0))
    assert float(found[1]) == pytest.approx(-1.62319, abs=4 * standard_error(found, 1))
    assert standard_error(found, 0) < 1e-3
    assert sum(map(float, found)) == pytest.approx(math.log(0.3), abs=1e-12)


def test_ikeda_map_contracts_the_same_everywhere() -> None:
    found = lyapunov_spectrum(ikeda, start(200, 2), steps=100, batched=True, warmup=200, alignment=50)
    assert float(found[0]) > 0.4
    assert sum(map(float, found)) == pytest.approx(2 * math.log(0.9), abs=1e-12)


def test_lorenz_system() -> None:
    """Per unit of time. The divergence is −(10 + 1 + 8/3) everywhere; RK4 at 0.01 keeps it to its own order."""
    dt = 0.01
    found = lyapunov_spectrum(
        runge_kutta(lorenz, dt),
        start(200, 3, low=1, high=10),
        steps=5000,
        batched=True,
        dt=dt,
        warmup=1500,
        alignment=1000,
    )
    assert float(found[0]) == pytest.approx(0.9056, abs=4 * standard_error(found, 0))
    assert float(found[1]) == pytest.approx(0, abs=4 * standard_error(found, 1) + 1e-3)
    assert float(found[2]) == pytest.approx(-14.5723, abs=4 * standard_error(found, 2) + 1e-3)
    assert standard_error(found, 0) < 1e-2
    assert sum(map(float, found)) == pytest.approx(-(11 + 8 / 3), abs=1e-3)
    assert found[0].unit == "nats/time"


# Boring systems ------------------------------------------------------------------------------------------------------


def test_the_identity_does_nothing() -> None:
    found = lyapunov_spectrum(lambda x: x.clone(), start(3), steps=10)
    # a frame is orthonormal up to round-off
    assert [float(e) for e in found] == pytest.approx([0.0, 0.0, 0.0], abs=1e-15)


def test_a_diagonal_map_has_the_logarithms_of_its_factors_sorted() -> None:
    factors = torch.tensor([0.5, 2.0, 1.0], dtype=F64)
    found = lyapunov_spectrum(lambda x: factors * x, start(3), steps=50, alignment=200)
    assert [float(e) for e in found] == pytest.approx([math.log(2), 0.0, -math.log(2)], abs=1e-12)


def test_a_map_onto_a_point_has_no_finite_exponent() -> None:
    found = lyapunov_spectrum(lambda x: 0 * x, start(2), steps=5)
    assert [float(e) for e in found] == [-math.inf, -math.inf]


def test_a_fixed_point_has_the_exponents_of_its_linearization() -> None:
    """At rest at a stable fixed point nothing happens, which is where seven years of wrong answers came from elsewhere."""
    found = lyapunov_spectrum(lambda x: 0.5 * torch.sin(x), torch.zeros(2, dtype=F64), steps=20)
    assert [float(e) for e in found] == pytest.approx([-math.log(2)] * 2, abs=1e-12)


def test_a_shear_has_exponent_zero() -> None:
    """Not diagonalizable: the length grows as a power, the exponent is zero as 1/T ln T."""
    shear = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=F64)
    found = lyapunov_spectrum(lambda x: shear @ x, start(2), steps=300)
    assert [float(e) for e in found] == pytest.approx([0, 0], abs=2 * math.log(300) / 300)
    assert sum(map(float, found)) == pytest.approx(0, abs=1e-12)


def test_a_few_exponents_of_a_large_state_are_the_first_of_all() -> None:
    """Two ways to push a frame: by the whole Jacobian, and column by column."""
    weight = 1.5 * torch.randn(12, 12, dtype=F64, generator=torch.Generator().manual_seed(1)) / 12**0.5

    def step(state: dict[str, Tensor]) -> dict[str, Tensor]:
        x = torch.cat([state["h"], state["c"]], dim=-1)
        return dict(zip(("h", "c"), torch.tanh(x @ weight.T).split([5, 7], dim=-1)))

    state = {"h": start(3, 5), "c": start(3, 7)}
    # the frames begin with other columns: aligned they agree
    few, every = (lyapunov_spectrum(step, state, steps=50, exponents=k, alignment=300, batched=True) for k in (3, 12))
    assert len(every) == 12
    assert [float(e) for e in few] == pytest.approx([float(e) for e in every[:3]], abs=1e-6)


def test_inputs_drive_the_map_and_a_trajectory_is_alike_alone_and_in_a_batch() -> None:
    drive = torch.linspace(0, 1, 60, dtype=F64)

    def step(x: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(1.3 * x + u) * torch.tensor([1.0, 0.5], dtype=F64)

    both = start(2, 2)
    together = lyapunov_spectrum(step, both, steps=40, alignment=20, inputs=drive, batched=True)
    alone = [lyapunov_spectrum(step, x, steps=40, alignment=20, inputs=drive) for x in both]
    for i, exponent in enumerate(together):
        assert exponent.values == pytest.approx([float(found[i]) for found in alone], abs=1e-12)


def test_history_ends_at_the_average_of_the_local_exponents() -> None:
    found = lyapunov_spectrum(henon, start(2), steps=30)
    assert found.history[-1] == pytest.approx([float(e) for e in found], abs=1e-12)
    assert len(found.local) == len(found.history) == 30


def test_the_kaplan_yorke_dimension_of_henon() -> None:
    """1 + λ_1/|λ_2| = 1.2583 for the values of the table."""
    found = lyapunov_spectrum(henon, start(500, 2), steps=500, batched=True, warmup=200, alignment=50)
    assert found.kaplan_yorke_dimension == pytest.approx(1.2583, abs=2e-3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1. Got 0"),
        ({"steps": 2, "dt": -1.0}, "dt must be a positive number"),
        ({"steps": 2, "exponents": 0}, "exponents must be a whole number of at least 1, or None for all. Got 0"),
        ({"steps": 2, "inputs": torch.zeros(3)}, "first dimension counts warmup + alignment + steps = 2 steps. Got 3"),
        ({"steps": 2, "state": torch.zeros(2, dtype=torch.int64)}, "state must be a tensor of floats"),
        ({"steps": 2, "step": 3}, "step must be a function"),
    ],
)
def test_misuse_says_what_must_hold(arguments: dict, said: str) -> None:
    given = {"step": henon, "state": start(2), **arguments}
    with pytest.raises(UsageError, match=re.escape(said)):
        lyapunov_spectrum(given.pop("step"), given.pop("state"), **given)


def test_a_state_that_explodes_or_changes_its_shape_is_an_error() -> None:
    with pytest.raises(ModelError, match="the state must stay finite"):
        lyapunov_spectrum(lambda x: x**3 * 1e100, start(2), steps=50)
    with pytest.raises(ModelError, match="step must return a state like its argument"):
        lyapunov_spectrum(lambda x: x[:1], start(2), steps=5)


def test_a_step_must_depend_on_the_state() -> None:
    """Without a path in the autograd graph there is no exponent; -inf would look like a measured number."""
    with pytest.raises(ModelError, match=r"step must depend on the state.*Look for \.detach\(\)"):
        lyapunov_spectrum(lambda x: 4 * x.detach() * (1 - x.detach()), start(3), steps=5)
