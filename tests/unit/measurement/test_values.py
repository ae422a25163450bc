"""Values of a measurement as plain data: every measure that was read, on every seed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pytest_trainability import measure
from pytest_trainability.checks.baseline_entries import Entry
from pytest_trainability.checks.baseline_values import NameSet, Series
from pytest_trainability.checks.initial_values import InitialRow
from pytest_trainability.measurement import Context, measure_in
from pytest_trainability.measurement.values import details, old_value_records, value_records
from pytest_trainability.records.reports import CheckRecord
from pytest_trainability.records.values import ModuleRecord, ValueRecord

X = torch.linspace(-1, 1, 32).reshape(4, 8)


def tower() -> nn.Module:
    return nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.Tanh())])


class Skipping(nn.Module):
    """Leaves out its second layer on odd seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.skips = torch.initial_seed() % 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            if not (index == 1 and self.skips):
                x = torch.tanh(layer(x))
        return x


def records(model: Any, **options: Any) -> dict[str, ValueRecord]:
    result = measure(model, X, **options)
    return {record.measure: record for record in value_records(result._seed_runs)}


def test_each_kind_of_measure_has_its_values() -> None:
    result = measure(tower, X, seeds=3, measures=["lyapunov_spectrum", "jacobian_singular_values", "nonfinite"])
    found = {record.measure: record for record in value_records(result._seed_runs)}
    kinds = {name: (record.kind, record.by) for name, record in found.items()}
    assert kinds["log_gain"] == ("estimate", "")
    assert kinds["growth_rate"] == kinds["activation_rms"] == ("profile", "step")
    assert kinds["gradient_norm"] == ("profile", "parameter")
    assert kinds["lyapunov_spectrum"] == ("spectrum", "exponent")
    assert kinds["jacobian_singular_values"] == ("spectrum", "other")
    assert kinds["nonfinite"] == ("names", "")
    (element,) = found["log_gain"].elements
    assert (element.mean, element.low, element.high) == (
        result.log_gain.mean,
        *(result.log_gain.low, result.log_gain.high),
    )
    assert element.values == result.log_gain.values
    assert [e.name for e in found["growth_rate"].elements] == list(result.growth_rate)
    assert found["gradient_norm"].scale == "log"


def test_a_seed_without_an_element_has_nan_in_its_place() -> None:
    found = records(Skipping, seeds=4)["growth_rate"]
    (skipped,) = [element for element in found.elements if element.name == "layers.1"]
    assert [math.isnan(value) for value in skipped.values] == [False, True, False, True]
    assert math.isfinite(skipped.mean)


def reported(**context: Any) -> CheckRecord:
    found: list[CheckRecord] = []
    measure_in(Context(report=found.append, **context), tower, X, seeds=2)
    return found[-1]


def test_a_record_holds_details_only_if_a_file_shows_them() -> None:
    plain, detailed = reported(), reported(detailed=True)
    assert plain.values == plain.modules == plain.tensors == ()
    assert detailed.modules == (
        ModuleRecord("", "Sequential", 1),
        ModuleRecord("{0,2,4}", "Linear", 3),
        ModuleRecord("{1,3,5}", "Tanh", 3),
    )
    weights = [tensor for tensor in detailed.tensors if tensor.name.endswith("weight")]
    assert sum(tensor.count for tensor in weights) == 3
    assert all(tensor.shape == (8, 8) and 0.1 < tensor.rms < 0.3 for tensor in weights)
    assert all(tensor.looks == "" for tensor in weights), "64 entries are too few to tell"
    assert detailed.log_gain == plain.log_gain, "reading more must not change the numbers"


def test_tensors_say_what_their_entries_look_like() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 128), nn.Linear(128, 128))
        nn.init.zeros_(model[0].bias)
        nn.init.normal_(model[1].weight, std=0.02)
        return model

    found: list[CheckRecord] = []
    measure_in(Context(report=found.append, detailed=True), build, X, seeds=2)
    looks = {tensor.name: tensor.looks for tensor in found[-1].tensors}
    assert looks["0.bias"] == "all entries are 0"
    assert "uniform within ±0.35" in looks["0.weight"], "PyTorch's default: 1 / sqrt(8)"
    assert looks["1.weight"] == "like a normal distribution"


def test_without_a_description_there_are_no_modules() -> None:
    assert details(measure(tower, X, seeds=1)._seed_runs)["modules"] == ()


def test_values_of_a_baseline_have_the_same_form() -> None:
    entry = Entry(
        environment={"device": "cpu", "dtype": "float32"},
        conditions={},
        seeds=(0, 1),
        draws=("a", "b"),
        measures={
            "log_gain": Series("nats", "linear", {"": (-1.0, -3.0)}),
            "growth_rate": Series("nats", "linear", {"0": (-1.0, None), "2": (-0.5, -0.7)}),
            "activation_rms": Series("", "log", {"input": (1.0, 1.0), "0": (1.0, 4.0)}),
            "parameter_rms": Series("", "log", {"0.weight": (0.1, 0.1)}),
            "lyapunov_spectrum": Series("nats/step", "linear", {"exponent 1": (0.0, 0.1)}),
            "of_a_plugin": Series("", "linear", {"exponent 1": (0.0, 0.1)}),
            "unused_parameters": NameSet(("a",)),
        },
        initial={"{0,2}.weight": InitialRow((8, 8), 0.1, 0.0, 0.1, 0.1, 4)},
    )
    found = {record.measure: record for record in old_value_records(entry)}
    assert {name: (record.kind, record.by) for name, record in found.items()} == {
        "log_gain": ("estimate", ""),
        "growth_rate": ("profile", "step"),
        "activation_rms": ("profile", "step"),
        "parameter_rms": ("profile", "parameter"),
        "lyapunov_spectrum": ("spectrum", "exponent"),
        "of_a_plugin": ("spectrum", "exponent"),
        "unused_parameters": ("names", ""),
    }
    assert found["log_gain"].elements[0].mean == -2.0
    assert found["activation_rms"].elements[1].mean == 2.0
    first = found["growth_rate"].elements[0]
    assert (first.mean, first.values[0], math.isnan(first.values[1])) == (-1.0, -1.0, True)
    assert found["unused_parameters"].names == ("a",)
