"""Lyapunov exponents of a map: the result and its arguments; known systems are in tests/truth/test_maps.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pytest_trainability.dynamics.lyapunov import LyapunovExponents, lyapunov_spectrum
from pytest_trainability.errors import ModelError, UsageError
from pytest_trainability.records.estimates import Estimate, Spectrum

F64 = torch.float64
FACTORS = torch.tensor([0.5, 4.0, 1.0], dtype=F64)
LOGS = [math.log(4), 0.0, -math.log(2)]


def scaling(x: Tensor) -> Tensor:
    return FACTORS * x


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=F64)


def test_exponents_are_a_sequence_of_estimates_largest_first() -> None:
    found = lyapunov_spectrum(scaling, ones(3), steps=20, alignment=100)
    assert isinstance(found, Sequence) and all(isinstance(e, Estimate) for e in found)
    assert [e.mean for e in found] == [e.mean for e in found.spectrum] == pytest.approx(LOGS, abs=1e-12)
    assert len(found) == 3 and found[0].unit == "nats/step"
    assert repr(found).startswith("LyapunovExponents(20 steps: ")


def test_local_exponents_and_history_are_in_the_order_of_the_spectrum() -> None:
    found = lyapunov_spectrum(scaling, ones(3), steps=4, alignment=100)
    assert [list(step) for step in found.local] == [pytest.approx(LOGS, abs=1e-12)] * 4
    drifting = lyapunov_spectrum(lambda x, u: u * x, ones(1), steps=3, inputs=torch.tensor([1.0, 2.0, 4.0], dtype=F64))
    assert [step[0] for step in drifting.local] == pytest.approx([0, math.log(2), math.log(4)])
    assert [step[0] for step in drifting.history] == pytest.approx([0, math.log(2) / 2, math.log(2)])


def test_exponents_are_per_unit_of_time() -> None:
    found = lyapunov_spectrum(scaling, ones(3), steps=10, alignment=100, dt=0.5)
    assert [e.mean for e in found] == pytest.approx([2 * value for value in LOGS], abs=1e-12)
    assert found[0].unit == "nats/time"


def test_fewer_exponents_are_the_leading_ones() -> None:
    found = lyapunov_spectrum(scaling, ones(3), steps=10, alignment=100, exponents=1)
    assert [e.mean for e in found] == pytest.approx(LOGS[:1], abs=1e-12)


def test_warmup_and_alignment_come_before_the_averaged_steps() -> None:
    """All steps advance the state and take their inputs; only the last ones are averaged."""
    u = torch.tensor([100.0, 10.0, 2.0, 2.0], dtype=F64)
    found = lyapunov_spectrum(lambda x, factor: factor * x, ones(1), steps=2, warmup=1, alignment=1, inputs=u)
    assert found[0].mean == pytest.approx(math.log(2))
    assert found.state.tolist() == [4000.0]


def test_each_trajectory_has_its_own_exponents() -> None:
    """Two trajectories with factors 1 and 4: their mean is ln 2, and its interval contains both."""
    factors = torch.tensor([[1.0], [4.0]], dtype=F64)
    found = lyapunov_spectrum(lambda x: factors * x, ones(2, 1), steps=5, batched=True, confidence=0.9)
    assert found[0].values == pytest.approx((0.0, math.log(4)), abs=1e-12)
    assert found[0].mean == pytest.approx(math.log(2))


def test_the_random_numbers_of_a_step_are_seeded_and_the_generators_restored() -> None:
    def noisy(x: Tensor) -> Tensor:
        return x * torch.rand_like(x)

    before = torch.get_rng_state()
    first, again, other = (lyapunov_spectrum(noisy, ones(2), steps=5, seed=seed) for seed in (1, 1, 2))
    assert first.local == again.local != other.local
    assert torch.equal(torch.get_rng_state(), before)


def test_the_initial_state_is_not_changed() -> None:
    state = ones(2)
    found = lyapunov_spectrum(lambda x: x.clone().mul_(2), state, steps=3, warmup=2)
    assert state.tolist() == [1, 1] and found.state.tolist() == [32, 32]


@pytest.mark.parametrize(
    ("exponents", "expected"),
    [
        ([0.4, 0.0, -1.0], 2.4),
        ([0.9, 0.0, -14.5], 2 + 0.9 / 14.5),
        ([-0.5, -1.0], 0.0),
        ([0.0, -1.0], 1.0),
        ([0.3, -math.inf], 1.0),
        ([0.3, -0.1], math.nan),
        ([0.3, -0.3], math.nan),
    ],
    ids=["strange", "lorenz", "point", "cycle", "onto a line", "unknown", "volume-preserving"],
)
def test_kaplan_yorke_dimension(exponents: list[float], expected: float) -> None:
    spectrum = Spectrum(tuple(Estimate(value, math.nan, math.nan, (value,)) for value in exponents))
    found = LyapunovExponents(spectrum, (), (), None)
    assert found.kaplan_yorke_dimension == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("state", "options", "said"),
    [
        (torch.ones(2, dtype=torch.int64), {}, r"state must be a tensor of floats.*torch\.int64"),
        (torch.ones(0), {}, r"state must be a tensor of floats that is not empty.*Got \(0,\)"),
        ("text", {}, r"Got str\."),
        (
            (torch.ones(2), torch.ones(2, dtype=F64)),
            {},
            "one dtype and one device. Got torch.float32 on cpu, torch.float64",
        ),
        ((torch.ones(2, 1), torch.ones(3, 1)), {"batched": True}, r"must count trajectories.*\(2, 1\), \(3, 1\)"),
        (torch.ones(2), {"inputs": torch.ones(3)}, r"warmup \+ alignment \+ steps = 2 steps. Got 3"),
        (torch.ones(2), {"inputs": []}, "Got no tensor"),
        (torch.ones(2), {"confidence": 1.0}, "confidence"),
        (torch.ones(2), {"warmup": -1}, "warmup must be a whole number"),
        (torch.ones(2), {"alignment": 0.5}, "alignment must be a whole number"),
    ],
)
def test_invalid_arguments_are_named(state: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        lyapunov_spectrum(scaling, state, steps=2, **options)


@pytest.mark.parametrize("warmup", [0, 5])
def test_a_state_that_leaves_the_numbers_is_an_error(warmup: int) -> None:
    with pytest.raises(ModelError, match=r"must stay finite\. It became infinite or NaN\. Start elsewhere"):
        lyapunov_spectrum(lambda x: x * 1e200, ones(2), steps=3, warmup=warmup)
