"""Models of one size: how they are built, and how they are trained before the measurement."""

from __future__ import annotations

import math
import random
import re
import warnings
from functools import partial

import pytest
import torch
from families import ONES, Scaled, perceptron, scaled, vectors
from torch import Tensor, nn

from pytest_trainability import (
    ModelError,
    UsageError,
    width_sweep,
)
from pytest_trainability.measurement import Context
from pytest_trainability.scaling.arguments import as_options
from pytest_trainability.scaling.family import Member, as_training

FAILING = {
    "build raises": ({"build": lambda n: nn.Linear(n, -n)}, ModelError, "at width 2: the function must build a model."),
    "no model": ({"build": lambda n: n}, ModelError, "at width 2: the function must return a torch.nn.Module"),
    "does not run": ({"build": lambda n: nn.Linear(n, n)}, ModelError, "at width 2: the model must run on its inputs"),
    "inputs_of raises": (
        {"inputs": None, "inputs_of": lambda n: torch.ones(-n)},
        UsageError,
        "at width 2: inputs_of must make the inputs of every size. inputs_of(2) raised RuntimeError",
    ),
    "no loss": ({"after_steps": 1}, UsageError, "at width 2: after_steps= must come with a loss to train on"),
    "no optimizer": (
        {"after_steps": 1, "loss": Tensor.sum, "optimizer": lambda parameters: None},
        UsageError,
        "at width 2: optimizer must be a function of the parameters that makes a torch.optim.Optimizer of them.",
    ),
    "does not train": (
        {"after_steps": 1, "loss": Tensor.sum, "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=-1)},
        UsageError,
        "at width 2: optimizer must be a function of the parameters that makes a torch.optim.Optimizer of them.",
    ),
}


@pytest.mark.parametrize(("changes", "error", "said"), FAILING.values(), ids=FAILING)
def test_a_failure_names_the_size(changes, error, said):
    given = {"build": lambda n: scaled(n), "inputs": ONES, "seeds": 1, **changes}
    with pytest.raises(error, match=re.escape(said)):
        width_sweep(given.pop("build"), [2, 4], given.pop("inputs"), **given)


def test_a_model_that_the_user_keeps_is_not_trained():
    """With one seed there is no second build that would show it."""
    kept = {n: scaled(n) for n in (2, 4)}
    with pytest.raises(UsageError, match="must build a new model each time it is called, which is then trained"):
        width_sweep(kept.__getitem__, [2, 4], ONES, seeds=1, after_steps=1, loss=Tensor.sum)
    assert torch.equal(kept[2][0].weight, 2 * torch.eye(3))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def test_each_training_step_is_one_optimizer_step():
    """y = w x, loss = mean y over two samples and three units: each step takes 0.1/3 off every weight of a row."""
    values = {}
    for steps in (0, 1, 2):
        found = width_sweep(
            lambda n: scaled(n), [2, 4], ONES, seeds=1, after_steps=steps, optimizer=sgd, loss=Tensor.mean
        )
        values[steps] = [value["0"].mean for value in found.values]
    assert values[0] == pytest.approx([2, 4], rel=1e-6)
    assert values[1] == pytest.approx([2 - 0.1, 4 - 0.1], rel=1e-6)
    assert values[2] == pytest.approx([2 - 0.2, 4 - 0.2], rel=1e-6)


def test_optimizers_that_need_a_closure_get_one():
    found = width_sweep(
        lambda n: nn.Linear(3, n),
        [2, 4],
        ONES,
        seeds=1,
        loss=lambda output: output.square().sum(),
        after_steps=5,
        optimizer=lambda parameters: torch.optim.LBFGS(list(parameters), lr=0.1),
    )
    assert all(value["output" if "output" in value else list(value)[-1]] < 1 for value in found.values)


class Noisy(nn.Module):
    """Has everything that a forward pass may change or draw."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(width, width)
        )
        self.head = nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) + random.random())


def test_changes_are_recorded_by_module_and_reproducible():
    def sweep():
        return width_sweep(
            Noisy,
            [8, 16],
            vectors,
            seeds=2,
            measure="activation_change",
            after_steps=2,
            loss=lambda output: output.square().mean(),
        )

    state = torch.get_rng_state(), random.getstate()
    first, second = sweep(), sweep()
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    # The input of a module that works in place is kept. The same dropout masks are drawn before and after.
    assert set(first.slope) == {*(f"body.{i}" for i in range(5)), "body", "head", "output"}
    for one, other in zip(first.values, second.values):
        assert {n: e.values for n, e in one.items()} == {n: e.values for n, e in other.items()}
        assert all(e > 0 for e in one.values())
    assert (
        first.of("activation_rms", summary="max").slope.values
        == second.of("activation_rms", summary="max").slope.values
    )


def test_modules_that_work_in_place_hide_no_change():
    """The output of a layer is copied before the next one overwrites it."""

    def sweep(*, inplace: bool):
        return width_sweep(
            lambda n: nn.Sequential(nn.Linear(6, n), nn.ReLU(inplace=inplace), nn.Linear(n, 2)),
            [8, 16],
            vectors,
            seeds=2,
            measure="activation_change",
            after_steps=1,
            loss=lambda output: output.square().mean(),
        )

    first, second = sweep(inplace=True), sweep(inplace=False)
    assert [value["0"].values for value in first.values] == [value["0"].values for value in second.values]
    assert first.values[0]["0"] > first.values[0]["1"]


def test_the_model_is_trained_on_the_batch_that_is_measured():
    drawn = []

    def inputs(generator: torch.Generator) -> Tensor:
        drawn.append(torch.randn(4, 6, generator=generator))
        return drawn[-1]

    width_sweep(perceptron, [4, 8], inputs, seeds=2, after_steps=2, loss=Tensor.mean)
    # For each of two sizes and two seeds: once for training, once for the measurement.
    assert len(drawn) == 8
    assert len({tuple(tensor.flatten().tolist()) for tensor in drawn}) == 2


class Counting(Scaled):
    """Multiplies by the number of its calls in train mode, which BatchNorm counts, too."""

    def __init__(self, factor: float) -> None:
        super().__init__(factor)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return super().forward(x) * float(self.calls)


@pytest.mark.parametrize("measure", ["activation_rms", "activation_change"])
def test_only_training_steps_and_the_measured_pass_change_buffers(measure):
    """One forward pass per step, and the measured one. The other passes leave no trace."""
    found = width_sweep(
        lambda n: nn.Sequential(Counting(n), nn.Identity()),
        [2, 4],
        ONES,
        seeds=1,
        measure=measure,
        after_steps=3,
        loss=Tensor.mean,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    )
    rms = found.of("activation_rms").values
    assert [value["0"].mean for value in rms] == pytest.approx([2 * 4, 4 * 4], rel=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_a_learning_rate_of_zero_changes_nothing(train):
    """The compared passes before and after training have the same dropout masks, or none."""
    found = width_sweep(
        lambda n: nn.Sequential(nn.Linear(6, n), nn.Dropout(0.5), nn.Linear(n, 2)),
        [8, 16],
        vectors,
        seeds=1,
        measure="activation_change",
        after_steps=2,
        loss=lambda output: output.square().mean(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        train=train,
    )
    assert [[change.mean for change in value.values()] for value in found.values] == [[0.0] * 4] * 2


def test_training_is_in_train_mode_even_for_a_measurement_in_eval_mode():
    """With a momentum of 1 BatchNorm has the variance of the batch, with Bessel's correction: (4 - 1) / 4 remains."""
    found = width_sweep(
        lambda n: nn.Sequential(nn.Linear(6, n), nn.BatchNorm1d(n, momentum=1.0, eps=1e-12)),
        [8, 16],
        vectors,
        seeds=1,
        after_steps=1,
        loss=Tensor.mean,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        train=False,
        steps=["0", "1"],
    )
    # float32: means over four numbers of size one.
    assert [value["1"].mean for value in found.values] == pytest.approx([math.sqrt(3 / 4)] * 2, rel=1e-5)


# Members ------------------------------------------------------------------------------------------------------------


def member(build, training=None):
    return Member(build, "width", 4, ONES, training, compare=False)


def test_a_member_builds_models_of_its_size_and_has_the_name_of_its_function():
    def net(width: int) -> nn.Module:
        return nn.Linear(3, width)

    found = member(net)
    assert found().weight.shape == (4, 3)
    assert (found.at, found.__name__) == ("width 4", "net")
    assert found.shapes == (("weight", (4, 3)), ("bias", (4,)))
    assert member(partial(net)).__name__ == "<lambda>"


def test_weights_without_a_shape_yet_have_the_empty_one():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = member(nn.LazyLinear)
        found()
    assert found.shapes == (("weight", ()), ("bias", ()))


def test_no_steps_are_no_training():
    options = as_options("width_sweep()", {})
    assert as_training(Context(), 0, options) is None
    training = as_training(Context(), 3, options)
    assert training is not None and training.steps == 3


def test_the_seed_of_the_run_is_that_of_the_training():
    training = as_training(Context(), 1, as_options("width_sweep()", {"loss": Tensor.sum}))
    found = Member(lambda n: scaled(n), "width", 2, ONES, training, compare=True)
    torch.manual_seed(7)
    found()
    assert found.changes.keys() == {7} and set(found.changes[7]) == {"0", "output"}
