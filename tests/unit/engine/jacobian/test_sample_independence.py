"""Sample independence: one trajectory per sample if samples do not interact, else a joint one."""

from __future__ import annotations

from collections.abc import Callable

import models
import pytest
import torch
from models import ARCHITECTURES, BATCH, LENGTH, WIDTH, Architecture, Cutting
from torch import Tensor, nn

from pytest_trainability.engine.jacobian.qr_sweep import qr_sweep
from pytest_trainability.engine.jacobian.sample_independence import find_trajectories
from pytest_trainability.engine.jacobian.trajectories import Division
from pytest_trainability.engine.jacobian.vjp import random_cotangents
from pytest_trainability.engine.trees import batch_size


def division_of(cutting: Cutting) -> Division:
    return find_trajectories(cutting.chain, batch_size(cutting.inputs), 0)[0].division


class Lambda(nn.Module):
    """A function between layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Mixer(nn.Module):
    """A residual layer that mixes one dimension, all of it or only backwards in time."""

    def __init__(self, dim: int, *, causal: bool = False) -> None:
        super().__init__()
        self.layer, self.dim, self.causal = nn.Linear(WIDTH, WIDTH), dim, causal

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.layer(x))
        mixed = y.cumsum(self.dim) if self.causal else y.mean(self.dim, keepdim=True)
        return x + mixed


def tower(make: Callable[[], nn.Module], depth: int = 3) -> nn.Sequential:
    return nn.Sequential(*[make() for _ in range(depth)])


def moved(inner: nn.Module) -> nn.Sequential:
    """Move the batch to dimension 1, as fairseq and torch.nn's transformers do internally."""
    swap = lambda: Lambda(lambda x: x.transpose(0, 1).contiguous())  # noqa: E731
    return nn.Sequential(swap(), *inner, swap())


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


def test_a_joint_trajectory_has_no_sweep_yet() -> None:
    chain = models.cut(tower(models.Batchnormed), torch.randn(BATCH, WIDTH)).chain
    trajectories, sweep = find_trajectories(chain, BATCH, 0)
    assert (trajectories.division, sweep) == (JOINT, None)


def test_rates_that_differ_much_between_independent_samples_are_not_an_interaction() -> None:
    """One sample's gradient shrinks by e^-8 per step, the other's stays: a second pass finds that sizes have no influence."""
    factors = torch.tensor([[1.0], [3e-4]])
    model = tower(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), Lambda(lambda x: factors * x)))
    assert division_of(models.cut(model, torch.randn(2, WIDTH), ["0", "1", "2"])) == Division(2)
