"""One trajectory per sample where samples do not interact, one for all where they do: found out by measurement."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from models import ARCHITECTURES, BATCH, LENGTH, WIDTH, Architecture, Cutting
from torch import Tensor, nn

from pytest_trainability.engine.capture.chain import Chain
from pytest_trainability.engine.jacobian.qr_sweep import qr_sweep
from pytest_trainability.engine.jacobian.sample_independence import find_trajectories
from pytest_trainability.engine.jacobian.trajectories import Division, Trajectories
from pytest_trainability.engine.jacobian.vjp import random_cotangents
from pytest_trainability.engine.trees import batch_size

CPU = torch.device("cpu")
BY_ID = {case.id: case for case in ARCHITECTURES}


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
    """Hand the batch over in dimension 1, as fairseq and torch.nn's transformers do inside."""
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
    """The model decides, not the names of its modules."""
    torch.manual_seed(0)
    built = model()
    cutting = models.cut(built, torch.randn(*shape), _outer(built))
    assert division_of(cutting) == expected


@pytest.mark.parametrize("causal", [False, True], ids=["both-ways", "causal"])
def test_time_in_dim_0_is_not_taken_for_samples(causal: bool) -> None:
    """Inputs with time first: the batch in dimension 1, or one joint trajectory, but never one trajectory per time step."""
    torch.manual_seed(0)
    model = tower(lambda: Mixer(0, causal=causal))
    found = division_of(models.cut(model, torch.randn(LENGTH, BATCH, WIDTH), _outer(model)))
    assert found in {JOINT, Division(BATCH, 1)}


def _outer(model: nn.Module) -> list[str]:
    """Every direct child with a weight."""
    return [name for name, child in model.named_children() if any(True for _ in child.parameters())]


def test_some_interacting_rows_have_a_joint_trajectory() -> None:
    """Only the two last rows talk to each other, as in a graph whose first nodes are isolated."""
    adjacency = torch.eye(5)
    adjacency[3, 4] = adjacency[4, 3] = 0.5
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Lambda(lambda x: adjacency @ x), nn.Linear(WIDTH, WIDTH))
    assert division_of(models.cut(model, torch.randn(5, WIDTH))) == JOINT


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in ARCHITECTURES])
def test_number_of_trajectories_of_architectures(case: Architecture) -> None:
    """All hand-written ones whose samples do not interact are measured per sample, whatever crosses the boundary."""
    cutting = models.cut_case(case)
    batch = next(iter(t for t in models.arguments(cutting.inputs)[0] or cutting.inputs.values()))
    expected = 1 if case.joint else len(batch)
    assert division_of(cutting).count == expected


def test_interaction_is_found_behind_a_sample_that_gets_no_gradient() -> None:
    """The first samples' gradient vanishes on the way; the interaction of the others must still be seen."""
    mask = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0])[:, None]
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH),
        Lambda(lambda x: x + x.mean(0, keepdim=True)),
        nn.Linear(WIDTH, WIDTH),
        Lambda(lambda x: x * mask),
        nn.Linear(WIDTH, WIDTH),
    )
    assert division_of(models.cut(model, torch.randn(5, WIDTH))) == JOINT


def test_names() -> None:
    """As printed."""
    assert Division(4).name == "per sample"
    assert Division(1).name == "joint"


@pytest.mark.parametrize(
    ("division", "shape"),
    [
        (Division(3, 0), (3, 5)),
        (Division(3, 0), (6, 2, 2)),
        (Division(3, 1), (4, 3, 2)),
        (Division(1), (4, 3)),
        (Division(1), ()),
    ],
    ids=str,
)
def test_rows_restore_and_multiply_agree(division: Division, shape: tuple[int, ...]) -> None:
    """Three views of the same grouping."""
    columns = torch.randn(2, *shape, dtype=torch.float64)
    rows = division.rows(columns)
    assert rows.shape == (division.count, 2, columns[0].numel() // division.count)
    assert torch.equal(division.restore(rows, torch.Size(shape)), columns)
    factors = torch.arange(1, division.count + 1, dtype=torch.float64)
    scaled = torch.stack([division.multiply(column, factors) for column in columns])
    assert torch.equal(division.rows(scaled), rows * factors[:, None, None])
    for number, column in enumerate(columns):
        torch.testing.assert_close(division.norms([column, None]), rows[:, number].norm(dim=1))


def one_sample(inputs: Any, index: int) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[index : index + 1]
    if isinstance(inputs, tuple):
        return tuple(one_sample(value, index) for value in inputs)
    return {key: one_sample(v, index) if isinstance(v, Tensor) else v for key, v in inputs.items()}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "name", ["mlp", "unet", "lstm-loop", "add-outside", "encoder-decoder", "batch-norm-eval", "views"]
)
def test_per_sample_is_sample_by_sample(name: str, count: int) -> None:
    """A trajectory of the batch is the trajectory of its sample alone, all exponents of it."""
    case = BY_ID[name]
    model, inputs = models.build(case, dtype=torch.float64)
    steps = case.steps
    together = models.cut(model, inputs, steps).chain
    columns = random_cotangents(together, count, 3)
    sums = qr_sweep(Trajectories(together, Division(BATCH, 0)), columns).sums()
    for index in range(BATCH):
        alone = models.cut(model, one_sample(inputs, index), steps).chain
        own = [None if c is None else c[:, index : index + 1] for c in columns]
        expected = qr_sweep(Trajectories(alone, Division(1)), own).sums()
        torch.testing.assert_close(sums[index : index + 1], expected, rtol=0, atol=1e-9)


def test_batch_in_dim_1_is_sample_by_sample() -> None:
    """The same where the batch is the second dimension of every state."""
    torch.manual_seed(0)
    model = moved(tower(lambda: Mixer(0))).double()
    inputs = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
    names = ["1", "2", "3"]

    def chain_for(x: Tensor) -> Chain:
        return models.cut(model, x, names).chain

    together = chain_for(inputs)
    columns = random_cotangents(together, 2, 3)
    sums = qr_sweep(Trajectories(together, Division(BATCH, 1)), columns).sums()
    for index in range(BATCH):
        own = [None if c is None else c[:, :, index : index + 1] for c in columns]
        expected = qr_sweep(Trajectories(chain_for(inputs[index : index + 1]), Division(1)), own).sums()
        torch.testing.assert_close(sums[index : index + 1], expected, rtol=0, atol=1e-9)


def test_one_vanished_sample_does_not_hide_the_others() -> None:
    """Trajectories are apart: one sample behind a dead unit leaves the others finite."""
    mask = torch.tensor([1.0, 0.0, 1.0])[:, None]
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Lambda(lambda x: x * mask), nn.Linear(WIDTH, WIDTH))
    chain = models.cut(model, torch.randn(3, WIDTH)).chain
    sums = qr_sweep(Trajectories(chain, Division(3)), random_cotangents(chain, 2, 0)).sums()
    assert sums[1].tolist() == [-math.inf, -math.inf]
    assert bool(torch.isfinite(sums[[0, 2]]).all())
