"""Contracts of models as they are today."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from pytest_trainability import UsageError, init
from pytest_trainability.init.check import check_models
from pytest_trainability.init.writing import contract_of, rules_of, source_of


def models(build: Callable[[], nn.Module], seeds: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
    for seed in seeds:
        torch.manual_seed(seed)
        yield seed, build()


class Block(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.ln, self.c_fc, self.c_proj = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.normal_(self.c_fc.weight, std=0.02)
        nn.init.normal_(self.c_proj.weight, std=0.02 / math.sqrt(2 * layers))
        nn.init.zeros_(self.c_fc.bias)
        nn.init.zeros_(self.c_proj.bias)


class Net(nn.Module):
    def __init__(self, width: int = 48, layers: int = 3) -> None:
        super().__init__()
        self.wte = nn.Embedding(60, width)
        nn.init.normal_(self.wte.weight, std=0.02)
        self.h = nn.ModuleList(Block(width, layers) for _ in range(layers))
        self.head = nn.Linear(width, 60, bias=False)
        self.head.weight = self.wte.weight


class Encoder(nn.Module):
    """A convolution of normalized weight, whose name ends like those of the others."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv1d(16, 16, 3) for _ in range(3)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight)
        self.layers = nn.ModuleList(nn.ModuleDict({"conv": layer}) for layer in layers)
        self.position = nn.ModuleDict({"conv": weight_norm(nn.Conv1d(64, 64, 3))})
        self.norm, self.mask = nn.LayerNorm(16), nn.Parameter(torch.rand(40))


def written(build: Callable[[], nn.Module]) -> dict[str, str]:
    with torch.random.fork_rng(devices=[]):
        return contract_of(models(build, range(8)))


def test_layers_are_folded_and_names_are_few() -> None:
    assert written(Net) == {
        "head.weight": 'init.tied("wte.weight")',
        "*.ln.weight": "init.ones()",
        "*.c_proj.weight": "init.normal(std=0.02 / math.sqrt(2 * 3))",
        "*.bias": "init.zeros()",
        "**": "init.normal(std=0.02)",
    } or written(Net) == {
        "head.weight": 'init.tied("wte.weight")',
        "h.*.ln.weight": "init.ones()",
        "h.*.c_proj.weight": "init.normal(std=0.02 / math.sqrt(2 * 3))",
        "*.bias": "init.zeros()",
        "**": "init.normal(std=0.02)",
    }


BUILDS: dict[str, Callable[[], nn.Module]] = {
    "net": Net,
    "convolutions": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2)),
    "attention": lambda: nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu"),
    "recurrent": lambda: nn.LSTM(20, 30),
    "one layer differs": lambda: nn.ModuleList(nn.Linear(9, 9) if i != 2 else nn.LayerNorm(9) for i in range(5)),
    "half": lambda: Net().bfloat16(),
    "a parametrized weight among others": Encoder,
    "parametrized weights in layers": lambda: nn.ModuleList(
        nn.ModuleList([weight_norm(nn.Linear(64, 64)), nn.Linear(64, 64)]) for _ in range(3)
    ),
    "shared module": lambda: nn.Sequential(*[nn.Linear(30, 30)] * 4),
}


@pytest.mark.parametrize("name", BUILDS)
def test_a_contract_holds_on_other_seeds(name: str) -> None:
    contract = written(BUILDS[name])
    with torch.random.fork_rng(devices=[]):
        found = check_models(rules_of(contract), models(BUILDS[name], range(20, 24)))
    assert found.holds, [(breach.reading.name, breach.words) for breach in found.breaches]
    assert not any("anything" in text for text in contract.values())


def test_copies_and_tables_are_named() -> None:
    def build() -> nn.Module:
        online, target = nn.Linear(40, 20), nn.Linear(40, 20)
        target.load_state_dict(online.state_dict())
        table = nn.Embedding.from_pretrained(torch.linspace(0, 1, 40).view(8, 5))
        return nn.ModuleDict({"online": online, "table": table, "target": target})

    found = written(build)
    assert found["table.weight"] == 'init.anything("the same entries for every seed")'
    assert 'init.copied("online.weight")' in found.values()


def test_source_is_python() -> None:
    source = source_of({"*.w": "init.kaiming_uniform(a=math.sqrt(5))", "**": "init.zeros()"}, "RULES")
    names: dict[str, object] = {}
    exec(source, names)
    assert repr(names["RULES"]) == "{'*.w': init.kaiming_uniform(a=math.sqrt(5)), '**': init.zeros()}"
    assert source.startswith("import math\n\nfrom pytest_trainability import init\n")
    assert not source_of({"**": "init.zeros()"}).startswith("import math")
    assert names["init"] is init


def test_models_without_parameters_and_changing_models_are_refused() -> None:
    with pytest.raises(UsageError, match="The model has none"):
        contract_of([(0, nn.ReLU())])
    with pytest.raises(UsageError, match="That of seed 1 has others"):
        contract_of([(0, nn.Linear(2, 2)), (1, nn.LayerNorm(2, bias=False))])


class Unit(nn.Module):
    """Layers of which two pairs lie in containers without names, as in GhostNet."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = nn.Sequential(nn.Linear(24, 24, bias=False), nn.LayerNorm(24), nn.ReLU())
        self.cheap = nn.Sequential(nn.Linear(24, 24, bias=False), nn.LayerNorm(24), nn.ReLU())


def test_numbers_that_tell_layers_from_normalizations_are_not_folded() -> None:
    def build() -> nn.Module:
        return nn.Sequential(*(nn.Sequential(*(Unit() for _ in range(3))) for _ in range(2)))

    assert written(build) == {
        "*.1.weight": "init.ones()",
        "*.bias": "init.zeros()",
        "**": "init.kaiming_uniform(a=math.sqrt(5))",
    } or written(build) == {
        "*.bias": "init.zeros()",
        "*.0.weight": "init.kaiming_uniform(a=math.sqrt(5))",
        "**": "init.ones()",
    }


def test_numbers_of_layers_are_folded_where_the_first_one_differs() -> None:
    """A contract with all numbers folded is shorter here, and is written."""

    def build() -> nn.Module:
        model = nn.ModuleDict({side: nn.ModuleList(nn.Linear(24, 24) for _ in range(6)) for side in ("down", "up")})
        for side, std in {"down": 0.02, "up": 0.2}.items():
            for layer in model[side]:
                nn.init.normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(model["up"][0].weight)
        return model

    found = written(build)
    assert len(found) == 4
    assert found["up.0.weight"] == "init.zeros()"


def test_two_numbers_may_decide_on_the_rule() -> None:
    def build() -> nn.Module:
        model = nn.ModuleList(nn.ModuleList(nn.Linear(24, 24, bias=False) for _ in range(2)) for _ in range(2))
        for i, j in ((0, 1), (1, 0)):
            nn.init.zeros_(model[i][j].weight)
        return nn.ModuleDict({name: copy.deepcopy(model) for name in ("a", "b")})

    contract = rules_of(written(build))
    with torch.random.fork_rng(devices=[]):
        assert check_models(contract, models(build, range(20, 24))).breaches == ()


def test_a_number_that_decides_nothing_is_folded_between_two_that_do() -> None:
    def build() -> nn.Module:
        model = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(nn.Linear(24, 24, bias=False) for _ in range(2)) for _ in range(4))
            for _ in range(2)
        )
        for k in range(4):
            for i, j in ((0, 1), (1, 0)):
                nn.init.zeros_(model[i][k][j].weight)
        return model

    # Two rules for eight layers, and one for the rest.
    assert len(written(build)) == 3


def test_a_finished_module_has_distributions() -> None:
    torch.manual_seed(0)
    model = Net()
    found = contract_of([(0, model)])
    assert found["**"] == "init.normal(std=0.02)"
    assert found["head.weight"] == 'init.tied("wte.weight")'
