"""Sample independence: one trajectory per sample if samples do not interact, else a joint one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import loops
import models
import pytest
import torch
from models import ARCHITECTURES, BATCH, LENGTH, WIDTH, Architecture, Cutting, Lambda, Mixer, moved, tower
from torch import Tensor, nn

from pytest_trainability import Rollout, measure
from pytest_trainability.engine.jacobian.qr_sweep import qr_sweep
from pytest_trainability.engine.jacobian.sample_independence import find_trajectories
from pytest_trainability.engine.jacobian.trajectories import Division
from pytest_trainability.engine.jacobian.vjp import random_cotangents
from pytest_trainability.engine.trees import batch_size


def division_of(cutting: Cutting) -> Division:
    return find_trajectories(cutting.chain, batch_size(cutting.inputs), 0)[0].division


def windows(inner: nn.Module) -> nn.Sequential:
    """Cut each sample into windows that join the batch dimension, as Swin does."""
    return nn.Sequential(
        Lambda(lambda x: x.reshape(len(x) * 2, LENGTH // 2, WIDTH)),
        *inner,
        Lambda(lambda x: x.reshape(len(x) // 2, LENGTH, WIDTH)),
    )


SOLO = Division(BATCH, 0)
JOINT = Division(1, 0)


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        pytest.param(lambda: models.mlp(), (BATCH, WIDTH), SOLO, id="samples-alone"),
        pytest.param(lambda: tower(models.Batchnormed), (BATCH, WIDTH), JOINT, id="batch-norm"),
        pytest.param(lambda: tower(models.Batchnormed).eval(), (BATCH, WIDTH), SOLO, id="batch-norm-eval"),
        pytest.param(
            lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Softmax(0), nn.Linear(WIDTH, WIDTH)),
            (BATCH, WIDTH),
            JOINT,
            id="softmax-over-the-batch",
        ),
        pytest.param(lambda: tower(lambda: Mixer(1)), (BATCH, LENGTH, WIDTH), SOLO, id="mixing-positions"),
        pytest.param(
            lambda: moved(tower(lambda: Mixer(0))), (BATCH, LENGTH, WIDTH), Division(BATCH, 1), id="batch-in-dim-1"
        ),
        pytest.param(lambda: windows(tower(lambda: Mixer(1))), (BATCH, LENGTH, WIDTH), SOLO, id="windows"),
        pytest.param(
            lambda: moved(tower(lambda: Mixer(0))), (2, LENGTH, WIDTH), Division(2, 1), id="two-samples-in-dim-1"
        ),
        pytest.param(lambda: tower(lambda: Mixer(0)), (BATCH, LENGTH, WIDTH), JOINT, id="mixing-samples"),
        pytest.param(lambda: models.mlp(), (WIDTH,), JOINT, id="one-dimensional"),
        pytest.param(lambda: models.mlp(), (1, WIDTH), JOINT, id="batch-of-one"),
        pytest.param(lambda: tower(models.Batchnormed, 3).eval(), (1, WIDTH), JOINT, id="batch-norm-of-one"),
        # An interaction in one direction only: nothing flows from the first rows to the others, but back.
        pytest.param(lambda: tower(lambda: Mixer(0, causal=True)), (LENGTH, WIDTH), JOINT, id="causal-without-a-batch"),
        pytest.param(lambda: tower(models.CausalLayer), (LENGTH, WIDTH), JOINT, id="causal-attention-without-a-batch"),
    ],
)
def test_division(model: Callable[[], nn.Module], shape: tuple[int, ...], expected: Division) -> None:
    """The division follows from the computation, not from the names of modules."""
    torch.manual_seed(0)
    built = model()
    cutting = models.cut(built, torch.randn(*shape), _outer(built))
    assert division_of(cutting) == expected


@pytest.mark.parametrize("causal", [False, True], ids=["both-ways", "causal"])
def test_time_in_dimension_0_is_not_mistaken_for_samples(causal: bool) -> None:
    """Inputs with time first: trajectories along dimension 1, or a joint one, but never one per time step."""
    torch.manual_seed(0)
    model = tower(lambda: Mixer(0, causal=causal))
    found = division_of(models.cut(model, torch.randn(LENGTH, BATCH, WIDTH), _outer(model)))
    assert found in {JOINT, Division(BATCH, 1)}


def _outer(model: nn.Module) -> list[str]:
    """Return the names of all direct children with parameters."""
    return [name for name, child in model.named_children() if any(True for _ in child.parameters())]


def test_some_interacting_rows_have_a_joint_trajectory() -> None:
    """Only the two last rows interact, as in a graph whose first nodes are isolated."""
    adjacency = torch.eye(5)
    adjacency[3, 4] = adjacency[4, 3] = 0.5
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Lambda(lambda x: adjacency @ x), nn.Linear(WIDTH, WIDTH))
    assert division_of(models.cut(model, torch.randn(5, WIDTH))) == JOINT


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in ARCHITECTURES])
def test_number_of_trajectories_of_architectures(case: Architecture) -> None:
    """All hand-written models without interaction are measured per sample, whatever tensors their states hold."""
    cutting = models.cut_case(case)
    batch = next(iter(t for t in models.arguments(cutting.inputs)[0] or cutting.inputs.values()))
    expected = 1 if case.joint else len(batch)
    assert division_of(cutting).count == expected


def test_interaction_is_detected_although_a_sample_gets_no_gradient() -> None:
    """The gradient of the first samples vanishes on the way; the interaction of the others is still detected."""
    mask = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0])[:, None]
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH),
        Lambda(lambda x: x + x.mean(0, keepdim=True)),
        nn.Linear(WIDTH, WIDTH),
        Lambda(lambda x: x * mask),
        nn.Linear(WIDTH, WIDTH),
    )
    assert division_of(models.cut(model, torch.randn(5, WIDTH))) == JOINT


def test_the_sweep_of_the_detection_is_that_of_the_first_random_cotangent() -> None:
    """It is computed at other sizes, which are powers of two and change nothing."""
    chain = models.cut_case(next(c for c in ARCHITECTURES if c.id == "mlp")).chain
    trajectories, sweep = find_trajectories(chain, BATCH, 3)
    assert sweep is not None and sweep.trajectories is trajectories
    expected = qr_sweep(trajectories, random_cotangents(chain, 1, 3))
    assert torch.allclose(sweep.logs, expected.logs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [None, 7])
def test_the_common_first_dimension_holds_samples_although_the_inputs_do_not_say_so(batch: int | None) -> None:
    torch.manual_seed(0)
    chain = models.cut(models.mlp(), torch.randn(BATCH, WIDTH)).chain
    assert find_trajectories(chain, batch, 0)[0].division == SOLO


def test_a_joint_trajectory_has_no_sweep_yet() -> None:
    chain = models.cut(tower(models.Batchnormed), torch.randn(BATCH, WIDTH)).chain
    trajectories, sweep = find_trajectories(chain, BATCH, 0)
    assert (trajectories.division, sweep) == (JOINT, None)


def test_rates_that_differ_much_between_independent_samples_are_not_an_interaction() -> None:
    """One sample's gradient shrinks by e^-8 per step, the other's stays: a second pass finds that sizes have no influence."""
    factors = torch.tensor([[1.0], [3e-4]])
    model = tower(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), Lambda(lambda x: factors * x)))
    assert division_of(models.cut(model, torch.randn(2, WIDTH), ["0", "1", "2"])) == Division(2)


def test_one_number_per_sample_in_the_state_keeps_samples_separate() -> None:
    """A flow carries its log-determinant along."""

    class Coupling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))

        def forward(self, x: Tensor, volume: Tensor) -> tuple[Tensor, Tensor]:
            scale = self.net(x[:, :2]).tanh()
            return torch.cat([x[:, 2:] * scale.exp(), x[:, :2]], 1), volume + scale.sum(1)

    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.couplings = nn.ModuleList(Coupling() for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            volume = x.sum(1) * 0
            for coupling in self.couplings:
                x, volume = coupling(x, volume)
            return volume - x.square().sum(1)

    result = measure(Flow, torch.randn(5, 4), seeds=1)
    assert (str(result.steps), result.frame) == ("4 × Coupling", "per sample")


class Halved(nn.Linear):
    """A layer in half precision."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH, dtype=torch.float16)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.half())


def test_samples_are_separate_although_only_the_last_state_has_half_precision() -> None:
    """Float16 cannot hold parts whose sizes differ by 2^30."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), Halved())
    chain = models.cut(model, torch.randn(BATCH, WIDTH), ["0", "1", "2"]).chain
    assert [chain.shapes(i)[0][1] for i in (0, 3)] == [torch.float32, torch.float16]
    assert find_trajectories(chain, BATCH, 0)[0].division == SOLO


# Along time ----------------------------------------------------------------------------------------------------
def time_major(model: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(x.shape[1], loops.WIDTH)
    for entry in x:
        h = model.cell(entry, h)
    return h


@pytest.mark.parametrize(("length", "batch"), [(2, 6), (6, 2), (4, 4), (3, 1), (1, 3)])
def test_time_major_inputs_have_one_trajectory_per_sample(length: int, batch: int) -> None:
    """Inputs are ``(T, B, D)``, where T divides B or B divides T. A trajectory belongs to a sample."""
    torch.manual_seed(0)
    x = loops.inputs(length, batch, loops.FEATURES)
    for model in (nn.GRU(loops.FEATURES, loops.WIDTH).double(), loops.Loop(time_major, cell=loops.cell()).double()):
        if length == 1 and isinstance(model, loops.Loop):
            continue
        chain = loops.cut(model, x)
        assert len(chain) == length
        assert find_trajectories(chain, length, 0)[0].count == batch


def test_samples_that_interact_have_a_joint_trajectory() -> None:
    torch.manual_seed(0)
    model = loops.Loop(loops.normalized, cell=loops.cell(), norm=nn.BatchNorm1d(loops.WIDTH)).double()
    result = measure(model, loops.inputs(loops.BATCH, loops.LENGTH, loops.FEATURES), steps="time")
    assert result.frame == "joint" and result.steps.names == loops.calls_of("norm")
    assert (
        measure(model, loops.inputs(loops.BATCH, loops.LENGTH, loops.FEATURES), steps="time", train=False).frame
        == "per sample"
    )


def scaled(rates: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """A recurrence whose units do not interact."""
    factors = torch.tensor(rates, dtype=torch.float64)
    return lambda state: state * factors


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_units_that_do_not_interact_are_not_trajectories(batch: int) -> None:
    """The largest exponent of a diagonal recurrence, as in a state space model, is that of the slowest unit, not an average."""
    rates = [0.5, 2.0, 1.0]
    # All but one part in 2^60 of a cotangent lies along the leading unit after 60 steps, which alignment leaves out.
    result = measure(Rollout(scaled(rates), steps=80), torch.ones(batch, 3, dtype=torch.float64), alignment=60)
    assert float(result.lyapunov_max) == pytest.approx(math.log(2), abs=1e-12)


def test_a_batch_of_one_is_one_trajectory() -> None:
    torch.manual_seed(0)
    chain = loops.cut(
        loops.Loop(loops.gru_loop, cell=loops.cell()).double(), loops.inputs(1, loops.LENGTH, loops.FEATURES)
    )
    assert find_trajectories(chain, 1, 0)[0].division == Division(1)


class DeadSample(nn.Module):
    """A last step behind which the first sample gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x)) * torch.arange(len(x)).clamp(max=1).unsqueeze(1)


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("mixing", [True, False])
def test_a_sample_without_gradient_does_not_hide_that_samples_interact(mixing: bool, after: int) -> None:
    """The part of the dead sample is zero in all earlier steps. They are compared with another cotangent.

    A normalization over the batch lets each sample influence all others.
    """

    def normalized() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH) if mixing else nn.Tanh())

    torch.manual_seed(0)
    plain = [nn.Linear(WIDTH, WIDTH) for _ in range(after)]
    model = nn.Sequential(normalized(), normalized(), *plain, DeadSample())
    cutting = models.cut(model, torch.randn(BATCH, WIDTH), [str(i) for i in range(len(model))])
    assert division_of(cutting) == Division(1 if mixing else BATCH)


def test_the_sweep_of_independent_samples_is_that_of_one_cotangent_where_one_is_dead() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), DeadSample())
    chain = models.cut(model, torch.randn(BATCH, WIDTH), ["0", "1", "2"]).chain
    trajectories, sweep = find_trajectories(chain, BATCH, 0)
    assert sweep is not None
    plain = qr_sweep(trajectories, random_cotangents(chain, 1, 0))
    assert torch.equal(sweep.logs.nan_to_num(7), plain.logs.nan_to_num(7))
    assert sweep.sums()[0] == -math.inf and sweep.sums()[1:].isfinite().all()


@pytest.mark.parametrize("dead", [False, True])
def test_another_default_device_does_not_apply(dead: bool) -> None:
    """Sizes and rates are on the CPU, also where rates at equal sizes are compared, up to the step where a sample is dead."""
    torch.manual_seed(0)
    factors = torch.tensor([[1.0], [3e-4]])
    last = DeadSample() if dead else nn.Linear(WIDTH, WIDTH)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Lambda(lambda x: factors * x), nn.Linear(WIDTH, WIDTH), last)
    chain = models.cut(model, torch.randn(2, WIDTH), ["0", "2", "3"]).chain
    expected = find_trajectories(chain, 2, 0)[1]
    with torch.device("meta"):
        found = find_trajectories(chain, 2, 0)[1]
    assert found is not None and expected is not None and found.trajectories.count == 2
    assert found.logs.device.type == "cpu"
    torch.testing.assert_close(found.logs, expected.logs, rtol=0, atol=0, equal_nan=True)
