"""Judging a contract on models of several seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from pytest_trainability import UsageError, init
from pytest_trainability.init.check import Judgement, check_models, pooled, probabilities_of
from pytest_trainability.init.statistics import statistics_of

CONTRACT = {"*.bias": init.zeros(), "*.weight": init.normal(std=0.02)}
Change = Callable[[nn.ModuleList], object]


def net() -> nn.ModuleList:
    layers = nn.ModuleList(nn.Linear(40, 50) for _ in range(6))
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return layers


def models(build: Callable[[], nn.Module] = net, seeds: int = 2) -> Iterator[tuple[int, nn.Module]]:
    for seed in range(seeds):
        torch.manual_seed(seed)
        yield seed, build()


def judged(change: Change, contract: Any = CONTRACT) -> Judgement:
    def build() -> nn.Module:
        model = net()
        with torch.no_grad():
            change(model)
        return model

    with torch.random.fork_rng(devices=[]):
        return check_models(contract, models(build))


def test_a_model_that_keeps_its_contract() -> None:
    found = judged(lambda model: None)
    assert found.holds
    # For each weight: rows and columns on both seeds, the second seed, mean, std and shape. Then 5 pairs, and all shapes.
    assert found.tests == 6 * (4 + 1 + 3) + 5 + 1


CHANGES: dict[str, Change] = {
    "std": lambda m: m[1].weight.mul_(1.2),
    "mean": lambda m: m[1].weight.add_(0.01),
    "shape": lambda m: m[1].weight.uniform_(-0.02 * math.sqrt(3), 0.02 * math.sqrt(3)),
    "broken": lambda m: m[1].bias.fill_(0.1),
    "layers": lambda m: m[1].weight.copy_(m[0].weight),
    "rows": lambda m: m[1].weight.copy_(m[1].weight[:1].expand(50, -1).clone()),
    "seeds": lambda m: m[1].weight.normal_(0, 0.02, generator=torch.Generator().manual_seed(3)),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_found_and_named(kind: str) -> None:
    (breach,) = judged(CHANGES[kind]).breaches
    assert breach.kind == kind
    assert breach.reading.name == ("1.bias" if kind == "broken" else "1.weight")


def test_a_shape_that_shows_only_in_all_parameters_together() -> None:
    """A cut at two standard deviations moves the distribution function by 1.5 %, too little for 4,000 entries of a weight."""

    def build() -> nn.Module:
        layers = nn.ModuleList(nn.Linear(40, 50, bias=False) for _ in range(20))
        std = 0.02 / 0.8796256610342398
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        return layers

    with torch.random.fork_rng(devices=[]):
        found = check_models({"*.weight": init.normal(std=0.02)}, models(build))
    assert [breach.kind for breach in found.breaches] == ["together"]
    assert "cut off at 2.2" in found.breaches[0].words


def test_buffers_that_are_named() -> None:
    contract = {"*.running_var": init.zeros(), "*.running_mean": init.zeros(), "**": init.anything("not tested")}
    found = check_models(contract, [(0, nn.BatchNorm1d(3))])
    assert [breach.reading.name for breach in found.breaches] == ["running_var"]


def test_packed_projections_and_padding_rows() -> None:
    def build() -> nn.Module:
        model = nn.ModuleDict({"in_proj": nn.Linear(30, 90, bias=False), "wte": nn.Embedding(50, 30, padding_idx=0)})
        nn.init.normal_(model["in_proj"].weight[60:], std=0.5)
        nn.init.normal_(model["in_proj"].weight[:60], std=0.1)
        return model

    contract = {
        "in_proj.weight": init.packed(init.normal(0.1), init.normal(0.1), init.normal(0.1)),
        "wte.weight": init.normal(1.0).with_zero_row(0),
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        found = check_models(contract, models(build))
    assert [(b.reading.name, b.reading.label, b.kind) for b in found.breaches] == [("in_proj.weight", "[60:90]", "std")]


def test_models_must_have_the_same_parameters() -> None:
    with pytest.raises(UsageError, match="That of seed 1 has others"):
        check_models({"**": init.ones()}, [(0, nn.LayerNorm(2)), (1, nn.LayerNorm(2, bias=False))])


def test_names_at_fault_make_a_check_fail() -> None:
    assert not check_models({"weight": init.ones()}, [(0, nn.LayerNorm(2))]).holds
    assert not check_models({"x": init.ones(), "**": init.anything("any")}, [(0, nn.LayerNorm(2))]).holds


def test_pooled_statistics() -> None:
    parts = [torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (50, 30)]
    found, expected = pooled([statistics_of(part) for part in parts]), statistics_of(torch.cat(parts))
    assert (found.count, found.low, found.high) == (expected.count, expected.low, expected.high)
    assert found.mean == pytest.approx(expected.mean, rel=1e-12)
    assert found.variance == pytest.approx(expected.variance, rel=1e-12)
    # Without the third moments, which the difference of the two means multiplies: 4 · 0.1 · 0.3 of 3.
    assert found.fourth == pytest.approx(expected.fourth, rel=0.05)


def test_probabilities_are_those_of_the_tests() -> None:
    with torch.random.fork_rng(devices=[]):
        found = probabilities_of(CONTRACT, models())
    assert {kind for kind, _ in found} == {"rows", "columns", "seeds", "mean", "std", "shape", "together", "layers"}
    assert all(0 <= probability <= 1 for _, probability in found)


class Parametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turned = parametrizations.orthogonal(nn.Linear(40, 40))
        self.layers = nn.ModuleList(parametrizations.weight_norm(nn.Linear(64, 64)) for _ in range(3))


def test_parametrized_weights_keep_rules_by_their_own_names() -> None:
    contract = {
        "turned.weight": init.orthogonal(),
        "*.weight": init.kaiming_uniform(a=math.sqrt(5)),
        "*.bias": init.default_bias(),
    }
    with torch.random.fork_rng(devices=[]):
        assert check_models(contract, models(Parametrized)).holds
        found = check_models({**contract, "*.weight": init.normal(std=0.02)}, models(Parametrized))
    assert {breach.reading.name for breach in found.breaches} == {f"layers.{i}.weight" for i in range(3)}
