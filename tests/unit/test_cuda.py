"""Tests that need a GPU. They are skipped with that reason where there is none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import zoo
from torch import nn

from pytest_trainability import Measurement, Rollout, measure
from pytest_trainability.checks.baseline_entries import Entry, find_entry
from pytest_trainability.checks.baselines import compare
from pytest_trainability.engine.capture.fused_rnn import Unrolling
from pytest_trainability.engine.capture.recorder import capture
from pytest_trainability.engine.runs.building import choose_device
from pytest_trainability.measures import MEASURES, recorded_along

RECORDED = tuple(m.name for m in recorded_along("depth"))

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device on this machine"),
]


def tower() -> nn.Module:
    return nn.Sequential(*[layer for _ in range(12) for layer in (nn.Linear(32, 32), nn.Tanh())])


def test_cuda_is_the_default_for_a_factory() -> None:
    assert measure(tower, torch.randn(4, 32), seeds=1).device.startswith("cuda")


def test_a_finished_module_stays_where_it_is() -> None:
    assert measure(tower(), torch.randn(4, 32)).device == "cpu"
    assert measure(tower().cuda(), torch.randn(4, 32)).device == "cuda:0"


def test_workers_share_the_devices() -> None:
    count = torch.cuda.device_count()
    assert choose_device("cuda", fixed=False, worker=count + 1) == torch.device("cuda", 1 % count)


@pytest.mark.parametrize("exponents", [1, 5])
def test_float64_gives_the_same_numbers_as_on_the_cpu(exponents: int) -> None:
    """Weights, inputs and cotangents are the same. A chain of 12 well-conditioned products loses a few digits at most."""
    inputs = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    found, expected = (
        measure(tower, inputs, seeds=2, exponents=exponents, dtype="float64", device=device)
        for device in ("cuda", "cpu")
    )
    for one, other in zip(found.lyapunov_spectrum, expected.lyapunov_spectrum):
        assert one.values == pytest.approx(other.values, abs=1e-9)
    for name, norm in found.gradient_norm.items():
        assert norm.values == pytest.approx(expected.gradient_norm[name].values, rel=1e-9)


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.id)
def test_an_architecture_has_the_same_chain_on_both_devices(case: zoo.Case) -> None:
    """Dropout draws different numbers on the two devices, so that only eval mode can be compared."""
    pytest.importorskip("transformers")
    found, expected = (measure(case.build, case.inputs, seeds=1, train=False, device=d) for d in ("cuda", "cpu"))
    assert found.steps.names == expected.steps.names
    assert found.frame == expected.frame
    # float32 and other kernels: a thousand times the rounding of one product, over tens of them.
    assert float(found.log_gain) == pytest.approx(float(expected.log_gain), abs=1e-2)


def entry(result: Measurement) -> Entry:
    wanted = [MEASURES[name] for name in RECORDED]
    result.run(wanted)
    return result._entry(wanted)


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.id)
def test_a_baseline_of_the_cpu_holds_on_cuda(case: zoo.Case) -> None:
    """In train mode, where dropout masks differ, an entry of one device is found and unchanged on the other."""
    pytest.importorskip("transformers")
    recorded, found = (entry(measure(case.build, case.inputs, seeds=4, device=d)) for d in ("cpu", "cuda"))
    assert (recorded.key, found.key) == ("cpu float32", "cuda float32")
    assert find_entry({recorded.key: recorded}, found) is recorded
    assert recorded.draws == found.draws
    assert compare(recorded, found, {m.name: m.tolerance for m in MEASURES.values()}) == ()


def test_cotangents_that_do_not_fit_are_carried_in_portions() -> None:
    """Eight exponents are measured even if only a few cotangents fit at once."""

    def wide() -> nn.Module:
        return nn.Sequential(*[layer for _ in range(4) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())])

    images = torch.randn(8, 16, 256, 256)
    expected = measure(wide, images, seeds=1, exponents=8, device="cuda")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1.5 * 2**30 / total))
    try:
        found = measure(wide, images, seeds=1, exponents=8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [e.mean for e in found.lyapunov_spectrum] == pytest.approx(
        [e.mean for e in expected.lyapunov_spectrum], abs=1e-3
    )


def test_generators_and_precision_are_left_as_they_were() -> None:
    torch.cuda.manual_seed(3)
    state, tf32 = torch.cuda.get_rng_state(), torch.get_float32_matmul_precision()
    measure(tower, torch.randn(4, 32), target=torch.randint(32, (4,)), loss=F.cross_entropy, seeds=2)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.get_float32_matmul_precision() == tf32


RECURRENT = [
    pytest.param(lambda: nn.RNN(8, 16, 2), id="RNN"),
    pytest.param(lambda: nn.LSTM(8, 16, 2, proj_size=5), id="LSTM"),
    pytest.param(lambda: nn.GRU(8, 16, bidirectional=True), id="GRU"),
]


@pytest.mark.parametrize("build", RECURRENT)
def test_unrolled_layers_compute_what_cudnn_does(build) -> None:
    """Both sum some tens of products in float32, in different orders."""
    torch.manual_seed(0)
    layer, x = build().cuda(), torch.randn(30, 4, 8, device="cuda")
    fused = layer(x)[0]
    unrolled = capture(layer, (x,), {}, instruments=[Unrolling]).output[0]
    assert torch.allclose(unrolled, fused, atol=1e-5)


@pytest.mark.parametrize("build", RECURRENT)
def test_time_steps_are_the_same_on_both_devices(build) -> None:
    x = torch.randn(30, 4, 8, generator=torch.Generator().manual_seed(0))
    wanted = ["lyapunov_spectrum", "spectral_radius", "recurrence_lyapunov_max"]
    found, expected = (
        measure(build, x, seeds=2, steps="time", exponents=3, dtype="float64", device=device, measures=wanted)
        for device in ("cuda", "cpu")
    )
    assert found.steps.names == expected.steps.names
    assert found.frame == expected.frame == "per sample"
    for one, other in zip(found.lyapunov_spectrum, expected.lyapunov_spectrum):
        assert one.values == pytest.approx(other.values, abs=1e-9)
    for name in wanted[1:]:
        for element, estimate in getattr(expected, name).items():
            assert getattr(found, name)[element].values == pytest.approx(estimate.values, rel=1e-6)


def test_a_rollout_runs_where_its_state_is() -> None:
    start = torch.rand(4, 2, dtype=torch.float64, device="cuda")
    result = measure(Rollout(lambda x: 3.9 * x * (1 - x), steps=50), start)
    assert float(result.lyapunov_max) == pytest.approx(
        float(measure(Rollout(lambda x: 3.9 * x * (1 - x), steps=50), start.cpu()).lyapunov_max), abs=1e-3
    )
