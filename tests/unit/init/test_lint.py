"""Unusual initial values: each is found with its reason, and healthy models have none."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import faults
import pytest
import torch
import zoo
from torch import nn

from pytest_trainability.init.description import describe
from pytest_trainability.init.lint import unusual_values


class Conv1D(nn.Module):
    """The layer of this name in ``transformers``: its weight has inputs first."""

    def __init__(self, inputs: int, outputs: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(inputs, outputs))


class LowRank(nn.Module):
    def __init__(self, *, second: float) -> None:
        super().__init__()
        self.lora_A, self.lora_B = (
            nn.ModuleDict({"default": nn.Linear(8, 2, bias=False)}),
            nn.Parameter(torch.empty(8, 2)),
        )
        nn.init.zeros_(self.lora_A["default"].weight)
        nn.init.constant_(self.lora_B, second)


def changed(module: nn.Module, change: Callable[[nn.Module], object]) -> nn.Module:
    with torch.no_grad():
        change(module)
    return module


def exchanged(norm: nn.Module) -> None:
    nn.init.zeros_(norm.weight)
    nn.init.ones_(norm.bias)


def one_far_out(layer: nn.Module) -> None:
    layer.weight[3, 5] = 10.0


def in_block(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer)


UNUSUAL: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "drawn gains": (
        lambda: changed(nn.LayerNorm(64), lambda m: nn.init.normal_(m.weight, std=0.02)),
        "weight",
        r"the gain of a normalization is drawn around 0 \(std 0\.0\d+\)",
    ),
    "gain and shift exchanged": (lambda: changed(nn.LayerNorm(8), exchanged), "weight", "exchanged"),
    "a constant matrix": (
        lambda: changed(nn.Linear(8, 8), lambda m: nn.init.constant_(m.weight, 0.1)),
        "weight",
        r"all entries of a weight matrix are 0\.1",
    ),
    "a zero embedding": (
        lambda: changed(nn.Embedding(9, 8), lambda m: nn.init.zeros_(m.weight)),
        "weight",
        "all entries of an embedding are 0",
    ),
    "a padding row": (
        lambda: changed(nn.Embedding(9, 8, padding_idx=1), lambda m: nn.init.normal_(m.weight)),
        "weight",
        "row 1 of an embedding is its padding row",
    ),
    "a frozen table of zeros": (
        lambda: nn.ParameterList([nn.Parameter(torch.zeros(1, 9, 8), requires_grad=False)]),
        "0",
        "all entries are 0, and the parameter is frozen",
    ),
    "a low-rank product of zeros": (lambda: LowRank(second=0.0), r"lora_A\.default\.weight", "both factors"),
    "an entry far out": (
        lambda: changed(nn.Linear(64, 64), one_far_out),
        "weight",
        r"the largest entry, 10, is \d\d+ root",
    ),
    "a large gain": (
        lambda: in_block(changed(nn.Linear(768, 768), lambda m: nn.init.normal_(m.weight, std=0.2))),
        r"0\.weight",
        r"rms 0\.2 for 768 inputs is a gain of 5\.5",
    ),
    "a large gain of a transposed layer": (lambda: in_block(Conv1D(768, 192, 0.2)), r"0\.weight", r"a gain of 5\.5"),
    "a large gain of a convolution": (
        lambda: in_block(changed(nn.Conv2d(16, 64, 3), lambda m: nn.init.normal_(m.weight, std=0.5))),
        r"0\.weight",
        "for 144 inputs is a gain of 6",
    ),
}


@pytest.mark.parametrize(("build", "name", "reason"), UNUSUAL.values(), ids=UNUSUAL.keys())
def test_what_is_unusual_is_named_with_its_reason(build: Callable[[], nn.Module], name: str, reason: str) -> None:
    torch.manual_seed(0)
    model = build()
    ((found, why),) = unusual_values(model, describe(model)).items()
    assert re.fullmatch(name, found)
    assert re.search(reason, why)


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    "gains drawn around one": lambda: changed(nn.BatchNorm2d(64), lambda m: nn.init.normal_(m.weight, 1.0, 0.02)),
    "gains of several dimensions": lambda: nn.LayerNorm((8, 16)),
    "zero-centered gains": lambda: changed(nn.RMSNorm(8), lambda m: nn.init.zeros_(m.weight)),
    "a frozen layer with a bias of zeros": lambda: changed(
        nn.Linear(8, 64).requires_grad_(requires_grad=False), lambda m: nn.init.zeros_(m.bias)
    ),
    "a zero matrix": lambda: changed(nn.Linear(8, 8), lambda m: nn.init.zeros_(m.weight)),
    "a low-rank product that starts at zero": lambda: LowRank(second=0.1),
    "a one-hot table": lambda: changed(nn.Linear(4096, 4096, bias=False), lambda m: nn.init.eye_(m.weight)),
    "a router of unit weights": lambda: in_block(changed(nn.Linear(512, 8), lambda m: nn.init.normal_(m.weight))),
    "a head of unit weights": lambda: changed(nn.Linear(512, 999), lambda m: nn.init.normal_(m.weight)),
    "He, fan-out": lambda: in_block(
        changed(nn.Conv2d(256, 64, 3), lambda m: nn.init.kaiming_normal_(m.weight, mode="fan_out"))
    ),
    "a lazy layer": lambda: nn.LazyLinear(3),
    "not finite": lambda: changed(nn.Linear(8, 8), lambda m: m.weight.fill_(math.nan)),
}


@pytest.mark.parametrize("build", HEALTHY.values(), ids=HEALTHY.keys())
def test_designs_are_not_unusual(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build()
    assert unusual_values(model, describe(model)) == {}


def found_in(build: Callable[[], nn.Module]) -> dict[str, str]:
    torch.manual_seed(0)
    model = build()
    return unusual_values(model, describe(model))


@pytest.mark.parametrize("case", faults.HEALTHY, ids=lambda case: case.id)
def test_healthy_models_have_none(case: faults.Case) -> None:
    assert found_in(case.build) == {}


DRAWN = "efficientnet"
"""Its library draws the gains of batch normalizations from N(0, 0.02)."""


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.id)
def test_architectures_have_none_but_one(case: zoo.Case) -> None:
    found = found_in(case.build)
    assert {reason.partition(" (")[0] for reason in found.values()} == (
        {"the gain of a normalization is drawn around 0"} if case.id == DRAWN else set()
    )
