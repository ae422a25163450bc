"""Contracts on a measurement, and on a model that is never run."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import (
    ModelError,
    TrainabilityFailure,
    UsageError,
    init,
    initialization,
    measure,
)
from pytest_trainability.init.rules import RuleLike
from pytest_trainability.measurement.initialization import judge_contract, models_of, verdict_on

CONTRACT: dict[str, RuleLike] = {"*.weight": init.normal(std=0.1), "*.bias": init.zeros()}


class Net(nn.Module):
    """A model that cannot be run."""

    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(20, 30) for _ in range(3))
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError


KEPT = Net()


def tower(std: float = 0.1) -> nn.Module:
    model = nn.Sequential(nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20))
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return model


def test_a_model_that_cannot_run_is_checked() -> None:
    found = initialization(Net, seeds=[3, 5])
    assert found.seeds == (3, 5)
    assert repr(found) == "<initialization of Net, seeds (3, 5)>"
    found.check(CONTRACT)
    with pytest.raises(TrainabilityFailure, match=r"layers.\*.weight \(3 of 3\): std 0.*times too large"):
        initialization(lambda: Net(0.2)).check(CONTRACT)


def test_a_finished_module_is_one_draw_and_is_not_copied() -> None:
    model = Net()
    found = initialization(model, seeds=4, name="my net")
    assert found.seeds == (0,)
    found.check(CONTRACT)
    assert next(models_of(model, [0]))[1] is model
    with pytest.raises(TrainabilityFailure, match=r"^my net does not keep .* \(seed 0\)"):
        found.check({"**": init.zeros()})


def test_generators_and_models_are_left_as_they_were() -> None:
    model = Net().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(7)
    random.seed(7)
    state, other = torch.get_rng_state(), random.getstate()
    initialization(model).check(CONTRACT)
    initialization(Net).check(CONTRACT)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == other
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_models_of_earlier_seeds_are_freed() -> None:
    made: list[weakref.ref[nn.Module]] = []

    def build() -> nn.Module:
        assert sum(reference() is not None for reference in made) <= 1
        model = Net()
        made.append(weakref.ref(model))
        return model

    initialization(build, seeds=4).check(CONTRACT)
    assert len(made) == 4


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda: Net().to("meta"), ModelError, "lives on the meta device"),
        (lambda: nn.LazyLinear(3), ModelError, "has no shape yet"),
        (lambda: 3, ModelError, "must return a torch.nn.Module"),
        (lambda: KEPT, UsageError, "must build a new model each time"),
        (3, UsageError, "the model must be a torch.nn.Module"),
    ],
)
def test_models_without_numbers_are_refused(model: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        initialization(model).check({"**": init.anything("any")})


def test_the_model_of_a_measurement_is_checked() -> None:
    result = measure(tower, torch.randn(4, 20), seeds=2)
    result.check_initialization(CONTRACT)
    with pytest.raises(TrainabilityFailure) as caught:
        measure(lambda: tower(0.2), torch.randn(4, 20), seeds=2).check_initialization(CONTRACT)
    assert str(caught.value).startswith("Sequential does not keep its initialization contract (seeds 0, 1).")
    assert "*.weight (2 of 2): std 0.19" in str(caught.value)


def test_a_measurement_checks_a_finished_module_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20))
    result = measure(model, torch.randn(4, 20))
    result.check_initialization({"*.running_mean": init.zeros(), "**": init.anything("any")})


def test_bounds_and_contracts_of_one_measurement_are_independent() -> None:
    result = measure(tower, torch.randn(4, 20), seeds=2)
    with pytest.raises(TrainabilityFailure):
        result.check_initialization({"**": init.zeros()})
    result.check(log_gain=(-10, 10))


def test_an_invalid_contract_of_a_measurement_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown rule 0"):
        measure(tower, torch.randn(4, 20), seeds=1).check_initialization({"**": 0.02})  # type: ignore[dict-item]


@pytest.mark.parametrize("build", [Net, lambda: Net(0.2)])
def test_the_verdict_counts_faults(build: Callable[[], nn.Module]) -> None:
    judgement = judge_contract({**CONTRACT, "x": init.zeros()}, build, [0])
    verdict = verdict_on(judgement)
    assert not verdict.holds
    assert verdict.value == (1 if build is Net else 4)
    assert verdict.remark == ("'x'" if build is Net else verdict.remark)


def test_a_default_device_is_no_matter() -> None:
    with torch.device("meta"):
        initialization(Net).check(CONTRACT)


class Materialized(Net):
    """A model that is built on the meta device, and whose memory is filled afterwards."""

    def __init__(self) -> None:
        with torch.device("meta"):
            super().__init__()
        self.to_empty(device="cpu")
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.zeros_(layer.bias)


@pytest.mark.parametrize("build", [Net, Materialized])
def test_a_model_that_cannot_run_prints_as_a_table(build: type[nn.Module]) -> None:
    heads, names, *rows = str(initialization(build)).splitlines()
    assert heads == f"{build.__name__}: 6 parameters, 0 buffers, seeds 0, 1, 2, 3"
    assert names.split() == ["name", "shape", "rms", "mean", "outlier", "form"]
    assert [(row.split()[0], row.rpartition("  ")[2]) for row in rows] == [
        ("layers.{0-2}.weight", "normal, std 0.1"),
        ("layers.{0-2}.bias", "constant 0"),
    ]


def test_models_are_built_once_for_all_forms() -> None:
    built = []

    def build() -> nn.Module:
        built.append(1)
        return Net()

    found = initialization(build, seeds=2)
    assert found.parameters["layers.0.weight"].form == "normal"
    assert found.buffers == {}
    assert len(built) == 2
    assert str(found).startswith("build: 6 parameters")


def test_a_nameless_model_is_named_by_its_class() -> None:
    assert str(initialization(Net())).startswith("Net: 6 parameters, 0 buffers, seed 0\n")
    assert str(initialization(lambda: Net(), seeds=2)).startswith("Net: 6 parameters, 0 buffers, seeds 0, 1\n")


def test_a_measurement_shows_its_initial_values() -> None:
    result = measure(tower, torch.randn(4, 20), seeds=2)
    found = result.initialization
    assert found.seeds == (0, 1)
    assert found.parameters["2.weight"].text == "normal, std 0.1"
    found.check(CONTRACT)


def test_a_measurement_shows_a_finished_module_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20))
    found = measure(model, torch.randn(4, 20)).initialization
    assert found.buffers["1.running_mean"].text == "constant 0"
    assert found.seeds == (0,)
