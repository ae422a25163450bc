"""The text of a failed contract."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from pytest_trainability import init
from pytest_trainability.init.check import check_models
from pytest_trainability.init.rules import RuleLike
from pytest_trainability.init.words import _range, failure_text, first_fault

SCALED = 0.02 / math.sqrt(2 * 12)
CONTRACT: dict[str, RuleLike] = {
    "*.c_proj.weight": init.normal(std=SCALED),
    "*.ln.weight": init.ones(),
    "*.bias": init.zeros(),
    "**": init.normal(std=0.02),
}


class Block(nn.Module):
    def __init__(self, std: float, width: int = 32) -> None:
        super().__init__()
        self.ln, self.c_proj = nn.LayerNorm(width), nn.Linear(width, width)
        nn.init.normal_(self.c_proj.weight, std=std)
        nn.init.zeros_(self.c_proj.bias)


class Net(nn.Module):
    def __init__(self, std: float = SCALED) -> None:
        super().__init__()
        self.h = nn.ModuleList(Block(std) for _ in range(12))


def text(build: Callable[[], nn.Module], contract: dict[str, RuleLike]) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return failure_text(check_models(contract, ((seed, build()) for seed in range(4))), "my net")


def without(pattern: str) -> dict[str, RuleLike]:
    return {key: rule for key, rule in CONTRACT.items() if key != pattern}


def test_a_missing_scaling_is_recognized_and_names_are_folded() -> None:
    lines = text(lambda: Net(0.02), without("**")).splitlines()
    assert lines[0] == "my net does not keep its initialization contract (seeds 0, 1, 2, 3)."
    assert lines[1] == "  '*.c_proj.weight': init.normal(std=0.004082482904638631)"
    assert lines[2].startswith("    h.*.c_proj.weight (12 of 12): std 0.02, rule 0.00408: 4.9")
    assert lines[2].endswith(" times too large; the scaling by 1/√(2 × 12) is missing (12 layers)")
    assert lines[3].startswith("A model that keeps the contract fails by chance with a probability of at most 1e-06")
    assert len(lines) == 4


def test_parameters_without_rule_and_rules_without_parameter_are_named() -> None:
    contract = {**without("**"), "*.c_porj.weight": init.zeros()}
    del contract["*.ln.weight"]
    lines = text(Net, contract).splitlines()
    assert lines[1:] == [
        "  No rule matches these parameters. Add one, or init.anything(reason):",
        "    h.*.ln.weight (12)",
        "  These rules match no parameter. Correct or remove them:",
        "    '*.c_porj.weight'; the nearest name is h.*.c_proj.weight",
    ]


def test_every_kind_of_breach_has_words() -> None:
    def build() -> nn.Module:
        model = Net()
        with torch.no_grad():
            model.h[0].c_proj.weight.mul_(1.3)
            model.h[1].c_proj.weight.add_(0.004)
            model.h[2].c_proj.weight.uniform_(-SCALED * math.sqrt(3), SCALED * math.sqrt(3))
            model.h[3].c_proj.weight.copy_(model.h[4].c_proj.weight)
            model.h[5].c_proj.weight.copy_(model.h[5].c_proj.weight[:1].expand(32, -1).clone())
            model.h[6].c_proj.bias.fill_(0.5)
            model.h[7].c_proj.weight.copy_(0.004 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))
            model.h[8].ln.weight[3] = math.inf
        return model

    found = text(build, without("**"))
    for part in (
        "h.0.c_proj.weight: std 0.005",
        "% too large",
        "h.1.c_proj.weight: mean 0.00",
        "h.2.c_proj.weight: not a normal distribution: ",
        "h.4.c_proj.weight: equal to or correlated with the entries of h.3.c_proj.weight (correlation 1.00)",
        "h.5.c_proj.weight: entries of one column are not independent",
        "h.6.c_proj.bias: all entries are 0.5",
        "h.7.c_proj.weight: not drawn again for each seed (correlation 1.00)",
        "h.8.ln.weight: 1 of 32 entries are NaN or infinite",
    ):
        assert part in found, found


def test_long_lists_are_counted() -> None:
    model = nn.ModuleDict({f"layer{i}": nn.LayerNorm(2, bias=False) for i in range(30)})
    lines = failure_text(check_models({"*.weight": init.zeros()}, [(0, model)])).splitlines()
    assert lines[-1] == "    … and 10 more"
    assert lines[0].startswith("ModuleDict does not keep its initialization contract (seed 0).")


def test_the_first_fault() -> None:
    judgement = check_models({"weight": init.zeros(), "bias": init.zeros()}, [(0, nn.LayerNorm(2))])
    assert first_fault(judgement) == "weight: all entries are 1"
    assert first_fault(check_models({"**": init.anything("any")}, [(0, nn.LayerNorm(2))])) == ""


def test_a_ratio_that_no_scaling_gives_has_no_explanation() -> None:
    """A factor of 1.3 is none of the scalings by 12 layers or by widths of 32, up to the error of twelve matrices."""
    lines = text(lambda: Net(1.3 * SCALED), without("**")).splitlines()
    (line,) = [line for line in lines if "h.*.c_proj.weight" in line]
    assert line.split(": ", 1)[1] == "std 0.00531, rule 0.00408: 30 % too large"


def test_a_range_of_equal_numbers_is_one_number() -> None:
    assert _range([0.5]) == _range([0.5, 0.5000001]) == "0.5"
    assert _range([0.5, 1.0, 2.0]) == "0.5 to 2"
