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

from pytest_trainability import initialization
from pytest_trainability.init.description import describe
from pytest_trainability.init.lint import in_order, seeded_inside, trained_entries, unusual_values


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


class Adapter(nn.Module):
    """A low-rank product whose factors have no usual names."""

    def __init__(self, *shapes: tuple[int, int]) -> None:
        super().__init__()
        self.matrices = nn.ParameterList()
        for i, shape in enumerate(shapes):
            self.register_parameter(f"m{i}", nn.Parameter(torch.zeros(shape)))


def changed(module: nn.Module, change: Callable[[nn.Module], object]) -> nn.Module:
    with torch.no_grad():
        change(module)
    return module


def exchanged(norm: nn.Module) -> None:
    nn.init.zeros_(norm.weight)
    nn.init.ones_(norm.bias)


def one_far_out(layer: nn.Module) -> None:
    layer.weight[3, 5] = 10.0


def zeros(layer: nn.Module) -> nn.Module:
    nn.init.zeros_(layer.weight)
    return layer


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
    "a zero embedding with drawn positions": (
        lambda: nn.ModuleDict({"tokens": zeros(nn.Embedding(99, 8)), "positions": nn.Embedding(16, 8)}),
        r"tokens\.weight",
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
    "a low-rank product of other names": (lambda: Adapter((2, 8), (6, 2)), "m0", "both factors"),
    "a low-rank product in another order": (lambda: Adapter((6, 2), (2, 8)), "m1", "both factors"),
    "a low-rank product of layers": (
        lambda: nn.ModuleDict({name: zeros(nn.Linear(*sizes)) for name, sizes in {"a": (8, 2), "b": (2, 9)}.items()}),
        r"a\.weight",
        "both factors",
    ),
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
    "an embedding of zeros that is added to another one": lambda: nn.ModuleDict(
        {"tokens": nn.Embedding(99, 8), "added": zeros(nn.Embedding(99, 4)), "positions": zeros(nn.Embedding(16, 8))}
    ),
    "gains drawn around one": lambda: changed(nn.BatchNorm2d(64), lambda m: nn.init.normal_(m.weight, 1.0, 0.02)),
    "gains of several dimensions": lambda: nn.LayerNorm((8, 16)),
    "zero-centered gains": lambda: changed(nn.RMSNorm(8), lambda m: nn.init.zeros_(m.weight)),
    "a frozen layer with a bias of zeros": lambda: changed(
        nn.Linear(8, 64).requires_grad_(requires_grad=False), lambda m: nn.init.zeros_(m.bias)
    ),
    "a zero matrix": lambda: changed(nn.Linear(8, 8), lambda m: nn.init.zeros_(m.weight)),
    "a low-rank product that starts at zero": lambda: LowRank(second=0.1),
    "two zero matrices that are no low-rank product": lambda: Adapter((8, 8), (8, 8)),
    "a chain of zero matrices that widens": lambda: Adapter((8, 4), (9, 8)),
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
    """By any rule, those that build the model again among them."""
    assert initialization(case.build, seeds=1).unusual == ()


DRAWN = "efficientnet"
"""Its library draws the gains of batch normalizations from N(0, 0.02)."""


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.id)
def test_architectures_have_none_but_one(case: zoo.Case) -> None:
    found = found_in(case.build)
    assert {reason.partition(" (")[0] for reason in found.values()} == (
        {"the gain of a normalization is drawn around 0"} if case.id == DRAWN else set()
    )


DRAW = {name: torch.linspace(i, i + 1, 20) for i, name in enumerate("abc")}
OTHER = {name: values + 100 for name, values in DRAW.items()}


def test_drawn_parameters_that_two_seeds_share_are_named() -> None:
    found = seeded_inside(DRAW, {**OTHER, "b": DRAW["b"]}, "abc")
    assert list(found) == ["b"]
    assert found["b"].endswith("a generator is seeded inside")


def test_one_line_says_that_the_factory_seeds_the_generator() -> None:
    (line,) = seeded_inside(DRAW, DRAW, "abc").values()
    assert line.endswith("(and so are all 3 drawn parameters)")
    assert list(seeded_inside(DRAW, DRAW, "a")) == ["a"]


def test_shared_values_that_are_not_drawn_are_a_design() -> None:
    assert seeded_inside(DRAW, {**OTHER, "b": DRAW["b"]}, "ac") == {}
    assert seeded_inside({}, DRAW, "abc") == seeded_inside(DRAW, OTHER, "abc") == {}


def test_entries_that_may_agree_by_coincidence_are_not_compared() -> None:
    """Those of constants, of few values and of what is not trained."""
    model = nn.ParameterDict(
        {
            "eight": nn.Parameter(torch.arange(8.0)),
            "seven": nn.Parameter(torch.arange(70.0) % 7),
            "constant": nn.Parameter(torch.ones(99)),
            "frozen": nn.Parameter(torch.arange(99.0), requires_grad=False),
            "empty": nn.Parameter(torch.empty(0)),
            "not_finite": nn.Parameter(torch.full((99,), math.nan)),
        }
    )
    assert list(trained_entries(model)) == ["eight", "not_finite"]


def test_reasons_follow_the_order_of_the_model() -> None:
    model = nn.BatchNorm1d(3)
    reasons = {"running_var": "c", "bias": "b", "weight": "a", "other": "d"}
    assert list(in_order(reasons, model)) == ["weight", "bias", "running_var"]
