"""Spectral radii of single steps, for linear layers with known eigenvalues."""

from __future__ import annotations

import math

import loops
import models
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from towers import F64, Elementwise, linear

from pytest_trainability import Rollout, measure
from pytest_trainability.engine.jacobian.trajectories import Division, Trajectories
from pytest_trainability.measures.depth import spectral_radius
from pytest_trainability.measures.depth.spectral_radius import PROBES, spectral_radii


def similar(*eigenvalues: float) -> Tensor:
    """Return a matrix with these eigenvalues that is not normal."""
    upper = torch.diag(torch.tensor(eigenvalues, dtype=F64)) + torch.ones(len(eigenvalues), len(eigenvalues)).triu(1)
    rotation = torch.linalg.qr(torch.randn(upper.shape, generator=torch.Generator().manual_seed(1), dtype=F64)).Q
    return rotation @ upper @ rotation.T


def joint(*layers: nn.Module, width: int) -> Trajectories:
    return Trajectories(models.cut(nn.Sequential(*layers), torch.randn(1, width, dtype=F64)).chain, Division(1))


def test_the_radius_of_a_matrix_that_is_not_normal() -> None:
    """Not its norm. Eigenvalues of this matrix are accurate to about eps times their condition number, below 1e3."""
    found = spectral_radii(joint(linear(similar(0.5, -0.9, 0.1)), linear(similar(0.2, 0.3, -0.1)), width=3), 0)
    assert found == pytest.approx({"0": 0.9, "1": 0.3}, rel=1e-10)


def test_complex_eigenvalues_count_by_their_modulus() -> None:
    turn = 0.8 * torch.tensor([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]], dtype=F64)
    assert spectral_radii(joint(linear(turn), linear(turn), width=2), 0) == pytest.approx({"0": 0.8, "1": 0.8})


@pytest.mark.parametrize("seed", [0, 1])
def test_the_iterative_method_agrees_with_all_eigenvalues(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    torch.manual_seed(3)
    trajectories = joint(linear(torch.randn(40, 40) / 6), linear(torch.randn(40, 40) / 6), width=40)
    expected = spectral_radii(trajectories, seed)
    monkeypatch.setattr(spectral_radius, "DENSE", 39)
    assert spectral_radii(trajectories, seed) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("limit", [0, 1000], ids=["iterated", "dense"])
def test_a_step_of_zero_and_a_step_of_nan(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(spectral_radius, "DENSE", limit)
    trajectories = joint(linear(torch.zeros(9, 9)), linear(torch.full((9, 9), math.nan)), width=9)
    assert spectral_radii(trajectories, 0) == pytest.approx({"0": 0.0, "1": math.nan}, nan_ok=True)


def test_five_steps_are_evenly_spread_over_those_that_keep_the_shape() -> None:
    """Steps 3 and 4 change the width and have no eigenvalues."""
    sizes = [(3, 3)] * 3 + [(3, 4), (4, 3)] + [(3, 3)] * 4
    layers = [linear(torch.ones(m, n)) for n, m in sizes]
    assert list(spectral_radii(joint(*layers, width=3), 0)) == ["0", "2", "5", "6", "8"]
    assert PROBES == 5


def test_one_step_alone() -> None:
    assert list(spectral_radii(joint(linear(torch.ones(3, 3)), width=3), 0)) == ["0"]


@pytest.mark.parametrize(("width", "expected"), [(3, (1 * 2 * 4 * 8) ** 0.25), (300, 1.0)], ids=["four", "one"])
def test_it_is_a_geometric_mean_over_the_first_samples(width: int, expected: float) -> None:
    """Over four of six; over one for states of more than 256 dimensions."""
    factors = torch.tensor([1.0, 2, 4, 8, 100, 100], dtype=F64)[:, None]
    step = nn.Sequential(linear(torch.eye(width)), Elementwise(lambda x: factors * x))
    chain = models.cut(
        nn.Sequential(step, linear(torch.eye(width))), torch.randn(6, width, dtype=F64), ["0", "1"]
    ).chain
    assert spectral_radii(Trajectories(chain, Division(6)), 0)["0"] == pytest.approx(expected, rel=1e-6)


def test_states_of_complex_numbers_have_none() -> None:
    class Turn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(2, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    chain = models.cut(nn.Sequential(Turn(), Turn()), torch.randn(1, 2, dtype=torch.complex64), "*").chain
    assert spectral_radii(Trajectories(chain, Division(1)), 0) == {}


def test_as_a_measure_it_is_averaged_over_seeds_by_logarithms() -> None:
    drawn = iter([0.25, 1.0])
    found = measure(
        lambda: nn.Sequential(*[linear(next_gain * torch.eye(3)) for next_gain in [next(drawn)] * 2]),
        torch.ones(1, 3, dtype=F64),
        seeds=2,
        measures=["spectral_radius"],
    )
    assert found.spectral_radius["0"].mean == pytest.approx(0.5)


# Linear maps, large states and LSTMs ---------------------------------------------------------------------------
SMALL = {
    "complex-pair": loops.rotation(0.7, 0.9),
    "non-normal": torch.tensor([[0.5, 100.0], [0.0, 0.4]], dtype=torch.float64),
    "negative": torch.diag(torch.tensor([-1.5, 1.0, 0.2], dtype=torch.float64)),
    "random": loops.random_matrix(7),
    "zero": torch.zeros(3, 3, dtype=torch.float64),
}


@pytest.mark.parametrize("name", SMALL)
def test_each_step_has_the_spectral_radius_of_its_matrix(name: str) -> None:
    """It belongs to a single step, whatever the product of the steps does."""
    matrix = SMALL[name]
    result = measure(Rollout(loops.linear(matrix), steps=9), loops.start(len(matrix)), measures=["spectral_radius"])
    expected = float(np.abs(np.linalg.eigvals(matrix.numpy())).max())
    assert 1 <= len(result.spectral_radius) <= 5
    # Eigenvalues are good to eps times their condition number, here below 1e4.
    assert [float(v) for v in result.spectral_radius.values()] == pytest.approx(
        [expected] * len(result.spectral_radius), abs=1e-11
    )


@pytest.mark.parametrize("kind", ["random", "symmetric"])
@pytest.mark.parametrize("dense", [100, 1000], ids=["iterated", "dense"])
def test_spectral_radius_of_a_large_state(kind: str, dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The iterated value has the promised precision of 0.1 %, whether a complex pair or a real eigenvalue leads."""
    monkeypatch.setattr(spectral_radius, "DENSE", dense)
    matrix = loops.random_matrix(260) + 0.1 * torch.eye(260, dtype=torch.float64)
    matrix = matrix + matrix.T if kind == "symmetric" else matrix
    result = measure(Rollout(loops.linear(matrix), steps=3), loops.start(260), measures=["spectral_radius"])
    expected = float(np.abs(np.linalg.eigvals(matrix.numpy())).max())
    assert [float(v) for v in result.spectral_radius.values()] == pytest.approx([expected] * 3, rel=1e-3)


def test_a_large_orthogonal_recurrence_is_measured_exactly() -> None:
    """Under the usual initialization of a large RNN, all eigenvalues are on the unit circle, where no iteration converges."""
    torch.manual_seed(0)
    matrix = torch.block_diag(*[loops.rotation(0.01 + 3.1 * i / 130, 1.0) for i in range(130)])
    result = measure(Rollout(loops.linear(matrix), steps=3), loops.start(260, 1), measures=["spectral_radius"])
    # All eigenvalues of the dense matrix, in float64. The iterative method would stop at a thousandth, or be NaN.
    assert [float(v) for v in result.spectral_radius.values()] == pytest.approx(
        [1.0] * len(result.spectral_radius), abs=1e-9
    )


def test_a_large_dead_recurrence_has_spectral_radius_zero() -> None:
    """All units of a ReLU network are dead."""
    result = measure(
        Rollout(lambda state: torch.relu(state - 10), steps=4), loops.start(260), measures=["spectral_radius"]
    )
    assert all(float(v) == 0 for v in result.spectral_radius.values())


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_the_spectral_radius_of_an_lstm_is_that_of_the_map_written_by_hand(length: int) -> None:
    """The states before and after a step must have the same parts in the same order. The order is unknown for x_0."""
    torch.manual_seed(0)
    rnn = nn.LSTM(loops.FEATURES, loops.WIDTH, batch_first=True).double()
    with torch.no_grad():
        rnn.weight_hh_l0.mul_(4)
    x = loops.inputs(1, length, loops.FEATURES)
    maps = [lambda h, c, t=t: loops.lstm(rnn, x[:, t], h, c, "_l0") for t in range(length)]
    matrices, _, _ = loops.jacobians(((loops.zeros(x), loops.zeros(x)), maps))
    expected = {t: float(np.abs(np.linalg.eigvals(matrix)).max()) for t, matrix in enumerate(matrices)}
    result = measure(rnn, x, steps="time", measures=["spectral_radius"])
    found = {int(n.removeprefix("LSTM").strip("[]") or 0): float(v) for n, v in result.spectral_radius.items()}
    assert bool(found) == (length > 1)
    assert found == pytest.approx({t: expected[t] for t in found}, rel=1e-9)


def test_a_step_of_a_packed_batch_is_averaged_over_the_samples_that_it_acts_on() -> None:
    """The second sample ends after three of six steps."""
    torch.manual_seed(0)
    lstm, lengths = nn.LSTM(3, 4, batch_first=True).double(), (6, 3)
    x = torch.randn(2, 6, 3, dtype=F64)

    def radii(inputs: object) -> dict[str, float]:
        found = measure(lstm, (inputs,), steps="time", measures=["spectral_radius"]).spectral_radius
        return {name: e.mean for name, e in found.items()}

    both = radii(pack_padded_sequence(x, torch.tensor(lengths), batch_first=True))
    first, second = (radii(x[i : i + 1, :length]) for i, length in enumerate(lengths))
    assert len(both) == len(first) == 5 and len(second) == 2
    expected = {name: math.sqrt(radius * second[name]) if name in second else radius for name, radius in first.items()}
    assert both == pytest.approx(expected, rel=1e-10)
